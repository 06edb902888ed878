"""What a command may replace of tables and pages that are there: those of its own kind alone."""

import csv
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from diptych.errors import ConfigError

SKIPPED_COLUMNS: Final = ("name", "reason")
"""Of a list of images that a command could not read."""

_VECTORS: Final = (".npy", ".parquet")  # of files that a list of skipped images may belong to
_MOST_BYTES: Final = 2**16  # of the first line, or of the head of a page


def require_own_table(out: Path, columns: Sequence[str]) -> None:
    """Sees that a table can be written and that no other file is lost or changes its meaning.

    Asked before any work is done whose result goes there.

    Args:
        out: the table, a file that ends in .csv.
        columns: that it begins with, by which an earlier one is known.

    Raises:
        ConfigError: it belongs to vectors, or something else is there.
    """
    vectors = out.with_suffix(".npy")
    if vectors.exists():
        raise ConfigError(
            f"-o {out} would be read as the table of names of {vectors.name}, which is beside it. "
            "Choose another name."
        )
    if out.exists() and not _begins_with(out, columns):
        raise ConfigError(
            f"-o {out} is there and is no table of this command, which begins with the columns "
            f"{', '.join(columns)}. Choose another name, or move it away."
        )


def require_own_page(out: Path, title: str) -> None:
    """Sees that no page of something else is lost.

    Args:
        out: the page.
        title: by which an earlier one is known.

    Raises:
        ConfigError: something else is there.
    """
    if out.exists() and f"<title>{title}</title>".encode() not in _head(out):
        raise ConfigError(
            f"{out} is there and is no page of this command. Choose another name for -o, or move "
            "the page away."
        )


def skipped_list(out: Path) -> Path:
    """Where the images are listed that a command could not read for a file."""
    return out.with_name(f"{out.stem}.skipped.csv")


def require_own_list(out: Path) -> None:
    """Sees that the list of skipped images beside a file is of no other file.

    Args:
        out: the file; what belongs to it is known to be the command's own.

    Raises:
        ConfigError: it is another's, or something else.
    """
    file = skipped_list(out)
    if not file.exists():
        return
    # Files of one name with different ends share the name of their lists. One that is there already
    # has its own, unless it is a table, beside which vectors may have been written later.
    ends = _VECTORS if out.suffix.lower() == ".npy" else (*_VECTORS, ".csv")
    others = [
        other
        for end in ends
        if (other := out.with_suffix(end)) != out and other.exists()
        if out.suffix.lower() == ".csv" or not out.exists()
    ]
    if others or not _begins_with(file, SKIPPED_COLUMNS):
        whose = f"it may belong to {others[0].name}" if others else "it is no list of this command"
        raise ConfigError(
            f"{file} is there, where {out.name} has its list of images that cannot be read, and "
            f"{whose}. Choose another name for -o, or move the list away."
        )


def require_no_input(out: Path, inputs: Iterable[str | Path | None]) -> None:
    """Sees that a command does not replace what it reads.

    Raises:
        ConfigError: the file to write is one of the inputs.
    """
    for one in inputs:
        # os.path, which asks of any text whether it is a file, as of `hf-hub:NAME`.
        if one is not None and out.exists() and os.path.exists(one) and os.path.samefile(out, one):
            raise ConfigError(f"-o {out} is what this command reads. Choose another name.")


def _begins_with(file: Path, columns: Sequence[str]) -> bool:
    """Whether a table begins with these columns; an empty file has nothing to lose."""
    try:
        lines = _head(file).decode(errors="replace").splitlines(keepends=True)
        found = next(iter(csv.reader(itertools.islice(lines, 1))), [])
    except csv.Error:
        return False
    return not lines or found[: len(columns)] == list(columns)


def _head(file: Path) -> bytes:
    if not file.is_file():
        return b"-"  # a folder is nothing of a command's own
    with open(file, "rb") as opened:
        return opened.read(_MOST_BYTES)
