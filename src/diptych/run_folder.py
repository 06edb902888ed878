"""What a run folder holds, and how its files are written: aside, synced, renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; the names of its files are stable and documented.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config; alone it repeats the run."""
        return self.path / "config.toml"

    @property
    def record(self) -> Path:
        """Who the run is: its identity, which its checkpoints repeat; see ``RunRecord``."""
        return self.path / "run.json"

    @property
    def trained_on(self) -> Path:
        """Checksums of the images that it learned from."""
        return self.path / "trained_on.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same metrics as TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def traces(self) -> Path:
        """What each process did in a few steps, as Chrome traces, where that was asked for."""
        return self.path / "traces"

    @property
    def checkpoints(self) -> Path:
        """One folder for each checkpoint that is kept."""
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        """The trained encoder alone, written when training ends."""
        return self.path / "encoder.safetensors"

    @property
    def head(self) -> Path:
        """The projection head alone, written when training ends."""
        return self.path / "head.safetensors"

    @property
    def evaluation(self) -> Path:
        """Accuracies as fractions."""
        return self.path / "evaluation.json"

    @property
    def supervised(self) -> Path:
        """The same network trained on labels, once an evaluation asked for it."""
        return self.path / "supervised.safetensors"

    @property
    def detection(self) -> Path:
        """How well detectors on the encoder find objects, once that was measured."""
        return self.path / "detection.json"

    @property
    def detection_cells(self) -> Path:
        """What each of these detectors found, one file each."""
        return self.path / "detection"

    @property
    def leak(self) -> Path:
        """What batch statistics give away, once that was measured."""
        return self.path / "leak.json"

    @property
    def skipped(self) -> Path:
        """What was found and is not used, with the reason for each."""
        return self.path / "skipped.csv"

    @property
    def report(self) -> Path:
        """The report: one page that opens offline."""
        return self.path / "report.html"


def require_writable(folder: Path) -> None:
    """Makes a folder, and sees that files can be written there.

    Raises:
        OSError: names the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


@contextmanager
def naming(path: Path, *instead: Path) -> Iterator[None]:
    """Lets errors of the operating system name what a user knows.

    Args:
        path: named where an error names nothing, as when a disk is full.
        instead: files beside it, which are written first, and not named.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) in map(str, instead):
            error.filename = str(path)
        error.filename2 = None
        raise


def write_aside(path: Path, data: bytes) -> None:
    """Replaces a file so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        OSError: it could not be written; the old one is there still, and nothing beside it.
    """
    aside = path.with_name(f".{path.name}.aside")
    try:
        with naming(path, aside):
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames and new names in a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
