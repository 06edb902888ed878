"""What a tar shard holds and where: its headers are read, nothing is ever extracted."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from diptych.errors import ImagesError
from diptych.images.decode import EXTENSIONS

_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
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
    """The files of one sample: those that share the name up to the first dot of their last part."""

    image: Member | None = None
    labels: dict[str, Member] = field(default_factory=dict)


def read_samples(path: Path) -> list[Sample]:
    """The samples of a shard that have an image, in the order of their first files.

    Raises:
        ImagesError: the shard is missing, compressed, damaged, or has two images for one sample.
    """
    samples: dict[str, Sample] = {}
    for member in _members(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        kind = os.path.splitext(base)[1].lower()
        if stem == "" or not (kind in EXTENSIONS or extension in ("cls", "json")):
            continue
        sample = samples.setdefault(f"{folder}/{stem}", Sample())
        if kind not in EXTENSIONS:
            sample.labels[extension] = member
            continue
        if sample.image is not None:
            raise ImagesError(
                f"{path} has two images for the sample {folder + '/' if folder else ''}{stem}: "
                f"{sample.image.name} and {member.name}. Wanted one, and no name up to the first "
                "dot twice in a shard; write the shard anew."
            )
        sample.image = member
    return [sample for sample in samples.values() if sample.image is not None]


def _members(path: Path) -> Iterator[Member]:
    """The files of a shard in their order; a file that is cut off is the last."""
    try:
        with open(path, "rb") as raw:
            _refuse_compressed(path, raw.read(2))
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
                yield Member(info.name, info.offset_data, info.size, _flaw(info, file.size))
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
    if start in _COMPRESSED:
        raise ImagesError(
            f"{path} is compressed ({_COMPRESSED[start]}), which leaves no way to read one image "
            "of it. Wanted a plain .tar; unpack the compression first (JPEG shrinks no further)."
        )


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
