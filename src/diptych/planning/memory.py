"""What one process holds in memory: what stays through a run, and what a step needs at its peak."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from diptych.checkpoints.state import trainable
from diptych.methods.contrastive import Contrastive
from diptych.methods.sharded_bank import ShardedBank
from diptych.planning.case import Case
from diptych.planning.counted import Passes
from diptych.planning.loss import LookUpCost
from diptych.planning.machine import Machine
from diptych.planning.saving import rearranged_bytes, state_bytes
from diptych.planning.storage import optimizer_tensors

COPY: Final = "copy for checkpoints"
HEAP: Final = "free in the heap"
AWAY: Final = "saved activations"
_FLOAT_BYTES = 4
_PROBE_VIEWS = 512  # pairs of views that a measurement of health makes at once, at most
# Of each image: height, width; start, end and bytes of its name; where its bytes lie, and how many;
# the order of this epoch, of the last, and the shuffling's own copy.
_INDEX_BYTES = 8 + 8 + 8 + 8 + 30 + 8 + 8 + 3 * 8


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        lasting: what stays through the run, on the device, by name.
        moments: what is held besides at each moment of a step, by its name and part by part.
        host: what lies in main memory, by name.
    """

    lasting: Mapping[str, float]
    moments: Mapping[str, Mapping[str, float]]
    host: Mapping[str, float]

    @property
    def fullest(self) -> str:
        """The moment that needs the most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def transient(self) -> float:
        """What the fullest moment needs beside what lasts."""
        return sum(self.moments[self.fullest].values())

    @property
    def device(self) -> float:
        """The peak on the device."""
        return sum(self.lasting.values()) + self.transient

    @property
    def main(self) -> float:
        """The peak in main memory, without the device's part."""
        return sum(self.host.values())


def memory(
    case: Case,
    method: Contrastive,
    passes: Passes,
    looking: int,
    cost: LookUpCost,
    machine: Machine,
    *,
    saves_between: bool = True,
) -> Memory:
    """Of one process, the first: it writes.

    Args:
        case: the run.
        method: on the meta device.
        passes: of its networks.
        looking: bytes of a pass over ``probed_images``.
        cost: of its looks-up.
        machine: says what the libraries take.
        saves_between: the run is long enough for checkpoints before the last.
    """
    lasting = {
        "weights": _weights(method),
        "momentum_encoder": _bytes_of(method.momentum_encoder),
        "optimizer": _optimizer(case, method),
        case.config.method.dictionary.kind: _dictionary(case, method),
    }
    moments = _moments(case, method, passes, looking, cost, machine)
    host = {
        "libraries": machine.base_bytes,
        "list of images": float(_INDEX_BYTES * case.image_count),
        "decoded images": kept_bytes(case),
    }
    if not machine.is_one_memory:
        host |= _aside(case, method, passes)
    elif case.config.checkpoint.asynchronous and saves_between:
        host[COPY] = state_bytes(case, method)
    else:
        moments["checkpoint"]["copy"] = _copied_on_cpu(case, method)
    if machine.heap_share:
        for parts in moments.values():
            parts[HEAP] = machine.heap_share * sum(parts.values())
    return Memory({name: size for name, size in lasting.items() if size}, moments, host)


def _aside(case: Case, method: Contrastive, passes: Passes) -> dict[str, float]:
    """What lies in main memory where the device has its own."""
    views = float(case.images * case.view_values * _FLOAT_BYTES)
    found = {"views made ahead": 2 * views, COPY: state_bytes(case, method)}
    return found | ({AWAY: float(passes.away_bytes)} if passes.away_bytes else {})


def _copied_on_cpu(case: Case, method: Contrastive) -> float:
    """At a checkpoint that training waits for."""
    if case.config.checkpoint.asynchronous:
        return state_bytes(case, method)
    return rearranged_bytes(case, method)


def _dictionary(case: Case, method: Contrastive) -> float:
    """Of its largest part that a process holds; the method is built as for a single one."""
    bank = method.dictionary
    if not isinstance(bank, ShardedBank):
        return _bytes_of(bank)
    own = -(-case.image_count // case.processes) * bank.keys[0].nbytes
    return float(_bytes_of(bank) - bank.keys.nbytes + own)


def kept_bytes(case: Case) -> float:
    """Of decoded images that stay in memory; 0 where they need more than is allowed."""
    config = case.config.images
    needed = case.image_count * case.image_pixels * config.channels * (config.bits // 8)
    fits = needed <= config.cache_megabytes * 2**20 and config.cache in ("auto", "memory")
    return needed if fits else 0.0


def _moments(
    case: Case,
    method: Contrastive,
    passes: Passes,
    looking: int,
    cost: LookUpCost,
    machine: Machine,
) -> dict[str, dict[str, float]]:
    """What is held beside what lasts, moment by moment."""
    gradients = float(sum(parameter.nbytes for _, parameter in trainable(method)))
    views = float(case.images * case.view_values * _FLOAT_BYTES)
    whole = {"views": views, "gradients": gradients}
    saved = float(passes.saved_bytes)
    # Of a batch at once, the graph waits while the loss is computed; of chunks there is none yet.
    graph = saved if case.chunks == 1 else 0.0
    at_work = passes.peak_bytes - saved
    if case.config.training.precision != "fp32":  # autocast keeps a copy of each weight
        at_work += gradients / 2
    moments = {
        "loss": {"views": views, "saved for backward": graph, "loss": float(cost.bytes)},
        "networks": {**whole, "saved for backward": saved, "at work": at_work},
        "optimizer": {**whole, "at work": _at_work(case, gradients)},
        "measuring health": {
            **whole,
            "other views": float(probed_images(case) * case.view_values * _FLOAT_BYTES),
            "at work": float(looking),
        },
    }
    if machine.is_one_memory:
        moments["making views"] = {"views, old and new": 2 * views, "gradients": gradients}
        moments["checkpoint"] = dict(whole)
    shuffled = _shuffled_views(case)
    if shuffled:
        moments["shuffling"] = {"views": views, "views of all processes": shuffled}
    return moments


def probed_images(case: Case) -> int:
    """Images of which a measurement of health encodes two views each, all at once."""
    most = min(case.config.probe.images, case.image_count)
    return -(-most // max(1, most // _PROBE_VIEWS))


def _at_work(case: Case, gradients: float) -> float:
    """Copies of gradients: sent to the others in buckets, all at once; or scaled by LARS."""
    sent = gradients if case.processes > 1 else 0.0
    return max(sent, gradients if case.config.optimizer.kind == "lars" else 0.0)


def _shuffled_views(case: Case) -> float:
    """Views of the whole batch, as they come in, put together, and in their new order."""
    if case.config.norm.kind != "shuffle":
        return 0.0
    number = case.query_views - 1 if case.queries_are_keys else case.key_views
    view = case.config.images.channels * case.config.views.side_pixels**2 * _FLOAT_BYTES
    one = float(case.config.training.batch_size * view)
    kept = number * case.images * view
    return kept + (3 * one if case.processes > 1 else 0.0)


def _weights(method: Contrastive) -> float:
    parts = [method.network] + ([] if method.predictor is None else [method.predictor])
    return float(sum(map(_bytes_of, parts)))


def _bytes_of(module: object) -> float:
    if module is None:
        return 0.0
    tensors = [*module.parameters(), *module.buffers()]  # type: ignore[attr-defined]
    return float(sum(tensor.nbytes for tensor in tensors))


def _optimizer(case: Case, method: Contrastive) -> float:
    kept = (optimizer_tensors(case.config, parameter) for _, parameter in trainable(method))
    return float(sum(tensor.nbytes for one in kept for tensor in one.values()))
