"""Where checkpoints lie: one interface, a folder on a disk or one behind a URL."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from diptych.configs import CheckpointConfig
from diptych.images.remote.connection import is_url
from diptych.run_folder import RunFolder
from diptych.training.local_store import LocalStore
from diptych.training.remote_store import RemoteStore
from diptych.training.tensor_file import Piece

Place = Path | str
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


def open_store(place: Place) -> Store:
    """The store at a place.

    Raises:
        ConfigError: a package for this kind of URL is missing, or it is of no known kind.
    """
    if isinstance(place, str) and is_url(place):
        return RemoteStore(place)
    return LocalStore(Path(place))


def checkpoint_place(config: CheckpointConfig, folder: RunFolder) -> Place:
    """Where the checkpoints of a run lie.

    Args:
        config: that may name a folder.
        folder: of the run, which has a place for them.
    """
    if config.folder is None:
        return folder.checkpoints
    return config.folder if is_url(config.folder) else Path(config.folder)
