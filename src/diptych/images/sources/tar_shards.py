"""Tar shards as WebDataset writes them: indexed by their headers, read in place, never extracted.

Headers are hostile until checked: a member is read within the bounds of its shard, and its name is
never used as a path.
"""

import glob
import itertools
import json
import os
import re
import tarfile
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ImagesError, UnreadableImage
from diptych.escaping import readable
from diptych.images.codecs.decode import EXTENSIONS
from diptych.images.collection import CompactNames
from diptych.images.index import file_stamp
from diptych.images.inventory import HIDDEN, Tally, why_no_image
from diptych.images.listing import Listing
from diptych.images.splits import LocatedImages, by_split, choose_splits
from diptych.images.tree import part_around
from diptych.runs.folder import is_url

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


def read_samples(path: Path, others: Tally, key: str | None = None) -> list[Sample]:
    """The samples of a shard that have an image, in the order of their images.

    The files of a sample share the name up to the first dot of its last part. Where that would give
    a sample several images, as ``frame.0001.png`` and ``frame.0002.png``, they share the name up to
    the last dot. Of two members of one name the later counts, as it does when a shard is unpacked.

    Args:
        path: of the shard.
        others: takes up what is not used.
        key: what follows the first dot in the names of images; any ending of images by default.

    Raises:
        ImagesError: the shard is missing, compressed, damaged, or has two images for one sample.
    """
    images, labels = dict[str, Member](), dict[str, dict[str, Member]]()
    for member in _members(path):
        stem, end = os.path.splitext(member.name)
        if os.path.basename(member.name).startswith("."):
            others.add(member.name, HIDDEN)
        elif _is_image(member.name, key):
            if member.name in images:
                others.add(member.name, "a later member of the shard has the same name")
            images[member.name] = member
        elif end in _LABELS:
            labels.setdefault(stem, {})[end[1:]] = member
        elif key is not None and end.lower() in EXTENSIONS:
            others.add(member.name, f"images.column takes the .{key} of a sample")
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


def _is_image(name: str, key: str | None) -> bool:
    if key is None:
        return os.path.splitext(name)[1].lower() in EXTENSIONS
    return name.rpartition("/")[2].partition(".")[2].lower() == key.lower()


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
                "Wanted one; images.column takes one of several by the end of its name, as "
                f"{os.path.splitext(member.name)[1][1:]}."
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
    # `r:`, without compression: by default tarfile unpacks, and offsets are of what was unpacked.
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


_MOST_OPEN: Final = 64  # shards
_MOST_NAMES: Final = 100_000  # that braces may stand for
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")


def is_shard_pattern(path: str) -> bool:
    """Whether it stands for several shards here: braces or wildcards, and .tar at the end."""
    return path.endswith(".tar") and any(mark in path for mark in "{*?[") and not is_url(path)


def find_shards(path: str) -> list[Path]:
    """The shards that a pattern stands for, sorted.

    Raises:
        ImagesError: there are none, or one that braces name is missing.
    """
    found = set[str]()
    for name in expand_braces(path):
        matches = glob.glob(name) if glob.has_magic(name) else [name]
        missing = [match for match in matches if not os.path.isfile(match)]
        if missing or not matches:
            raise ImagesError(f"{path}: there is no shard {(missing or [name])[0]}.")
        found.update(matches)
    return [Path(name) for name in sorted(found)]


def expand_braces(pattern: str) -> list[str]:
    """The names that braces stand for: ``{000..012}`` counts, ``{a,b}`` lists.

    >>> expand_braces("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    parts = [[text] for text in _BRACES.split(pattern)]
    parts[1::2] = [_choices(text, pattern) for (text,) in parts[1::2]]
    count = 1
    for part in parts:
        count *= len(part)
    if count > _MOST_NAMES:
        raise ImagesError(f"{pattern} stands for {count:,} names; wanted {_MOST_NAMES:,} at most.")
    return ["".join(choice) for choice in itertools.product(*parts)]


def _choices(text: str, pattern: str) -> list[str]:
    counted = _RANGE.fullmatch(text)
    if counted is None:
        return text.split(",")
    first, last = int(counted[1]), int(counted[2])
    if not 0 <= last - first < _MOST_NAMES:
        raise ImagesError(
            f"{pattern}: {{{text}}} must count upwards over at most {_MOST_NAMES:,} names."
        )
    return [str(number).zfill(len(counted[1])) for number in range(first, last + 1)]


class Shards:
    """Files kept open, a bounded number of them, read at any place by any thread."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.stamps = [_stamp(os.stat(path)) for path in paths]
        self.changed = [file_stamp(path)[1] for path in paths]
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()  # shard: descriptor, last used last
        self._users: dict[int, int] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """The bytes at a place of a shard.

        Raises:
            UnreadableImage: the shard is gone, has changed, or ends before.
        """
        try:
            with self._descriptor(shard) as descriptor:
                # pread: threads share a descriptor, and a seek by one would move the place of all.
                data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise UnreadableImage(f"{self.paths[shard]}: {error.strerror or error}") from error
        if len(data) != size:
            raise UnreadableImage(f"{self.paths[shard]} is cut off")
        return data

    @contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        with self._lock:
            descriptor = self._open.pop(shard, None)  # put back at the end: the last one used
            if descriptor is None:
                descriptor = self._opened(shard)
            self._open[shard] = descriptor
            self._users[shard] = self._users.get(shard, 0) + 1
            self._close_some()
        try:
            yield descriptor
        finally:
            with self._lock:
                self._users[shard] -= 1

    def _opened(self, shard: int) -> int:
        descriptor = os.open(self.paths[shard], os.O_RDONLY)
        # Of what was opened, not of the name, under which another file may have come by now.
        if _stamp(os.fstat(descriptor)) != self.stamps[shard]:
            os.close(descriptor)
            raise UnreadableImage(f"{self.paths[shard]} has changed since it was listed")
        return descriptor

    def _close_some(self) -> None:
        for shard in list(self._open):
            if len(self._open) <= _MOST_OPEN:
                return
            # A descriptor that a thread reads from stays: its number could become another file's.
            if not self._users.get(shard):
                os.close(self._open.pop(shard))

    def __del__(self) -> None:
        # getattr: it also runs after a constructor that raised.
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


_NO_LABEL: Final = -1
_LABEL_KEYS: Final = ("label", "class", "cls")
_LARGEST_LABEL: Final = 2**20  # bytes

Label = int | str


def find_in_tar(
    paths: Sequence[Path],
    origin: str,
    key: str | None = None,
    names: Sequence[str] | None = None,
) -> LocatedImages:
    """The images in shards whose names, or those of their folders, say of which part they are.

    Args:
        paths: of the shards, sorted.
        origin: what the user gave, named in errors.
        key: which file of a sample is its image; see ``read_samples``.
        names: of the shards, with folders, where these are not those of the paths.

    Raises:
        ImagesError: a shard cannot be read, there is no image, or two parts are named alike.
    """
    root, tally = os.path.commonpath([path.parent for path in paths]), Tally()
    names = names or [os.path.relpath(path, root) for path in paths]
    place, parts = dict(zip(names, paths, strict=True)), by_split(names)
    chosen = choose_splits(parts, origin)

    def listed(name: str) -> Listing:
        return list_tar([place[one] for one in parts[name]], origin, tally, name, key)

    train, held_out = listed(chosen.train), [listed(name) for name in chosen.held_out]
    for name in chosen.unused:
        for one in parts[name]:
            tally.add(one, "a shard of no part")
    return LocatedImages(
        train,
        held_out,
        train_part=train.part,
        left_out=tuple(tally.rows()),
        remarks=(*chosen.remarks, *_on_folders_inside([train, *held_out])),
    )


def list_tar(
    paths: Sequence[Path], origin: str, others: Tally, part: str = "", key: str | None = None
) -> Listing:
    """The images in shards, shard after shard, each in the order of its shard.

    An image's name is its shard's and, after a slash, its own. The label of a sample is the number
    in its ``.cls``, or the number or text under "label", "class" or "cls" in its ``.json``; -1 is
    no label.

    Args:
        paths: of the shards, sorted.
        origin: what the user gave, named in errors.
        others: takes up what is not used.
        part: what the part of the data is called that they are.
        key: which file of a sample is its image; see ``read_samples``.

    Raises:
        ImagesError: a shard cannot be read, or none has an image.
    """
    for path in paths:
        if not path.is_file():
            raise ImagesError(f"{origin}: {path} is not a file.")
    shards = Shards(list(paths))
    places, flaws, labels = _Places(), dict[int, str](), list[Label | None]()
    names = CompactNames.of(_collect(shards, places, flaws, labels, others, key))
    if not names:
        wanted = ".jpg, .png or the like" if key is None else f".{key} (images.column)"
        raise ImagesError(f"no images in {origin}. Wanted members named {wanted}.")
    numbers, classes = _number(labels)
    return Listing(
        origin=origin,
        names=names,
        read=_reader(shards, places, flaws),
        labels=numbers,
        classes=classes,
        part=part,
        stamp=lambda index: (places.sizes[index], shards.changed[places.shards[index]]),
    )


class _Places:
    """Where each image lies: its shard, the offset there, its size in bytes."""

    def __init__(self) -> None:
        self.shards, self.offsets, self.sizes = array("q"), array("q"), array("q")

    def append(self, shard: int, member: Member) -> None:
        self.shards.append(shard)
        self.offsets.append(member.offset)
        self.sizes.append(member.size)


def _collect(
    shards: Shards,
    places: _Places,
    flaws: dict[int, str],
    labels: list[Label | None],
    others: Tally,
    key: str | None,
) -> Iterator[str]:
    """The names of the images; fills in the rest on the way."""
    root = os.path.commonpath([path.parent for path in shards.paths])
    for shard, path in enumerate(shards.paths):
        inside = os.path.relpath(path, root)
        for sample in read_samples(path, others, key):
            if sample.image.flaw:
                flaws[len(labels)] = sample.image.flaw
            places.append(shard, sample.image)
            labels.append(_label(sample, shard, shards))
            yield f"{inside}/{sample.image.name}"


def _reader(shards: Shards, places: _Places, flaws: dict[int, str]) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        if index in flaws:
            raise UnreadableImage(flaws[index])
        return shards.read(places.shards[index], places.offsets[index], places.sizes[index])

    return read


def _label(sample: Sample, shard: int, shards: Shards) -> Label | None:
    """The label that a sample's own files give it, or None."""
    for kind, parse in (("cls", int), ("json", _label_in_json)):
        member = sample.labels.get(kind)
        if member is None or member.flaw or member.size > _LARGEST_LABEL:
            continue
        try:
            found: Label | None = parse(shards.read(shard, member.offset, member.size).decode())
        except (ValueError, RecursionError, UnreadableImage):
            continue
        if found is not None:
            return found
    return None


def _label_in_json(text: str) -> Label | None:
    document: Any = json.loads(text)
    if not isinstance(document, dict):
        return None
    found = (document.get(key) for key in _LABEL_KEYS)
    # type, not isinstance: to Python true and false are integers.
    label = next((one for one in found if type(one) in (int, str)), None)
    # JSON may hold half of a pair of surrogates, which no file and no terminal takes.
    return label.encode(errors="backslashreplace").decode() if isinstance(label, str) else label


def _number(labels: list[Label | None]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Positions among the sorted classes: numbers by size, then text; -1 where there is none."""
    present = set(labels) - {None, _NO_LABEL, ""}
    if not present:
        return None, ()
    ordered = sorted(present, key=lambda one: (isinstance(one, str), one))
    position = {label: index for index, label in enumerate(ordered)}
    numbers = [position.get(one, -1) for one in labels]
    return np.array(numbers, dtype=np.int64), tuple(map(str, ordered))


def _on_folders_inside(listings: Sequence[Listing]) -> list[str]:
    """A remark that folders inside shards are taken neither as parts nor as classes."""
    inside = re.compile(r"\.tar/(?:\./)*(.*)/", re.IGNORECASE | re.DOTALL)
    matches = (inside.search(name) for one in listings for name in one.names)
    folders = {found[1] for found in matches if found is not None}
    parts = sorted({part_around(folder) for folder in folders} - {""})
    if parts:
        return [
            f"Folders named as parts lie inside the shards, as {readable(parts[0])}: they are not "
            "taken as parts; put each part into shards of its own, named for it."
        ]
    if len(folders) < 2 or any(one.labels is not None for one in listings):
        return []
    return [
        f"Folders inside the shards, as {readable(min(folders))}, are not taken as classes; write "
        "labels into .cls or .json files beside the images, or unpack the shards."
    ]
