"""Images that show the same thing: found by folder, file name or table; partners drawn among them.

Two views of one image are one way to say "the same"; two images of one product, patient or burst
are another. The pretext task is a part of the data, not of the network.
"""

import csv
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError
from diptych.escaping import unescaped

PARTNER_STREAM: Final = 0x50415254  # "PART": keeps these draws apart from any other use of the seed
_FORMS: Final = "'folder', 'folder:LEVEL', 'name:PATTERN' or 'FILE.csv:COLUMN'"


@dataclass(frozen=True)
class Groups:
    """Which images of a set belong together.

    Attributes:
        numbers: (images,), int64, the group of each, counted from 0.
        order: (images,), all images, group after group.
        places: (images,), where each image stands in ``order``.
        starts: (groups + 1,), where each group begins in ``order``, and the end.
    """

    numbers: NDArray[np.int64]
    order: NDArray[np.int64]
    places: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, numbers: NDArray[np.int64]) -> "Groups":
        """Groups by the number of each image, (images,)."""
        order = np.argsort(numbers, kind="stable").astype(np.int64)
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        starts = np.searchsorted(numbers[order], np.arange(numbers.max() + 2))
        return cls(numbers, order, places, starts.astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def fingerprint(self) -> str:
        """A hash of who belongs together, to notice that a run resumes with other groups."""
        return hashlib.sha256(self.numbers.tobytes()).hexdigest()

    def partners(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, views: int
    ) -> NDArray[np.int64]:
        """Which image each view of each row shows: a function of seed, epoch, image and view.

        Args:
            indices: (batch,), the images of a batch.
            seed: of the run.
            epoch: counted from 0.
            views: of each row, 2 or more.

        Returns:
            (views, batch): first the images themselves, then others of their groups, every one
            equally likely; the image itself where it is alone in its group.
        """
        starts = self.starts[self.numbers[indices]]
        sizes = self.starts[self.numbers[indices] + 1] - starts
        shown = [indices]
        for view in range(1, views):
            uniform = _uniforms(len(self.numbers), seed, epoch, view)[indices]
            steps = np.where(sizes > 1, 1 + np.floor(uniform * (sizes - 1)), 0).astype(np.int64)
            shown.append(self.order[starts + (self.places[indices] - starts + steps) % sizes])
        return np.stack(shown)


def find_groups(names: Sequence[str], group_by: str) -> Groups:
    """Finds which images belong together.

    Args:
        names: of the images, as paths relative to their folder.
        group_by: ``folder``, ``folder:LEVEL`` (counted from 1), ``name:PATTERN`` (the first
            parenthesis of a regular expression, searched in the whole name) or
            ``FILE.csv:COLUMN`` (a table with a column ``name``). An image whose cell is blank, or
            for which the parenthesis finds nothing, is a group of its own.

    Raises:
        ConfigError: the form is not known, an image has no group by it, or all have the same.
    """
    kind, _, detail = group_by.partition(":")
    if kind == "folder":
        keys = [_folder(name, detail) for name in names]
    elif kind == "name" and detail:
        keys = _matches(names, detail)
    elif group_by.rpartition(":")[0].lower().endswith(".csv"):
        path, _, column = group_by.rpartition(":")
        keys = _looked_up(names, Path(path).expanduser(), column)
    else:
        raise ConfigError(f"images.group_by must be {_FORMS}; got {group_by!r}.")
    numbers: dict[str, int] = {}
    # By its place: an image of which nothing is known is a group of its own.
    own = (key or f"\0{place}" for place, key in enumerate(keys))
    found = np.array([numbers.setdefault(key, len(numbers)) for key in own], dtype=np.int64)
    if len(numbers) < 2:
        raise ConfigError(
            f"images.group_by = {group_by!r} puts all {len(names)} images into one group, which "
            "leaves no negatives; wanted two groups or more."
        )
    return Groups.of(found)


@lru_cache(maxsize=16)
def _uniforms(count: int, seed: int, epoch: int, view: int) -> NDArray[np.float64]:
    key = np.array([seed, PARTNER_STREAM], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, view, epoch], dtype=np.uint64))
    return np.random.Generator(bits).random(count)


def _folder(name: str, level: str) -> str:
    folders = name.split(os.sep)[:-1]
    if not level:
        return os.sep.join(folders)
    if not level.isdigit() or not 1 <= int(level) <= len(folders):
        raise ConfigError(
            f"images.group_by = 'folder:{level}' needs a level between 1 and {len(folders)} for "
            f"{name!r}, which lies {len(folders)} folders deep."
        )
    return os.sep.join(folders[: int(level)])


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"images.group_by: {pattern!r} is no regular expression: {error}."
        ) from error
    if expression.groups < 1:
        raise ConfigError(
            f"images.group_by: {pattern!r} needs a parenthesis around the group's name."
        )
    found = [expression.search(name) for name in names]
    missing = [name for name, match in zip(names, found, strict=True) if match is None]
    if missing:
        raise ConfigError(
            f"images.group_by: {pattern!r} is not found in {len(missing)} of {len(names)} names, "
            f"as {missing[0]!r}."
        )
    return [match[1] or "" for match in found if match is not None]


def _looked_up(names: Sequence[str], path: Path, column: str) -> list[str]:
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            present = reader.fieldnames or []
            if "name" not in present or column not in present:
                raise ConfigError(
                    f"images.group_by: {path} needs the columns 'name' and {column!r}; it has "
                    f"{', '.join(present) or 'none'}."
                )
            table = dict[str, str]()
            for row in reader:
                name, key = unescaped(row["name"] or ""), (row[column] or "").strip()
                if table.setdefault(name, key) != key:
                    raise ConfigError(
                        f"images.group_by: {path} has two rows for {name!r}, with {table[name]!r} "
                        f"and {key!r} as {column}. Wanted one; a name is a path from the folder of "
                        "the images, or of their part (train, test, ...)."
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"images.group_by: cannot read {path}: {error}") from error
    missing = [name for name in names if name not in table]
    if missing:
        raise ConfigError(
            f"images.group_by: {path} has no row for {len(missing)} of {len(names)} images, as "
            f"{missing[0]!r}. A name is a path from the folder of the images, or of their part "
            "(train, test, ...)."
        )
    return [table[name] for name in names]
