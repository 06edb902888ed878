"""What can go wrong, as one tree. Every message says what was wanted, what came, what to do.

A command that ends with an error has its exit code: 2 where the user must change something, which
no restart can mend; 1 where training stopped; 74 where the run could not be saved.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

EXIT_ERROR: Final = 1
EXIT_USER: Final = 2  # as for wrong usage
EXIT_NOT_SAVED: Final = 74  # EX_IOERR of sysexits.h


class DiptychError(Exception):
    """The root of all errors that diptych raises on purpose.

    Attributes:
        exit_code: of the command that ends with it.
    """

    exit_code: int = EXIT_USER


class ConfigError(DiptychError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class ImagesError(DiptychError):
    """The images cannot be used as given."""


class UnreadableImage(ImagesError):
    """One image cannot be decoded; the message is the reason listed in ``skipped.csv``."""


class LostImage(ImagesError):
    """An image that could be read at the start cannot be read now; it may come back."""

    exit_code = EXIT_ERROR


class RunFolderError(DiptychError):
    """A run folder is missing, occupied, or does not hold what was asked for."""


class DamagedCheckpoint(RunFolderError):
    """A checkpoint is incomplete, or its bytes are not the ones that were written."""


class ForeignCheckpoint(RunFolderError):
    """A checkpoint is another run's, or another version's; it is neither read nor replaced."""


# An OSError too, so that whoever expects a disk to fail need not know of URLs.
class UnreachableFolder(RunFolderError, OSError):
    """A folder of checkpoints behind a URL does not answer, or refuses what was asked."""

    exit_code = EXIT_ERROR


class FeaturesError(DiptychError):
    """An encoder gives features that are not finite numbers, of which nothing can be measured.

    Attributes:
        what: which features, of how many images.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: nothing can be measured of them. Use an encoder from before its training "
            "went astray, as an earlier checkpoint."
        )
        self.what = what


class EmbeddingsError(DiptychError):
    """Embeddings on disk are incomplete, damaged, or of other images, settings or encoders."""


class ExportError(DiptychError):
    """An export gives other features than the encoder when it is read back."""


class ClassifierError(DiptychError):
    """The folder of a classifier is missing or damaged, or does not go with what it is given."""


class TrainingError(DiptychError):
    """Training cannot go on; the last good checkpoint is intact."""

    exit_code = EXIT_ERROR


class NotSaved(TrainingError):
    """The run ended or was stopped, and could not be saved; what was saved before is intact."""

    exit_code = EXIT_NOT_SAVED


@contextmanager
def saving(failure: str, then: str) -> Iterator[None]:
    """Turns errors of the operating system into ``NotSaved``, with what to do once it is mended."""
    try:
        yield
    except OSError as error:
        raise NotSaved(f"{failure}: {error.strerror or error}. Mend that, then {then}.") from error


class DistributedError(TrainingError):
    """Another process of the run is gone, does not answer, or differs from the others."""


class LostProcess(DistributedError):
    """Another process is gone, or does not answer."""


class FirstStopped(DistributedError):
    """Another process, mostly the first, could not do what it does by itself; it says why.

    Attributes:
        exit_code: that of the process.
    """

    def __init__(self, message: str, exit_code: int = EXIT_ERROR) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(DiptychError):
    """A signal asked the run to stop; everything was saved first.

    Attributes:
        signal_number: the signal that came; the process exits with 128 + this number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error.

    >>> exit_code_of(ConfigError("")), exit_code_of(FileNotFoundError(2, "", "a")), exit_code_of(
    ...     ZeroDivisionError()
    ... )
    (2, 2, 1)
    """
    if isinstance(error, DiptychError):
        return error.exit_code
    return EXIT_USER if sentence_of(error) is not None else EXIT_ERROR


def sentence_of(error: BaseException) -> str | None:
    """The message of an error for a user; None for a fault of the program.

    An error of the operating system is the user's where it names a file: one that cannot be read
    or, as in a folder that is read-only, written.

    >>> sentence_of(OSError(errno.EROFS, "Read-only file system", "out/a.json"))
    'out/a.json: Read-only file system. Choose another place, or make this one writable.'
    """
    if isinstance(error, DiptychError):
        return str(error)
    if not isinstance(error, OSError) or error.filename is None:
        return None
    # A file opened by its descriptor has that number for a name.
    path = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
    cure = _CURES.get(error.errno or 0, "See that it is there and can be used.")
    return f"{path}: {error.strerror or error}. {cure}"


_CURES: Final = {
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM),
        "Choose another place, or make this one writable.",
    ),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room, then give the same command."),
    errno.EEXIST: "Wanted a folder there; choose another place.",
    errno.ENOTDIR: "A file stands where a folder is wanted; choose another place.",
    errno.EISDIR: "Wanted a file there, and it is a folder; choose another place.",
    errno.ENOENT: "It is not there; see that its name is right.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}
