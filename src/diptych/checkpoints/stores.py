"""Where checkpoints lie: one interface, a folder on a disk or one behind a URL."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, Protocol, TypeVar

from diptych.config.run import CheckpointConfig
from diptych.errors import ConfigError, ImagesError, UnreachableFolder
from diptych.images.sources.remote import chunks, connect, is_url, one_line, with_retries
from diptych.runs.atomic import atomic_path, atomic_remove, remove_leftovers
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import Piece

TENSORS: Final = "tensors.safetensors"
SCALARS: Final = "state.json"
MANIFEST: Final = "manifest.json"
_PREFIX: Final = "step-"


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after so many steps.

    >>> checkpoint_name(123)
    'step-000000123'
    """
    return f"{_PREFIX}{step:09d}"


def step_of(name: str) -> int | None:
    """The steps done before a checkpoint of this name; None where it is no such name.

    >>> step_of("step-000000123"), step_of("step-"), step_of("notes")
    (123, None, None)
    """
    digits = name.removeprefix(_PREFIX)
    return int(digits) if name.startswith(_PREFIX) and digits.isdecimal() else None


CheckpointLocation = Path | str
"""A folder on a disk, or a URL of one."""


class Store(Protocol):
    """A folder of checkpoints, each a few files under a name.

    Raises:
        OSError: from any method; ``errno`` tells of a full disk where there is a disk.
        UnreachableFolder: the same, where a server does not answer.
    """

    def names(self) -> list[str]:
        """Of the checkpoints whose writing was completed, in no order, and maybe of other things.

        Nothing where the folder is not there.
        """

    def write(self, name: str, files: Mapping[str, Sequence[Piece]]) -> None:
        """Writes a checkpoint, which appears when its last file is complete, and then lasts.

        The folder is made if it is not there; one of the same name is replaced. On an error
        nothing of it is left, or nothing that ``names`` knows.
        """

    def local_copy(self, name: str, file: str, most_bytes: int) -> AbstractContextManager[Path]:
        """A path at which a file of a checkpoint can be read, for as long as the context lasts.

        It may be cut off after so many bytes and one more.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def set_aside(self, name: str) -> None:
        """Gives something that is no checkpoint another name; it is not deleted."""

    def remove(self, name: str) -> None:
        """Removes a checkpoint; it is none from the first moment on."""

    def sweep(self) -> None:
        """Removes what a killed run left of checkpoints that it was writing."""


def open_store(place: CheckpointLocation) -> Store:
    """The store at a place.

    Raises:
        ConfigError: a package for this kind of URL is missing, or it is of no known kind.
    """
    if isinstance(place, str) and is_url(place):
        return RemoteStore(place)
    return LocalStore(Path(place))


def checkpoint_location(config: CheckpointConfig, folder: RunFolder) -> CheckpointLocation:
    """Where the checkpoints of a run lie.

    Args:
        config: that may name a folder.
        folder: of the run, which has a place for them.
    """
    if config.folder is None:
        return folder.checkpoints
    return config.folder if is_url(config.folder) else Path(config.folder)


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
        """Writes under another name, syncs, and renames."""
        with atomic_path(self.folder / name) as temporary:
            temporary.mkdir()
            for file, pieces in files.items():
                with open(temporary / file, "xb") as opened:
                    opened.writelines(pieces)

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
        """Removes the folder as a whole, so that no half of it is taken for a checkpoint."""
        atomic_remove(self.folder / name)

    def sweep(self) -> None:
        """Deletes temporary names."""
        remove_leftovers(self.folder)


Answer = TypeVar("Answer")


class RemoteStore:
    """A folder of checkpoints behind a URL; see ``Store``.

    Args:
        url: of the folder, as ``s3://bucket/run``.

    Raises:
        ConfigError: a package for this kind of URL is missing, or it is of no known kind.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._system, root = connect(self.url)
        except ImagesError as error:  # its words are of URLs, not of images
            raise ConfigError(f"checkpoint.folder: {error}") from error
        self._root = root.rstrip("/")

    def names(self) -> list[str]:
        """Those that have a manifest."""
        return [name for name, whole in self._listed().items() if whole]

    def write(self, name: str, files: Mapping[str, Sequence[Piece]]) -> None:
        """Writes file by file, the last one when the others are there in their full size."""
        assert list(files)[-1] == MANIFEST
        self.remove(name)
        self._asked(lambda: self._system.makedirs(self._path(name), exist_ok=True))
        for file, pieces in files.items():
            self._asked(partial(self._upload, name, file, pieces))

    @contextmanager
    def local_copy(self, name: str, file: str, most_bytes: int) -> Iterator[Path]:
        """A copy in a folder for temporary files."""
        with tempfile.TemporaryDirectory(prefix="diptych-") as folder:
            copy = Path(folder) / "copy"
            self._asked(lambda: self._download(self._path(name, file), copy, most_bytes))
            yield copy

    def set_aside(self, name: str) -> None:
        """Copies it under another name and removes it."""
        there = set(self._listed_names())
        free = next(one for n in count(1) if (one := f"unknown-{n}-{name}") not in there)
        self._asked(lambda: self._system.mv(self._path(name), self._path(free), recursive=True))

    def remove(self, name: str) -> None:
        """Removes the manifest, then the rest."""
        with suppress(FileNotFoundError):
            self._asked(lambda: self._system.rm_file(self._path(name, MANIFEST)))
        with suppress(FileNotFoundError):
            self._asked(lambda: self._system.rm(self._path(name), recursive=True))

    def sweep(self) -> None:
        """Removes checkpoints without a manifest."""
        for name, whole in self._listed().items():
            if not whole:
                self.remove(name)

    def _listed(self) -> dict[str, bool]:
        """Names of checkpoints, whole or not, and whether they have a manifest."""
        names = self._listed_names()
        return {name: self._has_manifest(name) for name in names if step_of(name) is not None}

    def _listed_names(self) -> set[str]:
        self._system.invalidate_cache()
        # Neither find() nor exists(): they take a server that fails for an empty one.
        try:
            paths = self._asked(lambda: list(self._system.ls(self._root, detail=False)))
        except FileNotFoundError:
            return set()
        return {str(path).rstrip("/").rpartition("/")[2] for path in paths}

    def _has_manifest(self, name: str) -> bool:
        try:
            self._asked(lambda: self._system.info(self._path(name, MANIFEST)))
        except FileNotFoundError:
            return False
        return True

    def _upload(self, name: str, file: str, pieces: Sequence[Piece]) -> None:
        path = self._path(name, file)
        with self._system.open(path, "wb") as target:
            for piece in pieces:
                target.write(piece)
        # Some clients complete what was broken off; a manifest must not follow half a file.
        self._system.invalidate_cache()
        wanted, came = sum(map(len, pieces)), self._system.info(path)["size"]
        if came != wanted:
            raise OSError(f"{file} has {came} bytes there, {wanted} were sent")

    def _download(self, path: str, copy: Path, most_bytes: int) -> None:
        size = 0
        with open(copy, "wb") as file:
            for some in chunks(self._system, path):
                file.write(some[: most_bytes + 1 - size])
                size += len(some)
                if size > most_bytes:
                    return

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _asked(self, question: Callable[[], Answer]) -> Answer:
        try:
            return with_retries(question)
        except FileNotFoundError:
            raise
        except Exception as error:  # each protocol's client raises errors of its own
            raise UnreachableFolder(
                f"{self.url} cannot be used: {one_line(error)}. Check the address, the connection "
                "and who may write there."
            ) from error
