"""Checkpoints in a folder on a disk: written aside, synced, renamed."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
            if final.exists():
                shutil.rmtree(final)
            os.rename(aside, final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # what cannot go now is swept later
            raise
        sync_folder(self.folder)

    @contextmanager
    def local_copy(self, name: str, file: str, most_bytes: int) -> Iterator[Path]:
        """The file itself, whatever its size."""
        yield self.folder / name / file

    def remove(self, name: str) -> None:
        """Renames it, so that no half of it is taken for a checkpoint, and deletes it."""
        aside = self.folder / f"{_ASIDE}{name}"
        os.rename(self.folder / name, aside)
        shutil.rmtree(aside)

    def sweep(self) -> None:
        """Deletes what lies aside."""
        for leftover in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(leftover)


def _write_synced(path: Path, pieces: Sequence[Piece]) -> None:
    with open(path, "xb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
