"""What a run holds, writes and reads: memory of a process, checkpoints, metrics, encoded images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from diptych.checkpoints.state import RunState, trainable
from diptych.config.run import RunConfig
from diptych.methods.contrastive import Contrastive
from diptych.methods.sharded_bank import ShardedBank
from diptych.optimization.optimizers import build_optimizer
from diptych.planning.compute import LogitsCost, NetworkCost
from diptych.planning.machine import Machine
from diptych.planning.planned_run import PlannedRun

COPY: Final = "copy for checkpoints"
HEAP: Final = "free in the heap"
AWAY: Final = "saved activations"
_FLOAT_BYTES: Final = 4
_PROBE_VIEWS: Final = 512  # pairs of views that a measurement of health makes at once, at most
# Of each image: height, width; start, end and bytes of its name; where its bytes lie, and how many;
# the order of this epoch, of the last, and the shuffling's own copy.
_LISTED_BYTES: Final = 8 + 8 + 8 + 8 + 30 + 8 + 8 + 3 * 8
_LINE_BYTES: Final = 1400  # of metrics.jsonl and as TensorBoard's events, measured
_OTHERS_BYTES: Final = 1600  # of several processes: the times of the slowest, and the median
_STATE_FILES_BYTES: Final = 600  # state.json and manifest.json
_COPY_MOVES: Final = 2  # in one memory: read, and written
_DISK_MOVES: Final = 2  # summed and written, and the wait until it is on disk
_PIXELS_OF_A_VIEW: Final = 500 * 375  # are decoded in the time that a view of them takes in all
_PIXELS_OF_A_FILE: Final = 100_000  # are decoded while a file is found, opened and summed
# Of each file in the index: six columns, size and time of change, the end of its name, its name.
_INDEX_ROW_BYTES: Final = 3 * 8 + 1 + 16 + 8 + 16 + 8 + 30
_FILE_SECONDS: Final = 12e-6  # to find a file unchanged; benchmarks/opening.py: 11 to 14 of them


@dataclass(frozen=True)
class ImageOpening:
    """The time to open the images before the first step, by one process of a machine.

    Attributes:
        first_seconds: without an index: each is read, decoded and summed.
        again_seconds: with an index: names, sizes and times of change are compared.
        read_bytes: encoded images that the first time reads.
        index_bytes: of the index.
        measured: on some of the images, instead of by the machine's rates.
    """

    first_seconds: float
    again_seconds: float
    read_bytes: float
    index_bytes: float
    measured: bool = False


def opening_by_rates(run: PlannedRun, machine: Machine) -> ImageOpening:
    """By what the cores of a process decode, or what they can read where that takes longer."""
    pixels = (run.image_pixels + _PIXELS_OF_A_FILE) / _PIXELS_OF_A_VIEW
    read_seconds = run.image_bytes / machine.read_bytes_per_second
    return ImageOpening(
        first_seconds=run.image_count * max(pixels / machine.views_per_second, read_seconds),
        again_seconds=run.image_count * _FILE_SECONDS,
        read_bytes=run.image_count * run.image_bytes,
        index_bytes=float(run.image_count * _INDEX_ROW_BYTES),
    )


@dataclass(frozen=True)
class Storage:
    """Bytes on disk.

    Attributes:
        checkpoint: of one.
        checkpoints: of all that are kept, and of the one being written.
        metrics: of the whole run.
        read_per_step: encoded images that one process reads for a step; 0 where they are kept.
        read_per_epoch: by all processes.
    """

    checkpoint: int
    checkpoints: int
    metrics: int
    read_per_step: float
    read_per_epoch: float


def state_after_a_step(config: RunConfig, method: Contrastive) -> RunState:
    """A run's state once all weights have moved: the real optimizer makes a step without memory.

    Args:
        config: of the run.
        method: on the meta device.
    """
    optimizer = build_optimizer(config.optimizer, method)
    for group in optimizer.param_groups:
        group["fused"] = False  # a kernel of devices that hold numbers
    for _, parameter in trainable(method):
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return RunState(method, optimizer)


def storage(run: PlannedRun, state: RunState) -> Storage:
    """What a run with this state writes, and reads while it trains."""
    checkpoint = checkpoint_bytes(state)
    lines = run.steps // run.config.probe.log_every_steps + 1
    return Storage(
        checkpoint=checkpoint,
        checkpoints=checkpoint * (run.config.checkpoint.keep + 1),
        metrics=lines * (_LINE_BYTES + _OTHERS_BYTES * (run.processes > 1)),
        read_per_step=0.0 if run.kept_bytes else run.image_bytes * run.images,
        read_per_epoch=run.image_bytes * run.image_count,
    )


def checkpoint_bytes(state: RunState) -> int:
    """Bytes of a checkpoint: every tensor of the state, and safetensors' list of them."""
    tensors = state.named_tensors()
    header = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]}
        for name, tensor in tensors.items()
    }
    listed = len(json.dumps(header, separators=(",", ":"))) + 10 * len(header)
    return sum(tensor.nbytes for tensor in tensors.values()) + listed + _STATE_FILES_BYTES


def copied_bytes(state: RunState, *, at_once: bool) -> float:
    """Of a copy of the state for a checkpoint.

    Args:
        state: of the run.
        at_once: all of it is copied, as beside training; else only what is gathered, or does not
            lie in order.
    """
    tensors = state.named_tensors().values()
    copied = sum(tensor.nbytes for tensor in tensors if at_once or not tensor.is_contiguous())
    return copied + (0.0 if at_once else gathered_bytes(state))


def gathered_bytes(state: RunState) -> float:
    """Of a sharded bank, which the first process gathers; 0 of any other dictionary."""
    bank = getattr(state.method, "dictionary", None)
    return float(bank.keys.nbytes) if isinstance(bank, ShardedBank) else 0.0


def writing_seconds(size: float, machine: Machine) -> float:
    """Until a checkpoint of so many bytes is on disk."""
    return _DISK_MOVES * size / machine.disk_bytes_per_second


def pause_seconds(run: PlannedRun, state: RunState, size: float, machine: Machine) -> float:
    """For which training waits at a checkpoint of so many bytes.

    With ``checkpoint.asynchronous`` that is the copy of the state and the gathering of a sharded
    bank alone.
    """
    gathered = gathered_bytes(state)
    fetched = gathered * (run.processes - 1) / run.processes / machine.network_bytes_per_second
    if not run.config.checkpoint.asynchronous:
        return fetched + writing_seconds(size, machine)
    one_memory = machine.memory_bytes_per_second / _COPY_MOVES
    rate = one_memory if machine.is_one_memory else machine.link_bytes_per_second
    return fetched + (copied_bytes(state, at_once=True) - gathered) / rate


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
    def device(self) -> float:
        """The peak on the device."""
        return sum(self.lasting.values()) + sum(self.moments[self.fullest].values())

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
    """Of the first process, which also writes checkpoints.

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
        "weights": _bytes_of(method.network, method.predictor, _own(method, "dense_head")),
        "momentum_encoder": _bytes_of(method.momentum_encoder, _own(method, "dense_momentum")),
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
        host |= {"views made ahead": 2 * _view_bytes(run, run.images), COPY: copy}
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
    # As many as `build_health` keeps when it takes every n-th image.
    return -(-most // max(1, most // _PROBE_VIEWS))


def _moments(
    run: PlannedRun,
    method: Contrastive,
    networks: NetworkCost,
    logits: LogitsCost,
    evaluation: int,
    machine: Machine,
) -> dict[str, dict[str, float]]:
    """What is held beside what lasts, by moment of a step."""
    gradients = float(sum(one.nbytes for _, one in trainable(method)))
    views = _view_bytes(run, run.images)
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
            "other views": _view_bytes(run, probed_images(run)),
            "at work": float(evaluation),
        },
    }
    if machine.is_one_memory:
        moments["making views"] = {"views, old and new": 2 * views, "gradients": gradients}
        moments["checkpoint"] = dict(whole)
    if run.shuffled_views:
        moments["shuffling"] = {"views": views, "views of all processes": _shuffling(run)}
    return moments


def _view_bytes(run: PlannedRun, images: int) -> float:
    return float(images * run.view_values * _FLOAT_BYTES)


def _dictionary(run: PlannedRun, method: Contrastive) -> float:
    """Of the largest share that a process holds; the method is built as for a single process."""
    bank = method.dictionary
    if not isinstance(bank, ShardedBank):
        return _bytes_of(bank, _own(method, "dense_queue"))  # type: ignore[arg-type]
    share = -(-run.learned_images // run.processes) * bank.keys[0].nbytes
    return _bytes_of(bank) - bank.keys.nbytes + share


def _shuffling(run: PlannedRun) -> float:
    """Views of the whole batch, as they come in, put together, and in their new order."""
    view = run.config.images.channels * run.config.views.side_pixels**2 * _FLOAT_BYTES
    kept = run.shuffled_views * run.images * view
    return float(kept + (3 * run.config.training.batch_size * view if run.processes > 1 else 0))


def _own(method: Contrastive, name: str) -> nn.Module | None:
    """A part that only some methods have."""
    return dict(method.named_children()).get(name)


def _bytes_of(*modules: nn.Module | None) -> float:
    """Of weights and buffers."""
    there = [module for module in modules if module is not None]
    tensors = [tensor for one in there for tensor in (*one.parameters(), *one.buffers())]
    return float(sum(tensor.nbytes for tensor in tensors))
