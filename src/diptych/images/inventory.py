"""Everything that was looked at: what is used, what is not, and why.

One table for all that show it: the first lines of a run, ``skipped.csv`` and the report.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

from diptych.escaping import readable
from diptych.images.codecs.decode import HOW_TO_READ

_CONTAINERS: Final = {
    **dict.fromkeys((".npy", ".npz", ".parquet"), "give its own path"),
    ".tar": "give its own path, or that of the folder that it lies in",
    **dict.fromkeys((".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst"), "unpack it"),
}
"""By the end of a file's name: what to do so that the images in it are read."""

HIDDEN: Final = "its name begins with a dot"
EXCLUDED: Final = "left out by images.exclude"
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
                "used; images.pages = 'all' makes each page an image."
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
