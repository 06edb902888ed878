"""What a run writes and reads: checkpoints and the time they take, metrics, encoded images."""

import json
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from diptych.checkpoints.state import trainable
from diptych.config.sections import RunConfig
from diptych.methods.contrastive import Method
from diptych.methods.sharded_bank import ShardedBank
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
FILE_SECONDS: Final = 12e-6  # to find a file unchanged; benchmarks/opening.py: 11 to 14 of them


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
        again_seconds=run.image_count * FILE_SECONDS,
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


def storage(run: PlannedRun, method: Method) -> Storage:
    """What a run writes, and reads while it trains.

    Args:
        run: that is planned.
        method: as it is built, on any device.
    """
    checkpoint = checkpoint_bytes(run.config, method)
    lines = run.steps // run.config.probe.log_every_steps + 1
    return Storage(
        checkpoint=checkpoint,
        checkpoints=checkpoint * (run.config.checkpoint.keep + 1),
        metrics=lines * (_LINE_BYTES + _OTHERS_BYTES * (run.processes > 1)),
        read_per_step=0.0 if run.keeps_decoded else run.image_bytes * run.images,
        read_per_epoch=run.image_bytes * run.image_count,
    )


def checkpoint_bytes(config: RunConfig, method: Method) -> int:
    """Bytes of a checkpoint: every tensor of the state, and safetensors' list of them."""
    tensors = state_tensors(config, method)
    header = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]}
        for name, tensor in tensors.items()
    }
    listed = len(json.dumps(header, separators=(",", ":"))) + 10 * len(header)
    return sum(tensor.nbytes for tensor in tensors.values()) + listed + _STATE_FILES_BYTES


def state_tensors(config: RunConfig, method: Method) -> dict[str, Tensor]:
    """What ``RunState.tensors`` will hold once all weights have moved, by the same names."""
    found: dict[str, Tensor] = {f"method/{k}": v for k, v in method.state_dict().items()}
    for name, parameter in trainable(method):
        for key, value in optimizer_tensors(config, parameter).items():
            found[f"optimizer/{name}/{key}"] = value
    found["generator/cpu"] = torch.get_rng_state()
    return found


def optimizer_tensors(config: RunConfig, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter."""
    like = torch.empty_like(parameter, device="meta")
    if config.optimizer.kind == "adamw":
        step = torch.empty((), device="meta")
        return {"step": step, "exp_avg": like, "exp_avg_sq": like}
    if config.optimizer.kind == "sgd" and config.optimizer.momentum == 0:
        return {}
    return {"momentum_buffer": like}


def state_bytes(config: RunConfig, method: Method) -> float:
    """Of all tensors of a checkpoint; a copy of them, wherever they are."""
    return float(sum(tensor.nbytes for tensor in state_tensors(config, method).values()))


def gathered_bytes(method: Method) -> float:
    """Of a bank in shares, which the first process gathers; 0 of any other dictionary."""
    bank = method.dictionary
    return float(bank.keys.nbytes) if isinstance(bank, ShardedBank) else 0.0


def rearranged_bytes(config: RunConfig, method: Method) -> float:
    """Copied on a CPU where nothing is copied beforehand: what is gathered, or not contiguous."""
    tensors = state_tensors(config, method).values()
    copied = sum(tensor.nbytes for tensor in tensors if not tensor.is_contiguous())
    return float(copied) + gathered_bytes(method)


def writing_seconds(size: float, machine: Machine) -> float:
    """Until a checkpoint of so many bytes is on disk."""
    return _DISK_MOVES * size / machine.disk_bytes_per_second


def pause_seconds(run: PlannedRun, method: Method, size: float, machine: Machine) -> float:
    """For which training stands still at a checkpoint of so many bytes.

    With ``checkpoint.asynchronous`` it waits for the copy of the state alone, and while a bank in
    shares is gathered.
    """
    gathered = gathered_bytes(method)
    fetched = gathered * (run.processes - 1) / run.processes / machine.network_bytes_per_second
    if not run.config.checkpoint.asynchronous:
        return fetched + writing_seconds(size, machine)
    one_memory = machine.memory_bytes_per_second / _COPY_MOVES
    rate = one_memory if machine.is_one_memory else machine.link_bytes_per_second
    return fetched + (state_bytes(run.config, method) - gathered) / rate
