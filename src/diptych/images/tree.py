"""A walk through a folder that accounts for everything it meets."""

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Final

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.decode import extensions_of
from diptych.images.inventory import EXCLUDED, HIDDEN, Skipped, Tally, why_no_image
from diptych.images.splits import role_of

_NO_SETTINGS: Final = ImagesConfig()

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


def walk(root: Path, config: ImagesConfig = _NO_SETTINGS) -> Tree:
    """Everything in a folder and below it, links to folders included.

    What ``images.exclude`` names is not looked into.

    A folder is looked into once for each part (see ``part_around``), by its own path rather than by
    a link, by the first link in the order of paths where there are only links. A link that leads to
    a folder around itself is not followed.

    Raises:
        ImagesError: the folder cannot be read.
    """
    walker = _Walker(root, config)
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


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern of ``images.exclude`` fits a path from the folder that was given.

    It may fit the whole path, or the name at its end.

    >>> [matches(path, ["*_mask.*", "raw/2019*"]) for path in ("a/1_mask.png", "raw/2019-05", "a")]
    [True, True, False]
    """
    name = os.path.basename(path)
    wanted = (pattern.rstrip("/") for pattern in patterns)
    return any(fnmatchcase(path, one) or fnmatchcase(name, one) for one in wanted)


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
    def __init__(self, root: Path, config: ImagesConfig) -> None:
        self.root, self.tree, self.exclude = root, Tree(), config.exclude
        self.extensions = extensions_of(config)
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
                    # A generator: `+=` runs it to its end here, while the folder is still open.
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
            # Answered by scandir from the folder itself: no stat for each of a million files.
            name, is_link = entry.name, entry.is_symlink()
            if name.startswith("."):
                self.tree.others.add(_join(around.path, name), HIDDEN, part_around(around.path))
            elif self.exclude and matches(_join(around.path, name), self.exclude):
                self.tree.others.add(_join(around.path, name), EXCLUDED, part_around(around.path))
            elif not _is_folder(entry):
                # Of very many files most are images: they are not looked at any closer.
                if name[name.rfind(".") :].lower() in self.extensions and "." in name:
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
        if is_link and not os.path.exists(self.root / path):  # False where it may not be asked
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
