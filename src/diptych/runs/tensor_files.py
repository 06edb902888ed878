"""Files of tensors, safetensors only: read whatever the bytes are, and written without a copy."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

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


Piece = bytes | memoryview

_KINDS: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT: Final = 8  # bytes; the tensors begin at a multiple of it


def tensor_pieces(tensors: Mapping[str, Tensor]) -> list[Piece]:
    """The bytes of a safetensors file, in pieces that share the tensors' memory.

    Args:
        tensors: on the CPU, contiguous, by name; they stay as they are while the pieces are used.

    Raises:
        TypeError: a tensor is of a kind that the format does not know, as complex numbers.
    """
    # Wide kinds come first, so that each tensor begins at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = dict[str, object](), 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        if tensor.dtype not in _KINDS:
            raise TypeError(f"{name} is of {tensor.dtype}; a checkpoint cannot hold that")
        header[name] = {
            "dtype": _KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little"), text, *(tensor_bytes(tensors[name]) for name in names)]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; not copied if it lies in order on the CPU."""
    # As bytes: NumPy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def hash_network(network: nn.Module) -> "hashlib._Hash":
    """SHA-256 of a network's structure and state, to which more may be added.

    The structure too: strides and activations, for instance, are in no tensor of the state.
    """
    digest = hashlib.sha256(repr(network).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest
