"""A file that lines are added to, and that a full or vanished disk does not make lose any."""

import os
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path


class AppendedFile:
    """Adds bytes to the end of a file; what cannot be written is kept and written with the next.

    Args:
        path: of the file, which is made if it is not there, with its folder.
        whole: all bytes up to now, for when the file was there and has vanished.
    """

    def __init__(self, path: Path, whole: Callable[[], bytes]) -> None:
        self._path, self._whole = path, whole
        self._file: FileIO | None = None
        self._waiting = b""

    def add(self, data: bytes) -> None:
        """Adds bytes after all that wait.

        Raises:
            OSError: not all could be written; the rest waits.
        """
        self._waiting += data
        try:
            file = self._opened()
            while self._waiting:
                self._waiting = self._waiting[file.write(self._waiting) :]
        except OSError:
            self.close()  # a handle may have gone stale with its folder
            raise

    @property
    def lines_waiting(self) -> int:
        """Ends of lines among what could not be written."""
        return self._waiting.count(b"\n")

    def close(self) -> None:
        """Closes the file; it is opened again when more comes."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _opened(self) -> FileIO:
        if self._file is not None and not self._is_there(self._file):
            self.close()
            self._waiting = self._whole()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                self._waiting = self._whole()
            # Not buffered: what was written is then known to the byte.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        return self._file

    def _is_there(self, file: FileIO) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False
