"""A copy of a run's tensors in the memory of the host, made in place of the one before."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """Holds as much memory as the tensors from the first copy on; it is not asked for again.

    Memory is pinned where tensors come from a CUDA device, so that they all travel at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies tensors; what was taken before is overwritten.

        Args:
            tensors: of any device and layout, by name.

        Returns:
            Their bits as they are now, on the CPU, contiguous.
        """
        self._buffers = {name: self._buffer(name, one) for name, one in tensors.items()}
        for name, one in tensors.items():
            self._buffers[name].copy_(one, non_blocking=True)
        for device in {one.device for one in tensors.values() if one.device.type != "cpu"}:
            torch.accelerator.synchronize(device)
        return dict(self._buffers)

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and old.shape == like.shape and old.dtype == like.dtype:
            return old
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")
