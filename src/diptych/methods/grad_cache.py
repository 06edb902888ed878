"""Cached gradients: the loss and gradients of a large batch in the memory of a part of it.

GradCache (Gao et al. 2021, section 3): encode all parts without keeping a graph; compute the loss
of the whole batch once, and its gradient for each vector; encode each part again, with a graph,
and send its vectors' gradients back. Every query meets all the negatives of the whole batch. That
is not accumulation, in which it would meet those of its own part only.

Batch norm sees one part at a time. With ``split``, ``shuffle``, ``layer`` and ``group`` the result
is that of the whole batch to rounding; with ``batch`` and ``sync`` it is exact for a network whose
statistics are those of a part.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diptych.models.norms import frozen_statistics, pooled_statistics
from diptych.runtime.stopwatch import watch

Views = tuple[Tensor, ...]
"""Each (images, channels, side, side)."""


def encode_in_chunks(
    encode: Callable[[Views], Tensor],
    views: Views,
    network: nn.Module,
    *,
    chunk_size: int,
    learns: bool,
) -> Tensor:
    """Encodes a part of the images at a time; the backward pass encodes each part once more.

    Args:
        encode: views of some images to (views, images, dim); called for each part.
        views: of all images.
        network: that ``encode`` uses, in training mode; its running statistics move as in one pass.
        chunk_size: images that are encoded at once; divides all.
        learns: whether gradients go back to the network.

    Returns:
        (views, images, dim).
    """
    parts = list(zip(*(torch.split(view, chunk_size) for view in views), strict=True))
    # Autograd comes back only to what has an input that learns; the weights are found by encoding.
    anchor = torch.empty(0, requires_grad=learns)
    encoded: Tensor = _EncodeTwice.apply(anchor, encode, parts, network)
    return encoded


class _EncodeTwice(torch.autograd.Function):
    """Forward: without a graph. Backward: again with one, part by part, in the same order."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        encode: Callable[[Views], Tensor],
        parts: Sequence[Views],
        network: nn.Module,
    ) -> Tensor:
        ctx.encode, ctx.parts, ctx.network = encode, parts, network
        ctx.states = list[GeneratorState]()
        encoded = list[Tensor]()
        for index, part in enumerate(parts):
            ctx.states.append(_generator_state(part[0].device))
            with pooled_statistics(network, index, len(parts)):
                encoded.append(encode(part))
        return torch.cat(encoded, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        device, start = gradient.device, 0
        # The replay below sets the generators back; what comes after must not draw the same again.
        now = _generator_state(device)
        for part, state in zip(ctx.parts, ctx.states, strict=True):
            _set_generators(state, device)
            # once_differentiable turned gradients off; the first pass has moved the statistics.
            with watch("forward"), frozen_statistics(ctx.network), torch.enable_grad():
                vectors = ctx.encode(part)
            # Adds to the weights' gradients directly, so this function returns none.
            torch.autograd.backward(vectors, gradient[:, start : start + vectors.shape[1]])
            start += vectors.shape[1]
        _set_generators(now, device)
        return None, None, None, None


GeneratorState = tuple[Tensor, Tensor | None]
"""Where torch's generators stood before a part was encoded: dropout must drop the same again."""


def _generator_state(device: torch.device) -> GeneratorState:
    module = torch.get_device_module(device)
    return torch.get_rng_state(), None if device.type == "cpu" else module.get_rng_state()


def _set_generators(state: GeneratorState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])
