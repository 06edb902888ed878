"""What one process holds in memory: what stays through a run, and what a step needs at its peak."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import nn

from diptych.checkpoints.state import RunState, trainable
from diptych.methods.contrastive import Contrastive
from diptych.methods.sharded_bank import ShardedBank
from diptych.planning.compute import LogitsCost, NetworkCost
from diptych.planning.machine import Machine
from diptych.planning.planned_run import PlannedRun
from diptych.planning.storage import copied_bytes

COPY: Final = "copy for checkpoints"
HEAP: Final = "free in the heap"
AWAY: Final = "saved activations"
_FLOAT_BYTES = 4
_PROBE_VIEWS = 512  # pairs of views that a measurement of health makes at once, at most
# Of each image: height, width; start, end and bytes of its name; where its bytes lie, and how many;
# the order of this epoch, of the last, and the shuffling's own copy.
_LISTED_BYTES = 8 + 8 + 8 + 8 + 30 + 8 + 8 + 3 * 8


@dataclass(frozen=True)
class MemoryPlan:
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


def plan_memory(
    run: PlannedRun,
    state: RunState,
    networks: NetworkCost,
    logits: LogitsCost,
    evaluation: int,
    machine: Machine,
    *,
    saves_between: bool = True,
) -> MemoryPlan:
    """Of one process, the first: it writes.

    Args:
        run: that is planned.
        state: once all weights have moved.
        networks: of a step.
        logits: of a step.
        evaluation: bytes of a pass over ``probed_images`` in evaluation mode.
        machine: says what the libraries take.
        saves_between: the run is long enough for checkpoints before the last.
    """
    method, kept = state.method, state.optimizer.state.values()
    assert isinstance(method, Contrastive)
    lasting = {
        "weights": _bytes_of(method.network, method.predictor),
        "momentum_encoder": _bytes_of(method.momentum_encoder),
        "optimizer": float(sum(tensor.nbytes for one in kept for tensor in one.values())),
        run.dictionary: _dictionary(run, method),
    }
    moments = _moments(run, method, networks, logits, evaluation, machine)
    host = {
        "libraries": machine.base_bytes,
        "list of images": float(_LISTED_BYTES * run.image_count),
        "decoded images": run.kept_bytes,
    }
    copy = copied_bytes(state, at_once=True)
    if not machine.is_one_memory:
        host |= {"views made ahead": 2 * _views(run), COPY: copy}
        host |= {AWAY: float(networks.away_bytes)} if networks.away_bytes else {}
    elif run.config.checkpoint.asynchronous and saves_between:
        host[COPY] = copy
    else:  # training waits for the only copy, at the end
        copy = copied_bytes(state, at_once=run.config.checkpoint.asynchronous)
        moments["checkpoint"]["copy"] = copy
    if machine.heap_share:
        for parts in moments.values():
            parts[HEAP] = machine.heap_share * sum(parts.values())
    return MemoryPlan({name: size for name, size in lasting.items() if size}, moments, host)


def probed_images(run: PlannedRun) -> int:
    """Images of which a measurement of health encodes two views each, all at once."""
    most = min(run.config.probe.images, run.image_count)
    return -(-most // max(1, most // _PROBE_VIEWS))


def _moments(
    run: PlannedRun,
    method: Contrastive,
    networks: NetworkCost,
    logits: LogitsCost,
    evaluation: int,
    machine: Machine,
) -> dict[str, dict[str, float]]:
    """What is held beside what lasts, moment by moment."""
    gradients, views = float(sum(one.nbytes for _, one in trainable(method))), _views(run)
    whole, saved = {"views": views, "gradients": gradients}, float(networks.saved_bytes)
    # Copies of gradients: on their way to the others in buckets, all at once; or scaled by LARS.
    copied = gradients * (run.processes > 1 or run.config.optimizer.kind == "lars")
    moments = {
        # Of a batch at once, the graph waits while the loss is computed; of chunks there is none.
        "loss": {
            "views": views,
            "saved for backward": saved * (run.chunks == 1),
            "loss": float(logits.bytes),
        },
        "networks": {**whole, "saved for backward": saved, "at work": networks.peak_bytes - saved},
        "optimizer": {**whole, "at work": copied},
        "measuring health": {
            **whole,
            "other views": float(probed_images(run) * run.view_values * _FLOAT_BYTES),
            "at work": float(evaluation),
        },
    }
    if machine.is_one_memory:
        moments["making views"] = {"views, old and new": 2 * views, "gradients": gradients}
        moments["checkpoint"] = dict(whole)
    if run.shuffled_views:
        moments["shuffling"] = {"views": views, "views of all processes": _shuffling(run)}
    return moments


def _views(run: PlannedRun) -> float:
    return float(run.images * run.view_values * _FLOAT_BYTES)


def _dictionary(run: PlannedRun, method: Contrastive) -> float:
    """Of its largest part that a process holds; the method is built as for a single one."""
    bank = method.dictionary
    if not isinstance(bank, ShardedBank):
        return _bytes_of(bank)  # type: ignore[arg-type]
    share = -(-run.image_count // run.processes) * bank.keys[0].nbytes
    return _bytes_of(bank) - bank.keys.nbytes + share


def _shuffling(run: PlannedRun) -> float:
    """Views of the whole batch, as they come in, put together, and in their new order."""
    view = run.config.images.channels * run.config.views.side_pixels**2 * _FLOAT_BYTES
    kept = run.shuffled_views * run.images * view
    return float(kept + (3 * run.config.training.batch_size * view if run.processes > 1 else 0))


def _bytes_of(*modules: nn.Module | None) -> float:
    """Of weights and buffers."""
    there = [module for module in modules if module is not None]
    tensors = [tensor for one in there for tensor in (*one.parameters(), *one.buffers())]
    return float(sum(tensor.nbytes for tensor in tensors))
