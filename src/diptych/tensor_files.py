"""Files of tensors as they are read: safetensors only, whatever the bytes are."""

from pathlib import Path

import safetensors
from safetensors import SafetensorError
from torch import Tensor

from diptych.escaping import openable


class UnreadableTensors(Exception):
    """A file is no safetensors file, or is cut short; callers say what was wanted of it."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, by name.

    Raises:
        UnreadableTensors: the file is not there, or is not one of safetensors.
    """
    return read_tensors_and_text(path)[0]


def read_tensors_and_text(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same, and the texts in the file's header."""
    try:
        with openable(path) as name, safetensors.safe_open(name, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    # The library's own error, and what torch raises for kinds and sizes that it does not know.
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnreadableTensors(str(error) or type(error).__name__) from error
