"""The distinct blocks of a network, each with the shape that it meets in a run, and their times.

A network is mostly the same few blocks over and over. What each takes is measured at its own shape,
forward and backward; their sum is the network's, within some per cent. Each finds the processor's
caches as it would in the network: filled by others but for what comes from its neighbour. A block
that is run again and again has all it needs in there, and takes up to a quarter less.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

REPEAT_SECONDS: Final = 0.25
LEAST_REPEATS: Final = 3
_EVICTING_VALUES: Final = 16 * 2**20  # 64 MB, more than most caches hold
_MOST_VALUES: Final = 48 * 2**20  # of a block's input: 200 MB, which no processor's cache holds


@dataclass(frozen=True)
class Block:
    """A part of a network.

    Attributes:
        module: a layer or a residual block.
        shape: of its input.
        count: how often it stands in the network, with the same settings and shape.
        first: it takes the images, which need no gradient.
    """

    module: nn.Module
    shape: tuple[int, ...]
    count: int
    first: bool


def blocks_of(network: nn.Module, views: Tensor, count: int) -> list[Block]:
    """The blocks of a network, in order.

    Args:
        network: of a method, or a predictor; its statistics stay as they are.
        views: a few, to see what shapes come of them.
        count: of views that will pass at once.
    """
    units = _units(network)
    seen: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        rows, *rest = inputs[0].shape
        seen.append((module, (rows * count // len(views), *rest)))

    hooks = [unit.register_forward_hook(note) for unit in units]
    network.eval()
    with torch.no_grad():
        network(views)
    network.train()
    for hook in hooks:
        hook.remove()
    kinds = Counter((repr(module), shape) for module, shape in seen)
    found = list[Block]()
    for position, (module, shape) in enumerate(seen):
        count = kinds.pop((repr(module), shape), 0)
        if count and not isinstance(module, nn.Identity):
            found.append(Block(module, shape, count, first=position == 0))
    return found


def _units(network: nn.Module) -> list[nn.Module]:
    """Parts that are called one after the other: sequences are taken apart, blocks are not."""
    parts = list[nn.Module]()
    for child in network.children():
        is_chain = isinstance(child, nn.Sequential) and any(True for _ in child.children())
        parts += (
            _units(child) if is_chain or child is getattr(network, "encoder", None) else [child]
        )
    return parts


def seconds_of(block: Block, *, learns: bool) -> float:
    """Of all blocks of a kind together: forward, and backward if they learn.

    A very large input is cut to a part of its images, and the time multiplied.
    """
    images = max(1, min(block.shape[0], _MOST_VALUES // max(1, _size(block.shape[1:]))))
    values = torch.randn(images, *block.shape[1:])
    if values.dim() == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    values.requires_grad_(learns and not block.first)
    once = _learning(block.module, values) if learns else _looking(block.module, values)
    return block.count * median_seconds(once) * block.shape[0] / images


def _learning(module: nn.Module, values: Tensor) -> Callable[[], float]:
    with torch.no_grad():
        gradient = torch.randn_like(module(values.detach().clone()))

    def once() -> float:
        _evict()
        fresh = values.clone()  # as it comes from the block before; some work in place
        begun = time.perf_counter()
        output = module(fresh)
        forward = time.perf_counter() - begun
        if not output.requires_grad:
            return forward
        _evict()
        fresh_gradient = gradient.clone()
        begun = time.perf_counter()
        torch.autograd.backward(output, fresh_gradient)
        backward = time.perf_counter() - begun
        values.grad = None
        module.zero_grad(set_to_none=True)
        return forward + backward

    return once


def _looking(module: nn.Module, values: Tensor) -> Callable[[], float]:
    def once() -> float:
        _evict()
        fresh = values.clone()
        begun = time.perf_counter()
        with torch.no_grad():
            module(fresh)
        return time.perf_counter() - begun

    return once


def _evict() -> None:
    """Fills the caches with other numbers; what it makes is freed, and re-used by the block."""
    torch.ones(_EVICTING_VALUES)


def median_seconds(once: Callable[[], float]) -> float:
    """The median of some repeats, the first of which does not count; each tells its own time."""
    once()
    found, begun = list[float](), time.perf_counter()
    while len(found) < LEAST_REPEATS or time.perf_counter() - begun < REPEAT_SECONDS:
        found.append(once())
    return statistics.median(found)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size
