"""What a tar shard holds and where: its headers are read, nothing is ever extracted."""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from diptych.errors import ImagesError
from diptych.images.decode import EXTENSIONS
from diptych.images.inventory import HIDDEN, Tally, why_no_image

_COMPRESSED: Final = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
}
_LABELS: Final = (".cls", ".json")
_BLOCK: Final = 512


@dataclass(frozen=True)
class Member:
    """A file inside a shard.

    Attributes:
        name: as in the shard; it is never used as a path.
        offset: of its bytes in the shard.
        size: in bytes.
        flaw: why it cannot be used; empty for a plain file.
    """

    name: str
    offset: int
    size: int
    flaw: str = ""


@dataclass
class Sample:
    """An image, and the files of its sample that may hold a label, by their extension."""

    image: Member
    labels: dict[str, Member] = field(default_factory=dict)


def read_samples(path: Path, others: Tally) -> list[Sample]:
    """The samples of a shard that have an image, in the order of their images.

    The files of a sample share the name up to the first dot of its last part. Where that would give
    a sample several images, as ``frame.0001.png`` and ``frame.0002.png``, they share the name up to
    the last dot. Of two members of one name the later counts, as it does when a shard is unpacked.

    Args:
        path: of the shard.
        others: takes up what is not used.

    Raises:
        ImagesError: the shard is missing, compressed, damaged, or has two images for one sample.
    """
    images, labels = dict[str, Member](), dict[str, dict[str, Member]]()
    for member in _members(path):
        stem, end = os.path.splitext(member.name)
        if os.path.basename(member.name).startswith("."):
            others.add(member.name, HIDDEN)
        elif end.lower() in EXTENSIONS:
            if member.name in images:
                others.add(member.name, "a later member of the shard has the same name")
            images[member.name] = member
        elif end in _LABELS:
            labels.setdefault(stem, {})[end[1:]] = member
        else:
            others.add(member.name, why_no_image(member.name))
    return _samples(path, images, labels, others)


def _samples(
    path: Path,
    images: dict[str, Member],
    labels: dict[str, dict[str, Member]],
    others: Tally,
) -> list[Sample]:
    together = dict[str, list[Member]]()
    for name, member in images.items():
        together.setdefault(_to_first_dot(name), []).append(member)
    samples, used = dict[str, Sample](), set[str]()
    for key, several in together.items():
        _refuse_same(path, several)
        for member in several:
            keys = [key] if len(several) == 1 else [os.path.splitext(member.name)[0], key]
            own = next((one for one in keys if one in labels), "")
            used.add(own)
            samples[member.name] = Sample(member, labels.get(own, {}))
    for key in labels.keys() - used:
        others.add(next(iter(labels[key].values())).name, "a label without an image")
    return [samples[name] for name in images]


def _to_first_dot(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _refuse_same(path: Path, several: Sequence[Member]) -> None:
    """Images of one sample whose names up to the last dot are the same too."""
    stems = dict[str, Member]()
    for member in several:
        stem = os.path.splitext(member.name)[0]
        other = stems.setdefault(stem, member)
        if other is not member:
            raise ImagesError(
                f"{path} has two images for the sample {stem}: {other.name} and {member.name}. "
                "Wanted one; write the shard anew."
            )


def _members(path: Path) -> Iterator[Member]:
    """The files of a shard in their order; a file that is cut off is the last."""
    try:
        with open(path, "rb") as raw:
            _refuse_compressed(path, raw.read(_BLOCK))
            raw.seek(0)
            yield from _walk(path, _Bounded(raw))
    except ImagesError:
        raise
    except OSError as error:
        raise ImagesError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # hostile headers make tarfile raise whatever it likes
        raise ImagesError(
            f"{path} is not a readable tar file: {error}. Repair it, or leave it out."
        ) from error


def _walk(path: Path, file: "_Bounded") -> Iterator[Member]:
    end, last = 0, None
    with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
        while True:
            try:
                info = tar.next()
            except tarfile.ReadError:
                if last is not None and last.offset_data + last.size > file.size:
                    return  # cut off inside the last file, which says so when it is read
                raise
            if info is None:
                break
            tar.members = []  # a shard may hold more than memory should
            if info.size < 0 or info.offset_data < end:
                raise tarfile.ReadError("a header points backwards")
            end, last = info.offset_data, info
            if not info.isdir():
                # As when it is unpacked: a path from the root counts from where it is unpacked.
                name = info.name.lstrip("/")
                yield Member(name, info.offset_data, info.size, _flaw(info, file.size))
        file.seek(tar.offset)
        if file.read(_BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")


def _flaw(info: tarfile.TarInfo, shard_bytes: int) -> str:
    if not info.isreg() or info.issparse():
        return "no plain file in the shard (a link, a device or a sparse file)"
    if ".." in info.name.split("/"):
        return "its name leads out of the shard (..)"
    if info.offset_data + info.size > shard_bytes:
        return "the shard is cut off inside this file, and what came after it is missing"
    return ""


def _refuse_compressed(path: Path, start: bytes) -> None:
    """By the marks of compressed files, unless it is a member's name that looks like one."""
    found = next((kind for kind, mark in _COMPRESSED.items() if mark.match(start)), None)
    if found is not None and not _is_header(start):
        raise ImagesError(
            f"{path} is compressed ({found}), which leaves no way to read one image of it. Wanted "
            "a plain .tar; unpack the compression first (JPEG shrinks no further)."
        )


def _is_header(block: bytes) -> bool:
    """Whether it is a tar header: its sum is right."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Bounded:
    """A file that reads no more than is there, whatever size a header claims."""

    def __init__(self, file: object) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size  # type: ignore[attr-defined]

    def read(self, count: int) -> bytes:
        if count < 0:
            raise tarfile.ReadError("a header claims a negative size")
        here = self.tell()
        return self._file.read(max(0, min(count, self.size - here)))  # type: ignore[attr-defined]

    def seek(self, position: int) -> int:
        if position < 0:
            raise tarfile.ReadError("a header points before the beginning")
        return self._file.seek(position)  # type: ignore[attr-defined]

    def tell(self) -> int:
        return self._file.tell()  # type: ignore[attr-defined]
