"""Everything that was looked at: what is used, what is not, and why.

One table for all who tell of it: the first lines of a run, ``skipped.csv`` and the report.
"""

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Final

from diptych.errors import ImagesError
from diptych.escaping import readable
from diptych.images.codecs.decode import EXTENSIONS, HOW_TO_READ
from diptych.images.splits import role_of

_CONTAINERS: Final = {
    **dict.fromkeys((".npy", ".npz", ".parquet"), "give its own path"),
    ".tar": "give its own path, or that of the folder that it lies in",
    **dict.fromkeys((".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst"), "unpack it"),
}
"""By the end of a file's name: what to do so that the images in it are read."""

HIDDEN: Final = "its name begins with a dot"
_MOST_SENTENCES: Final = 12


@dataclass(frozen=True)
class Skipped:
    """What cannot be used, and why.

    Attributes:
        name: of an image, a file or a folder; of several of a kind, one of them.
        reason: in a few words.
        part: the part of the data that it lies in, as its folder is called; empty where there are
            no parts, or it lies in none.
        count: how many of a kind there are.
    """

    name: str
    reason: str
    part: str = ""
    count: int = 1


@dataclass
class Tally:
    """What is counted by kind, with one of each kind as an example."""

    kinds: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def add(self, name: str, reason: str, part: str = "", count: int = 1) -> None:
        """Counts one more; the example is the first by name, whatever the order of the walk."""
        first, before = self.kinds.get((part, reason), (name, 0))
        self.kinds[part, reason] = min(first, name), before + count

    def rows(self) -> Iterator[Skipped]:
        """One row for each kind, in the order of parts and reasons."""
        for (part, reason), (name, count) in sorted(self.kinds.items()):
            yield Skipped(name, reason, part, count)


@dataclass(frozen=True)
class Inventory:
    """What was looked at, and what became of it.

    Attributes:
        used: parts by name and how many images of each are used.
        unreadable: the images that cannot be decoded.
        left_out: whatever else was found and is not used; of what may be very many, one for each
            kind.
        remarks: sentences on what was found: classes that one part lacks, and the like.
        stacks: files that hold more than one page.
        further_pages: pages in those beyond the first ones, which are not used.
    """

    used: tuple[tuple[str, int], ...]
    unreadable: tuple[Skipped, ...] = ()
    left_out: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()
    stacks: int = 0
    further_pages: int = 0

    def rows(self) -> Iterator[Skipped]:
        """The table: a row for each unreadable image and each kind of what else is not used."""
        yield from self.unreadable
        yield from self.left_out
        if self.further_pages:
            yield Skipped("", "further pages of files that hold several", "", self.further_pages)

    def sentences(self) -> list[str]:
        """The table in a few sentences, the largest kinds first."""
        found = [_of_unreadable(part, some) for part, some in _by_part(self.unreadable)]
        kinds = _by_reason(self.left_out)
        found += [_of_kind(some) for some in kinds[:_MOST_SENTENCES]]
        if len(kinds) > _MOST_SENTENCES:
            more = sum(one.count for some in kinds[_MOST_SENTENCES:] for one in some)
            found.append(f"{more:,} more of {len(kinds) - _MOST_SENTENCES} other kinds left out.")
        if self.further_pages:
            found.append(
                f"{self.stacks:,} files hold {self.further_pages:,} further pages, which are not "
                "used; write each page as a file to use them."
            )
        return [*self.remarks, *found]


def listed(names: Sequence[str], most: int = 5) -> str:
    """Some names as they can be printed, and how many more there are.

    >>> listed(["a", "b", "c", "d"], most=3), listed([])
    ('a, b, c and 1 more', 'none')
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(readable, names[:most])) or "none") + more


def why_no_image(name: str) -> str:
    """Why a file of another name is not taken for an image, and what to do about it."""
    end = PurePath(name).suffix.lower()
    if not end:
        return "a file without an extension"
    how = _CONTAINERS.get(end) or HOW_TO_READ.get(end)
    return f"{end} is no image" if how is None else f"{end} is not read here; {how}"


def _by_part(rows: Sequence[Skipped]) -> list[tuple[str, list[Skipped]]]:
    parts = dict[str, list[Skipped]]()
    for one in rows:
        parts.setdefault(one.part, []).append(one)
    return list(parts.items())


def _by_reason(rows: Sequence[Skipped]) -> list[list[Skipped]]:
    kinds = dict[tuple[str, str], list[Skipped]]()
    for one in rows:
        kinds.setdefault((one.part, one.reason), []).append(one)
    return sorted(kinds.values(), key=lambda some: -sum(one.count for one in some))


def _of_unreadable(part: str, some: list[Skipped]) -> str:
    place = f" of {readable(part)}" if part else ""
    first = f"{readable(some[0].name)} ({readable(some[0].reason)})"
    if len(some) == 1:
        return f"One image{place} cannot be read: {first}."
    return f"{len(some):,} images{place} cannot be read, as {first}."


def _of_kind(some: list[Skipped]) -> str:
    count, first, reason = sum(one.count for one in some), some[0], readable(some[0].reason)
    place = f" in {readable(first.part)}" if first.part else ""
    if count == 1:
        return f"Left out{place}: {readable(first.name)}, {reason}."
    named = f" as {readable(first.name)}," if first.name else ""
    return f"Left out{place}: {count:,},{named} {reason}."


_Place = tuple[int, int]
"""Device and number of a folder, which are the same whatever path leads there."""


@dataclass
class Tree:
    """What lies in a folder and below it; all paths are relative to it.

    Attributes:
        images: of each folder with files that have the name of an image, their names.
        containers: .tar and .parquet files, sorted; not ``metadata.parquet``, which says something
            of the images beside it.
        folders: all folders that were looked into, sorted.
        others: files that are no images, by kind.
        odd: folders and links that were not followed, each with the reason.
        shared: pairs of folders in different parts that are one and the same.
    """

    images: dict[str, list[str]] = field(default_factory=dict)
    containers: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: Tally = field(default_factory=Tally)
    odd: list[Skipped] = field(default_factory=list)
    shared: list[tuple[str, str]] = field(default_factory=list)

    def names_in(self, inside: str = "") -> list[str]:
        """The images in and below a folder, as paths relative to it, sorted."""
        found = list[str]()
        for folder, names in self.images.items():
            if folder == inside:
                found += names
            elif lies_in(folder, inside):
                start = folder[len(inside) + 1 :] if inside else folder
                found += [f"{start}{os.sep}{name}" for name in names]
        return sorted(found)

    def empty_folders(self) -> Iterator[str]:
        """The outermost folders with neither an image nor a container in or below them."""
        full = {""}
        for folder in (*self.images, *map(os.path.dirname, self.containers)):
            while folder not in full:
                full.add(folder)
                folder = os.path.dirname(folder)
        return (one for one in self.folders if one not in full and os.path.dirname(one) in full)


def walk(root: Path) -> Tree:
    """Everything in a folder and below it, links to folders included.

    A folder is looked into once for each part (see ``part_around``), by its own path rather than by
    a link, by the first link in the order of paths where there are only links. A link that leads to
    a folder around itself is not followed.

    Raises:
        ImagesError: the folder cannot be read.
    """
    walker = _Walker(root)
    walker.visit_all()
    tree = walker.tree
    tree.containers.sort()
    tree.folders.sort()
    tree.odd.sort(key=lambda one: one.name)
    tree.shared.sort()
    return tree


def lies_in(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it; everything lies in the whole, which has no name."""
    return not folder or path == folder or path.startswith(folder + os.sep)


@lru_cache(maxsize=1024)
def part_around(path: str) -> str:
    """The outermost folder of a path that is named as a part, as a path; empty without one.

    >>> part_around("archive/train/cats/test"), part_around("cats")
    ('archive/train', '')
    """
    pieces = path.split(os.sep)
    for count, piece in enumerate(pieces, 1):
        if role_of(piece) is not None:
            return os.sep.join(pieces[:count])
    return ""


@dataclass(frozen=True, order=True)
class _Visit:
    """A folder to look into, and the places of the folders around it."""

    path: str
    around: frozenset[_Place] = field(compare=False)


class _Walker:
    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, Tree()
        self._links = list[_Visit]()
        self._seen = dict[tuple[str, _Place], str]()
        self._parts = dict[_Place, str]()  # the first path of a folder, in whatever part

    def visit_all(self) -> None:
        try:
            above = [_place(parent) for parent in self.root.resolve().parents]
            self._visit_below(_Visit("", frozenset(above)))
        except OSError as error:
            raise ImagesError(
                f"{self.root} cannot be read: {error.strerror or error}. Check its rights."
            ) from error
        while self._links:
            self._visit_below(heapq.heappop(self._links))

    def _visit_below(self, first: _Visit) -> None:
        waiting = [first]
        while waiting:
            visit = waiting.pop()
            try:
                place = _place(self.root / visit.path)
                if not self._is_new(visit, place):
                    continue
                inside = _Visit(visit.path, visit.around | {place})
                with os.scandir(self.root / visit.path) as entries:
                    waiting += self._look_through(entries, inside)
            except OSError as error:
                if visit.path == "":
                    raise
                self._leave_out(visit.path, f"cannot be read: {error.strerror or error}")
                continue
            if visit.path:
                self.tree.folders.append(visit.path)

    def _is_new(self, visit: _Visit, place: _Place) -> bool:
        if place in visit.around:
            self._leave_out(visit.path, "a link that leads back to a folder around it")
            return False
        part = part_around(visit.path)
        earlier = self._seen.setdefault((part, place), visit.path)
        if earlier != visit.path:
            self._leave_out(visit.path, f"the same folder as {earlier or '.'}, by a link")
            return False
        elsewhere = self._parts.setdefault(place, visit.path)
        if elsewhere != visit.path:
            self.tree.shared.append((min(elsewhere, visit.path), max(elsewhere, visit.path)))
        return True

    def _look_through(
        self, entries: Iterable["os.DirEntry[str]"], around: _Visit
    ) -> Iterator[_Visit]:
        """Notes the files of a folder; gives back its folders, and keeps linked ones for later."""
        images = list[str]()
        for entry in entries:
            name, is_link = entry.name, entry.is_symlink()
            if name.startswith("."):
                self.tree.others.add(_join(around.path, name), HIDDEN, part_around(around.path))
            elif not _is_folder(entry):
                # Of very many files most are images: they are not looked at any closer.
                if name[name.rfind(".") :].lower() in EXTENSIONS and "." in name:
                    images.append(name)
                else:
                    self._note_other(_join(around.path, name), name, is_link)
            elif is_link:
                heapq.heappush(self._links, _Visit(_join(around.path, name), around.around))
            else:
                yield _Visit(_join(around.path, name), around.around)
        if images:
            self.tree.images[around.path] = images

    def _note_other(self, path: str, name: str, is_link: bool) -> None:
        if is_link and not (self.root / path).exists():
            self._leave_out(path, "broken symbolic link")
        elif name.lower().endswith((".tar", ".parquet")) and name != "metadata.parquet":
            self.tree.containers.append(path)
        else:
            self.tree.others.add(path, why_no_image(name), part_around(os.path.dirname(path)))

    def _leave_out(self, path: str, reason: str) -> None:
        self.tree.odd.append(Skipped(path, reason, part_around(os.path.dirname(path))))


def _join(folder: str, name: str) -> str:
    return f"{folder}{os.sep}{name}" if folder else name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _place(path: Path) -> _Place:
    status = os.stat(path)
    return status.st_dev, status.st_ino
