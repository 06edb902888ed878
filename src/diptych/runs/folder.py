"""A run folder: what it holds, who may write in it, and the record that says which run it is.

A run's identity is made once, when it begins, and its checkpoints repeat it. It stands in
``run.json`` beside the config, not in it: the same settings begin as many runs as one likes, and
each is another.
"""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from diptych.errors import ConfigError, RunFolderError
from diptych.runs.atomic import atomic_write

PATIENCE_SECONDS: Final = 20.0  # in which a process that was asked to stop may save its run
_POLL_SECONDS: Final = 0.2


def is_url(path: str) -> bool:
    """Whether it is a URL, as ``https://...`` or ``s3://...``."""
    return "://" in path


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
        """Which run it is: its identity, which its checkpoints repeat; see ``RunRecord``."""
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
    def start(self) -> Path:
        """The encoder that the run began with, where that holds weights from elsewhere."""
        return self.path / "start.safetensors"

    @property
    def last(self) -> Path:
        """The encoder of the last step, where the one that is kept was chosen among several."""
        return self.path / "last.safetensors"

    @property
    def candidates(self) -> Path:
        """Which encoders were compared at the end of training, and which one is kept."""
        return self.path / "candidates.json"

    @property
    def head(self) -> Path:
        """The projection head alone, written when training ends."""
        return self.path / "head.safetensors"

    @property
    def evaluation(self) -> Path:
        """Accuracies as fractions."""
        return self.path / "evaluation.json"

    @property
    def predictions(self) -> Path:
        """What the linear classifier on the trained encoder answers on each test image."""
        return self.path / "predictions.csv"

    @property
    def supervised(self) -> Path:
        """The same network trained on labels, once an evaluation asked for it."""
        return self.path / "supervised.safetensors"

    @property
    def finetune_cells(self) -> Path:
        """What each classifier that was trained by SGD answers; may be deleted at any time."""
        return self.path / "finetune"

    @property
    def features(self) -> Path:
        """Features that were extracted once and are read again; may be deleted at any time."""
        return self.path / "features"

    @property
    def vectors(self) -> Path:
        """The vectors of its images, once a gallery showed them; that keeps its own beside it."""
        return self.path / "vectors"

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
        # Tried and not asked: os.access can be wrong on network file systems.
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


def require_replaceable(folder: Path, names: Collection[str]) -> None:
    """Sees that a folder can be written anew as a whole, and that nothing else is lost with it.

    Asked before any work is done whose result goes there.

    Args:
        folder: that is written, and takes the place of what has its name.
        names: of files that are ours to replace.

    Raises:
        ConfigError: it holds something else, or cannot be replaced.
        OSError: names the folder, where nothing can be written.
    """
    _require_path(folder)
    why = ""
    if os.path.lexists(folder):
        if not folder.is_dir():
            why = "is a file"
        elif os.path.ismount(folder) or folder.resolve() == Path.cwd():
            why = "is a mount point, or the folder that you are in, and cannot be renamed"
        elif others := sorted(one.name for one in folder.iterdir() if one.name not in names):
            why = f"holds something else too, as {others[0]}"
    if why:
        raise ConfigError(
            f"{folder} {why}, so it is not replaced. Give the name of a new folder by -o."
        )
    require_writable(folder.absolute().parent)


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
        # Monotonic: a clock that is set meanwhile must not end the wait, or draw it out.
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
        # This lets go of the lock; so the descriptor stays open for as long as the block runs.
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether a folder is locked now, or cannot be; False if another process has done so."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no such locks here: better unguarded than unusable
    return True


_FORMAT: Final = 1
_MOST_BYTES: Final = 2**20


@dataclass(frozen=True)
class Identity:
    """What identifies a run.

    Attributes:
        id: 32 hexadecimal digits, drawn at random when the run begins.
        begun_as: the path of its folder then, for messages.
    """

    id: str
    begun_as: str

    def __str__(self) -> str:
        return f"{self.id[:8]} (begun as {self.begun_as})"

    def as_json(self) -> dict[str, str]:
        """As a JSON object."""
        return {"id": self.id, "begun_as": self.begun_as}


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` holds.

    Attributes:
        identity: of the run.
        images: the fingerprint of the images that it began with.
        moved: where it went on with the same images under another path, one sentence each.
    """

    identity: Identity
    images: str
    moved: tuple[str, ...] = ()

    def with_moved(self, sentence: str) -> "RunRecord":
        """The same with one more sentence."""
        return replace(self, moved=(*self.moved, sentence))


def new_identity(folder: RunFolder) -> Identity:
    """The identity of a run that begins in a folder."""
    return Identity(secrets.token_hex(16), str(folder.path.absolute()))


def identity_in(value: Any) -> Identity | None:
    """The identity that a JSON value holds; None where it holds none."""
    if not isinstance(value, Mapping):
        return None
    found, begun_as = value.get("id"), value.get("begun_as")
    if not isinstance(found, str) or not re.fullmatch("[0-9a-f]{32}", found):
        return None
    return Identity(found, begun_as) if isinstance(begun_as, str) else None


def write_record(folder: RunFolder, record: RunRecord) -> None:
    """Writes ``run.json``.

    Raises:
        OSError: it could not be written.
    """
    content = {
        "format": _FORMAT,
        **record.identity.as_json(),
        "images": record.images,
        "moved": record.moved,
    }
    atomic_write(folder.record, (json.dumps(content, indent=1) + "\n").encode())


def load_record(folder: RunFolder) -> RunRecord:
    """What ``run.json`` of a run holds.

    Raises:
        RunFolderError: it is missing, as from older versions, or is not what was written.
    """
    content = _read(folder.record)
    identity, images, moved = identity_in(content), content.get("images"), content.get("moved")
    wanted = identity is not None and isinstance(images, str) and isinstance(moved, list)
    if not wanted or content.get("format") != _FORMAT:
        raise RunFolderError(
            f"{folder.record} is not the record of a run as this version of diptych writes it "
            f"(format {_FORMAT}, with id, begun_as, images and moved). Restore it, or go on with "
            "the version that began the run."
        )
    assert identity is not None
    assert isinstance(images, str)
    assert isinstance(moved, list)
    return RunRecord(identity, images, tuple(map(str, moved)))


def is_at(folder: RunFolder, identity: Identity) -> bool:
    """Whether a folder is that of a run."""
    try:
        return load_record(folder).identity.id == identity.id
    except RunFolderError:
        return False


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            # Bounded: whatever lies under this name must not fill the memory.
            content = json.loads(file.read(_MOST_BYTES))
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} is missing, which says which run this is; its checkpoints cannot be told from "
            "those of others. Runs of older versions of diptych have none: go on with the version "
            "that began it, or begin a new run."
        ) from error
    # RecursionError: of JSON that is nested very deeply.
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Restore it.") from error
    return content if isinstance(content, Mapping) else {}
