"""What can go wrong, as one tree. Every message says what was wanted, what came, what to do.

DiptychError            anything diptych raises on purpose; the command line prints it plainly
├── ConfigError         a setting that is unknown, of the wrong type, or that fits no other
├── ImagesError         the images cannot be used as given
│   └── UnreadableImage one image cannot be decoded; it is skipped and listed
├── RunFolderError      a run folder is missing, occupied, or not what was asked for
│   ├── DamagedCheckpoint  a checkpoint whose bytes are not those that were written
│   ├── ForeignCheckpoint  a checkpoint of another run, or of another version of diptych
│   └── UnreachableFolder  a folder of checkpoints behind a URL does not answer
├── EmbeddingsError     embeddings are incomplete, or of other images or another encoder
├── TrainingError       training cannot go on (a loss that is not a number)
│   ├── NotSaved        the run ended or was stopped, and could not be saved
│   └── PeerError       another process of the run differs from the others
│       ├── LostPeer     one is gone, or does not answer
│       └── FirstStopped the first one could not go on, and says why
└── Interrupted         SIGINT, SIGTERM or SIGHUP came; the run was saved and can be resumed
"""


class DiptychError(Exception):
    """The root of all errors that diptych raises on purpose."""


class ConfigError(DiptychError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class ImagesError(DiptychError):
    """The images cannot be used as given."""


class UnreadableImage(ImagesError):
    """One image cannot be decoded; the message is the reason listed in ``skipped.csv``."""


class RunFolderError(DiptychError):
    """A run folder is missing, occupied, or does not hold what was asked for."""


class DamagedCheckpoint(RunFolderError):
    """A checkpoint is incomplete, or its bytes are not the ones that were written."""


class ForeignCheckpoint(RunFolderError):
    """A checkpoint is another run's, or another version's; it is neither read nor replaced."""


class UnreachableFolder(RunFolderError, OSError):
    """A folder of checkpoints behind a URL does not answer, or refuses what was asked."""


class EmbeddingsError(DiptychError):
    """Embeddings on disk are incomplete, damaged, or of other images, settings or encoders."""


class TrainingError(DiptychError):
    """Training cannot go on; the last good checkpoint is intact."""


class NotSaved(TrainingError):
    """The run ended or was stopped, and could not be saved; what was saved before is intact."""


class PeerError(TrainingError):
    """Another process of the run is gone, does not answer, or differs from the others."""


class LostPeer(PeerError):
    """Another process is gone, or does not answer."""


class FirstStopped(PeerError):
    """The first process could not do what it does alone; it says why."""


class Interrupted(DiptychError):
    """A signal asked the run to stop; everything was saved first.

    Attributes:
        signal_number: the signal that came; the process exits with 128 + this number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
