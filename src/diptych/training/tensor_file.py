"""Tensors as the bytes of a safetensors file, without a copy of them.

The library's own writer takes a path only, and says by a text that the disk is full. Here the bytes
come in pieces that can be summed, written, or sent anywhere. The format: eight bytes with the
header's length, a header in JSON, then the tensors' bytes end to end
(https://github.com/huggingface/safetensors, Format). It is read by the library.
"""

import json
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

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
    return [len(text).to_bytes(8, "little"), text, *(_bytes(tensors[name]) for name in names)]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
