"""What a run writes and reads: checkpoints and the time they take, metrics, encoded images."""

import json
from dataclasses import dataclass
from typing import Final

import torch

from diptych.checkpoints.state import RunState, trainable
from diptych.config.run import RunConfig
from diptych.methods.contrastive import Contrastive
from diptych.methods.sharded_bank import ShardedBank
from diptych.optimization.optimizers import build_optimizer
from diptych.planning.machine import Machine
from diptych.planning.planned_run import PlannedRun

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
    """What it takes to open the images before the first step, by one process of a machine.

    Attributes:
        first_seconds: when nothing is known of them: each is read, decoded and summed.
        again_seconds: every later time: names, sizes and times of change are compared.
        read_bytes: encoded images that the first time reads.
        index_bytes: what is kept of them, and read every later time.
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
    return float(copied) if at_once else float(copied) + gathered_bytes(state)


def gathered_bytes(state: RunState) -> float:
    """Of a bank in shares, which the first process gathers; 0 of any other dictionary."""
    bank = getattr(state.method, "dictionary", None)
    return float(bank.keys.nbytes) if isinstance(bank, ShardedBank) else 0.0


def writing_seconds(size: float, machine: Machine) -> float:
    """Until a checkpoint of so many bytes is on disk."""
    return _DISK_MOVES * size / machine.disk_bytes_per_second


def pause_seconds(run: PlannedRun, state: RunState, size: float, machine: Machine) -> float:
    """For which training stands still at a checkpoint of so many bytes.

    With ``checkpoint.asynchronous`` it waits for the copy of the state alone, and while a bank in
    shares is gathered.
    """
    gathered = gathered_bytes(state)
    fetched = gathered * (run.processes - 1) / run.processes / machine.network_bytes_per_second
    if not run.config.checkpoint.asynchronous:
        return fetched + writing_seconds(size, machine)
    one_memory = machine.memory_bytes_per_second / _COPY_MOVES
    rate = one_memory if machine.is_one_memory else machine.link_bytes_per_second
    return fetched + (copied_bytes(state, at_once=True) - gathered) / rate
