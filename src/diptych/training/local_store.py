"""Checkpoints in a folder on a disk: written aside, synced, renamed."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from diptych.run_folder import sync_folder
from diptych.training.tensor_file import Piece

_ASIDE: Final = ".writing-"


@dataclass(frozen=True)
class LocalStore:
    """A folder of checkpoints on a disk; see ``Store``.

    Attributes:
        folder: that holds them.
    """

    folder: Path

    def names(self) -> list[str]:
        """All names but those of checkpoints under way."""
        if not self.folder.is_dir():
            return []
        return [name for name in os.listdir(self.folder) if not name.startswith(".")]

    def write(self, name: str, files: Mapping[str, Sequence[Piece]]) -> None:
        """Writes aside, syncs, and renames."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside, final = self.folder / f"{_ASIDE}{name}", self.folder / name
        try:
            aside.mkdir()
            for file, pieces in files.items():
                _write_synced(aside / file, pieces)
            sync_folder(aside)
            _delete(final)
            os.rename(aside, final)
        except BaseException:
            with suppress(OSError):
                _delete(aside)  # what cannot go now is swept later
            raise
        sync_folder(self.folder)

    @contextmanager
    def local_copy(self, name: str, file: str, most_bytes: int) -> Iterator[Path]:
        """The file itself, whatever its size."""
        path = self.folder / name / file
        if not path.is_file():  # nor what never ends when it is read, as a pipe
            raise FileNotFoundError(f"{path} is missing")
        yield path

    def set_aside(self, name: str) -> None:
        """Renames it."""
        numbers = (f"unknown-{number}-{name}" for number in count(1))
        free = next(one for one in numbers if not os.path.lexists(self.folder / one))
        os.rename(self.folder / name, self.folder / free)

    def remove(self, name: str) -> None:
        """Renames it, so that no half of it is taken for a checkpoint, and deletes it."""
        aside = self.folder / f"{_ASIDE}{name}"
        os.rename(self.folder / name, aside)
        _delete(aside)

    def sweep(self) -> None:
        """Deletes what lies aside."""
        for leftover in self.folder.glob(f"{_ASIDE}*"):
            _delete(leftover)


def _delete(path: Path) -> None:
    """Deletes a folder if there is one; of a link or a file, the name alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _write_synced(path: Path, pieces: Sequence[Piece]) -> None:
    with open(path, "xb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
