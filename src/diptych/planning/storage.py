"""What a run writes and reads: checkpoints, metrics, encoded images."""

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.checkpoints.state import trainable
from diptych.config.run import RunConfig
from diptych.methods.contrastive import Contrastive
from diptych.planning.case import Case

_LINE_BYTES = 1400  # of metrics.jsonl and as TensorBoard's events, measured
_OTHERS_BYTES = 1600  # of several processes: the times of the slowest, and the median
_STATE_FILES_BYTES = 600  # state.json and manifest.json


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


def storage(case: Case, method: Contrastive, *, kept: bool) -> Storage:
    """What a run writes and reads.

    Args:
        case: the run.
        method: as it is built, on any device.
        kept: decoded images are kept, so that files are read once only.
    """
    one = checkpoint_bytes(case.config, method)
    lines = case.steps // case.config.probe.log_every_steps + 1
    per_image = 0.0 if kept else case.image_bytes
    return Storage(
        checkpoint=one,
        checkpoints=one * (case.config.checkpoint.keep + 1),
        metrics=lines * (_LINE_BYTES + _OTHERS_BYTES * (case.processes > 1)),
        read_per_step=per_image * case.images,
        read_per_epoch=case.image_bytes * case.image_count,
    )


def checkpoint_bytes(config: RunConfig, method: Contrastive) -> int:
    """Bytes of a checkpoint: every tensor of the state, and safetensors' list of them."""
    tensors = state_tensors(config, method)
    header = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]}
        for name, tensor in tensors.items()
    }
    listed = len(json.dumps(header, separators=(",", ":"))) + 10 * len(header)
    return sum(tensor.nbytes for tensor in tensors.values()) + listed + _STATE_FILES_BYTES


def state_tensors(config: RunConfig, method: Contrastive) -> dict[str, Tensor]:
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
