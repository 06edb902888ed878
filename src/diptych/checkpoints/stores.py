"""Where checkpoints lie: a folder on a disk or one behind a URL; and the manifest of each.

A manifest says which run wrote a checkpoint, and the sizes and sums of its files. It ends with a
sum of its own, so that a damaged one is never taken for another run's. Which run wrote it stands in
the checkpoint's numbers too, and is read there where the manifest is damaged.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol, TypeGuard, TypeVar

from diptych.config.run import CheckpointConfig
from diptych.errors import (
    ConfigError,
    DamagedCheckpoint,
    ForeignCheckpoint,
    ImagesError,
    UnreachableFolder,
)
from diptych.images.sources.remote import chunks, connect, one_line, with_retries
from diptych.runs.atomic import atomic_path, atomic_remove, remove_leftovers
from diptych.runs.folder import Identity, RunFolder, identity_in, is_url
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
        OSError: from any method; ``errno`` is that of the system where there is a disk.
        UnreachableFolder: the same, where a server does not answer.
    """

    def names(self) -> list[str]:
        """Of the complete checkpoints, in no order, and maybe of other things.

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
        assert list(files)[-1] == MANIFEST  # with it the checkpoint counts as complete
        # An old manifest must be gone first, or it would make new files half sent look complete.
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
            # First: it is no checkpoint from now on, also if the rest cannot be removed.
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
        # fsspec caches lists of folders; this one may have changed since.
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
                # One byte too many tells that the file is another; a hostile one may have no end.
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


FORMAT: Final = 3
MOST_MANIFEST_BYTES: Final = 2**16
MOST_SCALARS_BYTES: Final = 2**24
Description = Mapping[str, str | int]
"""The size and the checksum of a file."""


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, as far as that can be read.

    Attributes:
        format: of its manifest; None where that is damaged.
        run: that wrote it; None where it does not say.
    """

    format: int | None
    run: Identity | None

    def is_of(self, run: Identity) -> bool:
        """Whether that run wrote it, and this version of diptych can read it."""
        return self.run is not None and self.run.id == run.id and self.format in (FORMAT, None)

    @property
    def is_unknown(self) -> bool:
        """Whether its run is not known: it is what is left of a checkpoint, or none at all."""
        return self.format is None and self.run is None

    def __str__(self) -> str:
        if self.format is not None and self.format != FORMAT:
            age = "an older" if self.format < FORMAT else "a newer"
            return f"{age} version of diptych (format {self.format}; this one reads {FORMAT})"
        return "an unknown run" if self.run is None else f"run {self.run}"


@dataclass(frozen=True)
class Manifest:
    """A manifest whose sum is right.

    Attributes:
        run: that wrote the checkpoint.
        files: sizes and sums, by name.
    """

    run: Identity
    files: Mapping[str, Description]


def make_manifest(run: Identity, files: Mapping[str, Description]) -> bytes:
    """The bytes of a manifest."""
    content = {"format": FORMAT, "run": run.as_json(), "files": files}
    return json.dumps({**content, "sha256": _sum(content)}, indent=1).encode()


def read_manifest(store: Store, name: str) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        ForeignCheckpoint: it is of another format than this version writes.
        DamagedCheckpoint: it is not as it was written.
        OSError: it is not there, or cannot be read.
    """
    content = _read_json(store, name, MANIFEST, MOST_MANIFEST_BYTES)
    number = _format_in(content)
    if number is not None and number != FORMAT:
        raise ForeignCheckpoint(
            f"{name} was written by {Origin(number, None)}. Use that version to go on from it."
        )
    run, files = identity_in(content.get("run")), content.get("files")
    stated = content.pop("sha256", None)
    if run is None or not _describes(files) or stated != _sum(content):
        raise DamagedCheckpoint(f"{MANIFEST} of {name} is not as it was written")
    return Manifest(run, files)


def origin_of(store: Store, name: str) -> Origin:
    """Where a checkpoint comes from, whether it is whole or not.

    Raises:
        UnreachableFolder: a server does not answer.
    """
    try:
        return Origin(FORMAT, read_manifest(store, name).run)
    except ForeignCheckpoint:
        content = _read_json(store, name, MANIFEST, MOST_MANIFEST_BYTES)
        return Origin(_format_in(content), identity_in(content.get("run")))
    except UnreachableFolder:
        raise
    except (DamagedCheckpoint, OSError):
        pass
    try:
        scalars = _read_json(store, name, SCALARS, MOST_SCALARS_BYTES)
    except UnreachableFolder:
        raise
    except (DamagedCheckpoint, OSError):
        return Origin(None, None)
    return Origin(None, identity_in(scalars.get("run")))


def describe_file(path: Path) -> Description:
    """The size and the sum of a file."""
    with open(path, "rb") as file:
        # In this order: the position is the size only once the file has been read to its end.
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def json_object(text: bytes, what: str, most_bytes: int) -> dict[str, Any]:
    """A JSON object from bytes that may be anything.

    Raises:
        DamagedCheckpoint: they are no such object, or too many.
    """
    if len(text) > most_bytes:
        raise DamagedCheckpoint(f"{what} is larger than {most_bytes:,} bytes")
    try:
        content = json.loads(text)
    # Many open brackets exhaust Python's stack, and are no ValueError.
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{what} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{what} is no JSON object")
    return content


def _read_json(store: Store, name: str, file: str, most_bytes: int) -> dict[str, Any]:
    with store.local_copy(name, file, most_bytes) as path, open(path, "rb") as opened:
        return json_object(opened.read(most_bytes + 1), f"{file} of {name}", most_bytes)


def _format_in(content: Mapping[str, Any]) -> int | None:
    number = content.get("format")
    return number if type(number) is int else None


def _describes(files: Any) -> TypeGuard[Mapping[str, Description]]:
    """Whether sizes and sums are there of both files that a checkpoint has."""
    return isinstance(files, Mapping) and all(
        isinstance(one := files.get(name), Mapping)
        and isinstance(one.get("sha256"), str)
        and type(one.get("bytes")) is int
        for name in (TENSORS, SCALARS)
    )


def _sum(content: Mapping[str, Any]) -> str:
    """The checksum of a manifest's content, which does not depend on order or spacing."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
