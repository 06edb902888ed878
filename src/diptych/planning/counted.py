"""What networks cost in a step: run on the meta device, where tensors have shapes and no memory.

Nothing is estimated here. The very networks of the run pass the very shapes of the run, forward and
backward; operations are counted by torch's own counter, and each tensor's bytes from when it is
made until it is freed.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diptych.config.run import RunConfig
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.methods.dictionaries import InBatch
from diptych.models.activations import recompute_stages


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that operations made while this is active and that are still alive.

    Attributes:
        now: bytes alive.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operation and notes what it made; a view of what was there before is nothing."""
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage._cdata not in given:
                self._note(storage)
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Passes:
    """What the networks of one process do in a step, over its share of the batch.

    Attributes:
        forward_flops: of passes that are remembered for a backward pass.
        backward_flops: of these, with what is computed again on the way.
        extra_flops: of passes that are not: the momentum encoder's, and the first ones of cached
        gradients. saved_bytes: that wait for the backward pass on the device, of one chunk.
        peak_bytes: the most that is alive within a chunk, gradients of weights not among it.
        away_bytes: that wait in main memory, with ``training.offload_activations``.
    """

    forward_flops: int
    backward_flops: int
    extra_flops: int
    saved_bytes: int
    peak_bytes: int
    away_bytes: int = 0

    @property
    def flops(self) -> int:
        """All of them."""
        return self.forward_flops + self.backward_flops + self.extra_flops


def build_on_meta(config: RunConfig, image_count: int) -> Contrastive:
    """The method of a run without memory: its tensors have shapes only."""
    with torch.device("meta"):
        method = build_contrastive(config, image_count=image_count).train()
    return method.to(memory_format=_layout(config))


def count_passes(config: RunConfig, method: Contrastive, images: int) -> Passes:
    """Passes one process's images through the networks of a method on the meta device.

    Args:
        config: of the run; where activations lie in memory already, without offloading.
        method: of ``build_on_meta``.
        images: of one process in a step.
    """
    method, away = _as_encoded(config, method), list[int]()
    if config.training.offload_activations:
        method.encoder.forward = partial(_elsewhere, method.encoder.forward, away)
    chunk = min(config.training.chunk_size or images, images)
    chunks = images // chunk
    views = _views(config, method, chunk)
    # Apart from each other: while the counter of operations is active, what is computed again in
    # the backward pass lives longer than it does in a run.
    with FlopCounterMode(display=False) as counter:
        of_keys, forward, total = _chunk_passes(method, *views, counter.get_total_flops)
    method.zero_grad(set_to_none=True)
    away.clear()
    with LiveBytes() as live:
        _, saved, _ = _chunk_passes(method, *views, lambda: live.now)
    gradients = sum(p.grad.nbytes for p in method.parameters() if p.grad is not None)
    keys_learn = method.momentum_encoder is None
    remembered = forward if keys_learn else forward - of_keys
    again = remembered if chunks > 1 else 0  # without a graph, before the loss
    return Passes(
        forward_flops=remembered * chunks,
        backward_flops=(total - forward) * chunks,
        extra_flops=(again + (0 if keys_learn else of_keys)) * chunks,
        saved_bytes=saved,
        peak_bytes=max(saved, live.peak - gradients),
        away_bytes=sum(away),
    )


def _chunk_passes(
    method: Contrastive, queries: list[Tensor], keys: list[Tensor], read: Callable[[], int]
) -> tuple[int, int, int]:
    """Passes a chunk forward and backward; what was read after the keys, the queries, the end."""
    encoded = list[Tensor]()
    if keys:
        with torch.set_grad_enabled(method.momentum_encoder is None):
            encoded.append(method.network(torch.cat(keys)))
    of_keys = read()
    encoded += [_as_queries(method, views) for views in _by_size(queries)]
    forward = read()
    learned = [one for one in encoded if one.requires_grad]
    torch.autograd.backward(learned, [torch.empty_like(one) for one in learned])
    return of_keys, forward, read()


def count_looking(config: RunConfig, method: Contrastive, images: int) -> int:
    """The most bytes alive while so many images pass the network in evaluation mode."""
    network = _as_encoded(config, method).network.eval()
    with torch.no_grad(), LiveBytes() as live:
        network(_view(config, images, config.views.side_pixels))
    return live.peak


def _as_encoded(config: RunConfig, method: Contrastive) -> Contrastive:
    """A copy in the precision in which autocast hands tensors from layer to layer.

    Its encoder keeps what the run's keeps; how it is called is changed in the copy only.
    """
    # Not copied as a whole: a dictionary stays in its own precision.
    copied = copy.copy(method)
    copied._modules = dict(method._modules)
    kind = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    for name in ("network", "predictor", "momentum_encoder"):
        part = getattr(method, name)
        if part is not None:
            setattr(copied, name, copy.deepcopy(part).to(kind))
    if config.training.recompute == "stages":
        recompute_stages(copied.encoder)
    return copied


def _elsewhere(forward: Callable[..., Any], away: list[int], *inputs: Any) -> Any:
    """As ``activations.offload``: every tensor that is saved goes away, and comes back anew."""

    def pack(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
        away.append(tensor.nbytes)
        return tensor.shape, tensor.dtype

    def unpack(packed: tuple[torch.Size, torch.dtype]) -> Tensor:
        shape, dtype = packed
        return torch.empty(shape, dtype=dtype, device="meta")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return forward(*inputs)


def _views(
    config: RunConfig, method: Contrastive, images: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Views that are encoded as queries, and as keys, in one chunk."""
    small = [_view(config, images, config.views.small_side)] * config.views.small_views
    full = _view(config, images, config.views.side_pixels)
    if isinstance(method.dictionary, InBatch) and method.dictionary.both_views:
        return [full] * config.method.views + small, []
    sides = 1 + config.method.symmetric
    keys = 0 if config.method.dictionary.kind == "bank" else sides
    return [full] * sides + small, [full] * keys


def _view(config: RunConfig, images: int, side: int) -> Tensor:
    kind = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    shape = (images, config.images.channels, side, side)
    return torch.empty(shape, dtype=kind, device="meta").contiguous(memory_format=_layout(config))


def _layout(config: RunConfig) -> torch.memory_format:
    return torch.channels_last if config.training.channels_last else torch.contiguous_format


def _by_size(views: Sequence[Tensor]) -> list[list[Tensor]]:
    sides = dict.fromkeys(view.shape[-1] for view in views)
    return [[view for view in views if view.shape[-1] == side] for side in sides]


def _as_queries(method: Contrastive, views: Sequence[Tensor]) -> Tensor:
    vectors: Tensor = method.network(torch.cat(list(views)))
    return vectors if method.predictor is None else method.predictor(vectors)
