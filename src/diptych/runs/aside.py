"""Files that appear complete or not at all, where several processes may write the same one."""

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.runs.folder import naming, sync_folder


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives another path to write to; it is synced and takes its name when the block ends.

    Each writer has a path of its own, so two of the same file do not mix their bytes; the last one
    stands. What a killed writer left beside is removed once the file is there.

    Args:
        path: of the file, in a folder that is made where it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.aside")
    try:
        with naming(path, aside):
            yield aside
            _take_name(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.aside"):
        leftover.unlink(missing_ok=True)
    sync_folder(path.parent)


def _take_name(aside: Path, path: Path) -> None:
    try:
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except FileNotFoundError:
        if not path.exists():  # else another writer of the same file was faster, and tidied up
            raise
