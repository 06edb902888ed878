"""Files and folders that appear complete or not at all, and survive a loss of power from then on.

Everything is written under a temporary name beside the final one, synced, and renamed. Each writer
has a temporary name of its own, so several processes may write the same file: the bytes are never
mixed, and one of them stands.
"""

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_TEMPORARY: Final = ".aside"
_REPLACED: Final = ".replaced"  # of what had the name before, until the new one has it
_DIGITS: Final = 8


def atomic_write(path: Path, data: bytes) -> None:
    """Replaces a file so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        OSError: it could not be written, as on a full disk; the old file is there still.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives the path of a file or folder to make; it takes the final name when the block ends.

    What was there is replaced. After an error nothing of the new one is left. What a killed writer
    of the same name left is removed.

    Args:
        path: final; the folder around it is made where it is not there.

    Raises:
        OSError: it could not be written; the error names ``path`` where the system names no file,
            as when a disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with _errors_name(path, temporary):
            yield temporary
            _take_name(temporary, path)
    finally:
        # A failure to clean up must not hide the error that came before it.
        with suppress(OSError):
            _delete(temporary)
    _sync(path.parent)  # without it, a loss of power may undo the rename
    remove_leftovers(path.parent, path.name)


def atomic_remove(path: Path) -> None:
    """Removes a file or folder, which is gone as a whole from the first moment on."""
    temporary = _temporary(path)
    os.rename(path, temporary)
    _delete(temporary)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes what killed writers left in a folder: of one file's name, or of all."""
    pattern = "*" if name is None else glob.escape(name)
    # Exactly: a writer of `a.json` must not lose its file to one of `a`.
    pattern = f".{pattern}.{'[0-9a-f]' * _DIGITS}"
    for leftover in folder.glob(f"{pattern}{_TEMPORARY}"):
        _delete(leftover)
    for leftover in list(folder.glob(f"{pattern}{_REPLACED}")):
        # Of a writer that was killed before the new one had the name, it is the only copy.
        if os.path.lexists(folder / leftover.name[1 : -len(_REPLACED) - _DIGITS - 1]):
            _delete(leftover)


def _temporary(path: Path, end: str = _TEMPORARY) -> Path:
    # Beside the final name, as a rename works within one file system only; random and no process
    # id, which another machine on the same folder may have too.
    return path.with_name(f".{path.name}.{secrets.token_hex(_DIGITS // 2)}{end}")


def _take_name(temporary: Path, path: Path) -> None:
    try:
        # Contents before the name: else the rename may reach the disk first, and after a loss of
        # power the final name stands for an empty file.
        if temporary.is_dir():
            for file in temporary.iterdir():
                _sync(file)
        _sync(temporary)
        if temporary.is_dir() and os.path.lexists(path):
            _take_name_of_another(temporary, path)
        else:
            os.replace(temporary, path)
    except FileNotFoundError:
        if not path.exists():  # else another writer of this name was faster, and removed ours
            raise


def _take_name_of_another(temporary: Path, path: Path) -> None:
    """As a full folder cannot be renamed over, the old one steps aside, and is removed last."""
    old = _temporary(path, _REPLACED)
    os.rename(path, old)
    try:
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # another writer may have the name by now
            os.rename(old, path)
        raise


def _sync(path: Path) -> None:
    """Of a folder: makes renames and new names in it survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    """Deletes a folder with all that is in it; of a link or a file, the name alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _errors_name(path: Path, temporary: Path) -> Iterator[None]:
    """Lets errors of the operating system name the file that a user knows."""
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else os.fspath(error.filename)
        if error.errno is not None and named in (None, str(temporary)):
            error.filename = str(path)
        # Errors of a rename name two files, of which one is temporary.
        error.filename2 = None
        raise
