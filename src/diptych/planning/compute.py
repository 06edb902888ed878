"""What a process computes in a step: operations, and bytes that are alive meanwhile.

The networks are counted: the run's own method passes the run's own shapes forward and backward, on
torch's fake tensors, which have shapes and no memory. The logits are by formula, as functions of
queries, keys and dimension: of a large batch, or of a full bank, there are too many to pass.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diptych.config.run import RunConfig
from diptych.methods.build import build_with_keys
from diptych.methods.contrastive import Contrastive, Vectors
from diptych.methods.dense import DenseContrastive
from diptych.methods.method import StepOutput
from diptych.models.activations import recompute_stages
from diptych.models.parts import without_memory
from diptych.planning.planned_run import PlannedRun
from diptych.training.setup import frozen_parts
from diptych.views.batches import Batch

_FLOAT_BYTES: Final = 4  # logits are never narrower
_ATEN: Final = torch.ops.aten
_SDPA_BACKWARD: Final = flop_counter.sdpa_backward_flop_count
# Operations, torch's formulae for them, and how many shapes these take.
_CPU_ATTENTION: Final[Mapping[Any, tuple[Callable[..., int], int]]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: (flop_counter.sdpa_flop_count, 3),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (_SDPA_BACKWARD, 4),
}
_WHOLE_MATRICES: Final = 4  # logits, divided, the loss's and their gradient; masks are a byte each


@dataclass(frozen=True)
class NetworkCost:
    """What the networks of one process do in a step, over its share of the batch.

    Attributes:
        forward_flops: of passes with a graph, for the backward pass.
        backward_flops: of the way back, with what is computed again on it.
        extra_flops: of passes without a graph: the momentum encoder's, and the first ones of
            cached gradients.
        saved_bytes: that wait for the backward pass on the device, of one chunk.
        peak_bytes: the most that is alive within a chunk, gradients of weights not among it.
        away_bytes: that wait in main memory, with ``training.offload_activations``.
    """

    forward_flops: int
    backward_flops: int
    extra_flops: int
    saved_bytes: int
    peak_bytes: int
    away_bytes: int

    @property
    def flops(self) -> int:
        """All of them."""
        return self.forward_flops + self.backward_flops + self.extra_flops


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations while it is active, and the bytes of the tensors that they make.

    Not torch's own mode, from which the formulae are: that one keeps what is computed again in the
    backward pass alive for longer than it is in a run.

    Attributes:
        flops: of operations with a graph, and of those in the backward pass.
        extra_flops: of operations without a graph.
        now: bytes alive.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.extra_flops = self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operation and counts what it allocates; a view allocates nothing."""
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        flops = _flops_of(func, args, kwargs or {}, made)
        # Gradients are off in the backward pass, too: only the number of its task tells it from a
        # pass without a graph.
        if torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            self.flops += flops
        else:
            self.extra_flops += flops
        for storage in _storages(made):
            if storage._cdata not in given:
                self._note(storage)
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:  # an operation in place makes what is known already
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            # Its bytes count until the last tensor on it is gone, as in memory.
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def build_on_meta(config: RunConfig, image_count: int) -> Contrastive:
    """The method of a run without memory: its tensors have shapes only."""
    with without_memory():
        method = build_with_keys(config, image_count=image_count).train()
    freeze_for_ever(method, config)
    return method.to(memory_format=memory_format(config))


def freeze_for_ever(method: Contrastive, config: RunConfig) -> None:
    """Freezes the parts of the encoder that do not train in all of the run."""
    frozen = frozen_parts(method, config.encoder)
    if frozen is not None and config.encoder.frozen_epochs is None:
        frozen.set(frozen=True)


def count_networks(config: RunConfig, images: int) -> NetworkCost:
    """Passes a chunk of one process's images through the method, forward and backward.

    Args:
        config: of the run; where activations lie in memory already, without offloading.
        images: of one process in a step.
    """
    chunk = min(config.training.chunk_size or images, images)
    chunks, away = images // chunk, list[int]()
    method, counter = build_on_meta(config, 1), Counter()
    with FakeTensorMode():
        _make_fake(method, config)
        if config.training.offload_activations:
            method.encoder.forward = partial(_offloaded, method.encoder.forward, away)
        batch = random_batch(config, chunk)
        with counter, without_logits(method):
            loss = method(batch).loss
            # Read before the backward pass, which counts on.
            saved, forward, extra = counter.now, counter.flops, counter.extra_flops
            torch.autograd.backward(loss)
        gradients = sum(p.grad.nbytes for p in method.parameters() if p.grad is not None)
    again = forward if chunks > 1 else 0  # cached gradients encode once more, without a graph
    return NetworkCost(
        forward_flops=forward * chunks,
        backward_flops=(counter.flops - forward) * chunks,
        extra_flops=(again + extra) * chunks,
        saved_bytes=saved,
        peak_bytes=max(saved, counter.peak - gradients),
        away_bytes=sum(away),
    )


def evaluation_peak(config: RunConfig, images: int) -> int:
    """The most bytes alive while so many images pass the network in evaluation mode."""
    method, counter = build_on_meta(config, 1).eval(), Counter()
    with FakeTensorMode():
        _make_fake(method, config)
        views = random_batch(config, images).views[:1]
        with counter, torch.no_grad():
            method.encode_queries(views)
    return counter.peak


@contextmanager
def without_logits(method: Contrastive) -> Iterator[None]:
    """Puts the sum of the vectors in the place of logits and loss: what is left is the networks.

    Args:
        method: in training mode.
    """

    def compare(vectors: Vectors, batch: Batch) -> StepOutput:
        queries, keys, beside, _ = vectors
        # What an anchor compares is no part of this loss.
        compared = (queries, keys, beside if method.anchor is None else None)
        learned = [one for one in compared if one is not None and one.requires_grad]
        loss = torch.stack([one.sum() for one in learned]).sum()
        kept = queries[0].detach()
        if isinstance(method, DenseContrastive):  # a key of an image, and one of its places
            kept = kept.repeat(1, 2)
        return StepOutput(loss, {}, kept, batch.indices)

    # On the object alone: deleted again, it uncovers the method of its class.
    object.__setattr__(method, "compare", compare)
    try:
        yield
    finally:
        object.__delattr__(method, "compare")


def random_batch(config: RunConfig, images: int) -> Batch:
    """Views of noise in the shapes of a run's, in its layout."""
    views, channels = config.views, config.images.channels
    sides = [views.side_pixels] * config.method.views + [views.small_side] * views.small_views
    made = tuple(torch.randn(images, channels, side, side) for side in sides)
    ordered = tuple(one.contiguous(memory_format=memory_format(config)) for one in made)
    indices = torch.arange(images)
    return Batch(ordered, indices, step=1, labels=indices % 10)


def vector_dim(config: RunConfig, method: Contrastive) -> int:
    """Length of the vectors that are compared; of a method in training mode, on any device."""
    with torch.no_grad(), torch.device(next(method.parameters()).device):
        # Evaluation mode, as batch norms refuse to train on a single row.
        vectors = method.network.eval()(random_batch(config, 1).views[0])
    method.network.train()
    return int(vectors.shape[1])


def memory_format(config: RunConfig) -> torch.memory_format:
    """The layout of weights and views."""
    return torch.channels_last if config.training.channels_last else torch.contiguous_format


def _make_fake(method: Contrastive, config: RunConfig) -> None:
    """Gives a method on the meta device fake tensors of a CPU, so that autocast does its part.

    Half precision is counted in bf16, whose tensors are as large as those of fp16.
    """
    for module in method.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                setattr(module, name, _fake(tensor))
    if method.autocast_type is not None:
        method.autocast_type = torch.bfloat16
    if config.training.recompute == "stages":
        recompute_stages(method.encoder)


def _fake(tensor: Tensor) -> Tensor:
    # With its strides: nothing else tells that a tensor is laid channels last.
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _offloaded(forward: Callable[..., Any], away: list[int], *inputs: Any) -> Any:
    """As ``activations.offload``: every tensor that is saved goes away, and comes back anew."""

    def pack(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
        away.append(tensor.nbytes)
        return tensor.shape, tensor.dtype

    def unpack(packed: tuple[torch.Size, torch.dtype]) -> Tensor:
        return torch.empty(packed[0], dtype=packed[1])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return forward(*inputs)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _flops_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> int:
    """By torch's formulae, and for the attention of a CPU, which has none there, as for others."""
    packet = func._overloadpacket
    if packet in _CPU_ATTENTION:
        formula, tensors = _CPU_ATTENTION[packet]
        return int(formula(*(one.shape for one in args[:tensors])))
    formula = flop_counter.flop_registry.get(packet, lambda *_, **__: 0)
    return int(formula(*args, **kwargs, out_val=made))


@dataclass(frozen=True)
class LogitsCost:
    """Of one process in a step.

    Attributes:
        queries: in each comparison.
        keys: that each query meets.
        flops: of all comparisons.
        bytes: that are alive at once at most.
    """

    queries: int
    keys: int
    flops: int
    bytes: int


def places_of(method: Contrastive) -> int:
    """Queries of an image beside those of its views, one for each place of a map."""
    return method.places if isinstance(method, DenseContrastive) else 0


def logits_cost(run: PlannedRun, dim: int, *, tile: int, places: int = 0) -> LogitsCost:
    """Of a whole step: every query of the process against the keys of all.

    Args:
        run: that is planned.
        dim: of a vector.
        tile: logits in a row of a tile.
        places: of a map that are queries too, against as many keys.
    """
    images, batch = run.images, run.config.training.batch_size
    if run.queries_are_keys:
        comparisons, queries, keys = 1, run.query_views * images, run.query_views * batch
    else:
        queue = run.config.method.dictionary.queue.size
        sizes = {"batch": batch, "queue": queue, "bank": run.drawn_images}
        comparisons, queries, keys = run.query_views, images, sizes[run.dictionary]
    flops = comparisons * _logits_flops(run, queries * (1 + places), keys, dim, tile)
    queries *= max(1, places)  # one comparison after the other
    return LogitsCost(queries, keys, flops, _logits_bytes(run, queries, keys, dim, tile))


def _logits_flops(run: PlannedRun, queries: int, keys: int, dim: int, tile: int) -> int:
    """2 dim for each pair that is multiplied.

    In a matrix of all logits: each pair forward, and backward for each side that learns. In tiles:
    logits and, if queries learn, their mean key on the way forward; both again on the way back if
    keys learn. Among the queries themselves: the upper triangle of tiles forward; backward again,
    and its product with the rows and, off the diagonal, with the columns.
    """
    pairs = queries * keys
    if run.full_logits:
        return 2 * dim * pairs * (2 + run.keys_learn)
    if run.queries_are_keys and run.processes == 1:
        whole, rest = divmod(queries, tile)
        diagonal = whole * tile**2 + rest**2
        above = (queries**2 - diagonal) // 2
        return 2 * dim * (3 * diagonal + 4 * above + run.many_positives * (diagonal + above))
    return 2 * dim * pairs * ((4 if run.keys_learn else 2) + run.many_positives)


def _logits_bytes(run: PlannedRun, queries: int, keys: int, dim: int, tile: int) -> int:
    """Scaled queries, their mean keys and gradients; keys and theirs; one or two tiles.

    Keys of a batch lie there once as gathered and once as put together. So do those fetched from a
    bank in shares, the batch's own among them, and once more in their order.
    """
    rows = 4 * queries * dim * _FLOAT_BYTES
    if run.full_logits:
        return rows + queries * keys * (_WHOLE_MATRICES * _FLOAT_BYTES + 1)
    tiles = min(tile, queries) * min(tile, keys) * _FLOAT_BYTES
    if run.queries_are_keys and run.processes == 1:
        return rows + 2 * tiles
    copies = {"batch": 3, "bank": 1, "queue": 0}[run.dictionary]
    excluded = queries * keys * (_FLOAT_BYTES + 1) if run.dictionary == "bank" else 0
    fetched = 3 * (run.config.training.batch_size + keys) if run.bank_is_sharded else 0
    return rows + (copies * keys + fetched) * dim * _FLOAT_BYTES + tiles + excluded
