"""Checkpoints behind a URL, on any file system that fsspec knows.

An object store has no rename. So the last file of a checkpoint, its manifest, makes it one: without
it, a name is not listed. It is written last and removed first.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from diptych.errors import ConfigError, ImagesError, UnreachableFolder
from diptych.images.remote.connection import chunks, connect, in_words, persist
from diptych.training.checkpoint_names import MANIFEST, step_of
from diptych.training.tensor_file import Piece

Result = TypeVar("Result")


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

    def _asked(self, question: Callable[[], Result]) -> Result:
        try:
            return persist(question)
        except FileNotFoundError:
            raise
        except Exception as error:  # each protocol's client raises errors of its own
            raise UnreachableFolder(
                f"{self.url} cannot be used: {in_words(error)}. Check the address, the connection "
                "and who may write there."
            ) from error
