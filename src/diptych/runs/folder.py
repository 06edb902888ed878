"""What a run folder holds, who may write in it, and whether that can be done."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from diptych.errors import RunFolderError

PATIENCE_SECONDS: Final = 20.0  # in which a process that was told to stop may save its run
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; the names of its files are stable and documented.

    Attributes:
        path: of the folder.

    Raises:
        RunFolderError: it is a URL.
    """

    path: Path

    def __post_init__(self) -> None:
        _require_path(self.path)

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
    def untrained(self) -> Path:
        """The encoder as the run began with it, where that does not follow from the seed."""
        return self.path / "untrained.safetensors"

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
    def features(self) -> Path:
        """Features that were extracted once and are read again; may be deleted at any time."""
        return self.path / "features"

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
    """Sees that files can be written in a folder, or where it will be made; makes nothing.

    Asked before any work is done whose result goes there.

    Raises:
        OSError: names the folder.
        RunFolderError: it is a URL.
    """
    _require_path(folder)
    above = (folder.absolute(), *folder.absolute().parents)
    there = next(one for one in above if os.path.lexists(one))
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


def _require_path(path: Path) -> None:
    """Refuses a URL: as a path it names a folder `s3:` here."""
    scheme = path.parts[0] if path.parts else ""
    if scheme.endswith(":") and len(scheme) > 2:  # not a drive
        url = "/".join((f"{scheme}/", *path.parts[1:]))
        raise RunFolderError(
            f"{url} is a URL; wanted a path on this machine. Of a run, only images and "
            "checkpoint.folder may lie behind one."
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lets no other process of this machine do the same in a folder, which is made, meanwhile.

    The kernel knows of it, not a file: it ends with the process, however that ends. Where a file
    system has no such locks, as most that other machines share, nothing is kept apart.

    Raises:
        RunFolderError: another process is there, and stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                raise RunFolderError(
                    f"another process trains in {folder} now, and two would write the same files. "
                    "Let it end, or choose another --out."
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether a folder is locked now, or cannot be; False if another process has done so."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
