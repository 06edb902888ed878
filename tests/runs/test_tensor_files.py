"""The bytes of a safetensors file: safetensors itself reads them."""

import pytest
import safetensors.torch
import torch
from torch import Tensor

from diptych.runs.tensor_files import tensor_pieces

KINDS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def test_the_library_reads_every_kind() -> None:
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {
        f"{kind}/{shape}": torch.randint(0, 2, shape, generator=generator).to(kind)
        for kind in KINDS
        for shape in ((), (0, 4), (3,), (2, 5, 7))
    }
    tensors['höhe "quoted"'] = torch.randn(11, generator=generator)
    data = b"".join(tensor_pieces(tensors))
    read = safetensors.torch.load(data)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_the_bytes_are_those_of_the_library() -> None:
    tensors = {"b": torch.randn(5), "a": torch.randn(2, 3), "n": torch.arange(4)}
    ours = b"".join(tensor_pieces(tensors))
    theirs = safetensors.torch.save(tensors)
    assert len(ours) == len(theirs)
    sizes = [int.from_bytes(data[:8], "little") + 8 for data in (ours, theirs)]
    assert ours[sizes[0] :] == theirs[sizes[1] :]


def test_pieces_share_memory() -> None:
    tensor = torch.zeros(4)
    *_, piece = tensor_pieces({"a": tensor})
    tensor[0] = 1.0
    assert bytes(piece[:4]) == b"\x00\x00\x80\x3f"


def test_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a is of torch\.complex64"):
        tensor_pieces({"a": torch.zeros(2, dtype=torch.complex64)})
