"""The plan of a run: operations, seconds, memory, traffic and storage, put together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from diptych.checkpoints.state import trainable
from diptych.config.consistency import require_divisible
from diptych.config.run import RunConfig
from diptych.methods.contrastive import Contrastive
from diptych.models.encoders import count_features
from diptych.models.heads import output_dim
from diptych.planning.case import Case
from diptych.planning.counted import Passes, build_on_meta, count_looking, count_passes
from diptych.planning.loss import LookUpCost, look_up_cost, tile_of
from diptych.planning.machine import Machine
from diptych.planning.memory import Memory, kept_bytes, memory, probed_images
from diptych.planning.saving import pause_seconds, writing_seconds
from diptych.planning.storage import Storage, storage
from diptych.planning.traffic import Message, messages, network_seconds

_PIXELS = 224 * 224  # of the views that a machine's views per second are given in
_OPTIMIZER_MOVES = {"sgd": 5, "lars": 12, "adamw": 7}  # reads and writes of a weight's size
_TWIN_MOVES = 3
_PIXELS_OF_A_VIEW = 500 * 375  # are decoded in the time that a view of them takes in all
_PIXELS_OF_A_FILE = 100_000  # are decoded while a file is found, opened and summed
_UNSCALE_MOVES = 2  # gradients of fp16 are read and written once more


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        case: the run.
        machine: that it is planned for.
        dim: of a vector.
        weights: numbers that are trained.
        passes: of the networks of one process in a step.
        look_up: of one process in a step.
        memory: of one process.
        messages: of a step.
        storage: of the run.
        seconds: of a step, part by part; they follow each other.
        pause_seconds: that training stands still for a checkpoint.
        opening_seconds: until every image was read and decoded once, which is done the first time
            that a set is opened on a machine.
        measured: whether the seconds of a process's own work were measured here.
    """

    case: Case
    machine: Machine
    dim: int
    weights: int
    passes: Passes
    look_up: LookUpCost
    memory: Memory
    messages: tuple[Message, ...]
    storage: Storage
    seconds: Mapping[str, float]
    pause_seconds: float = 0.0
    opening_seconds: float = 0.0
    measured: bool = False

    @property
    def step_seconds(self) -> float:
        """Of a whole step."""
        return sum(self.seconds.values())

    @property
    def checkpoint_seconds(self) -> float:
        """That a step takes on average for checkpoints, of which one waits for the other."""
        every = max(self.case.config.checkpoint.every_seconds, self.writing_seconds)
        return self.pause_seconds * self.step_seconds / max(every, self.step_seconds)

    @property
    def writing_seconds(self) -> float:
        """Until a checkpoint is on disk, whether training goes on meanwhile or not."""
        return writing_seconds(self.storage.checkpoint, self.machine)

    @property
    def days(self) -> float:
        """Of the whole run."""
        return self.case.steps * (self.step_seconds + self.checkpoint_seconds) / 86400

    @property
    def sent_bytes(self) -> float:
        """That a process sends in a step."""
        return sum(one.sent(self.case.processes) for one in self.messages)

    def as_json(self) -> dict[str, Any]:
        """All figures, in bytes, seconds and operations."""
        return {
            "processes": self.case.processes,
            "images": self.case.image_count,
            "steps": self.case.steps,
            "machine": asdict(self.machine),
            "measured": self.measured,
            "weights": self.weights,
            "flops": {**asdict(self.passes), "look_up": self.look_up.flops},
            "seconds": dict(self.seconds),
            "step_seconds": self.step_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "pause_seconds": self.pause_seconds,
            "writing_seconds": self.writing_seconds,
            "opening_seconds": self.opening_seconds,
            "days": self.days,
            "memory": {
                "lasting": dict(self.memory.lasting),
                "moments": {name: dict(parts) for name, parts in self.memory.moments.items()},
                "host": dict(self.memory.host),
                "device_bytes": self.memory.device,
                "host_bytes": self.memory.main,
            },
            "messages": [
                {**asdict(one), "sent": one.sent(self.case.processes)} for one in self.messages
            ],
            "storage": asdict(self.storage),
        }


def make_plan(
    case: Case,
    machine: Machine,
    *,
    measured: Mapping[str, float] | None = None,
    opening: float | None = None,
) -> Plan:
    """Plans a run.

    Args:
        case: the run.
        machine: what it runs on.
        measured: seconds of parts that were measured, in place of those by the machine's rates.
        opening: seconds to open the images for the first time, where that was measured.

    Raises:
        ConfigError: the processes cannot share the batch, or settings do not go together.
    """
    if case.processes > 1:
        require_divisible(case.config, case.processes)
    method = build_on_meta(case.config, case.image_count)
    dim = _dim(case, method)
    device = "cpu" if machine.is_one_memory else "cuda"
    config = _of_one_process(case, machine)
    passes, looking = _counted(config, case.images, probed_images(case))
    cost = look_up_cost(case, dim, tile=tile_of(device))
    told = messages(case, method, dim)
    seconds = {
        **_own_seconds(case, method, passes, cost, machine),
        **(measured or {}),
        "network": network_seconds(told, case.processes, machine),
    }
    between = case.steps * sum(seconds.values()) >= case.config.checkpoint.every_seconds
    files = storage(case, method, kept=bool(kept_bytes(case)))
    plan = Plan(
        case=case,
        machine=machine,
        dim=dim,
        weights=sum(parameter.numel() for _, parameter in trainable(method)),
        passes=passes,
        look_up=cost,
        memory=memory(case, method, passes, looking, cost, machine, saves_between=between),
        messages=tuple(told),
        storage=files,
        seconds=seconds,
        pause_seconds=pause_seconds(case, method, files.checkpoint, machine),
        opening_seconds=opening_seconds(case, machine) if opening is None else opening,
        measured=measured is not None,
    )
    return plan if machine.is_one_memory else _with_views_ahead(plan)


def opening_seconds(case: Case, machine: Machine) -> float:
    """Of reading and decoding all images once, by one process, by the machine's rates."""
    pixels_per_second = machine.views_per_second * _PIXELS_OF_A_VIEW
    return case.image_count * max(
        (case.image_pixels + _PIXELS_OF_A_FILE) / pixels_per_second,
        case.image_bytes / machine.read_bytes_per_second,
    )


@lru_cache(maxsize=64)
def _counted(config: RunConfig, images: int, looked: int) -> tuple[Passes, int]:
    """Passes of a step, and bytes of a pass that looks: the same however many processes there are.

    Counted once, as plans for many machines and processes are often asked for together.
    """
    method = build_on_meta(config, 1)
    return count_passes(config, method, images), count_looking(config, method, looked)


def _of_one_process(case: Case, machine: Machine) -> RunConfig:
    """The config of a run whose batch is one process's share, with what a count does not read."""
    plain, given = RunConfig(), case.config.training
    away = given.offload_activations and not machine.is_one_memory
    training = replace(given, batch_size=case.images, epochs=1, offload_activations=away)
    return replace(
        case.config, training=training, checkpoint=plain.checkpoint, optimizer=plain.optimizer
    )


def _own_seconds(
    case: Case, method: Contrastive, passes: Passes, cost: LookUpCost, machine: Machine
) -> dict[str, float]:
    """Seconds of what one process does by itself, by the machine's rates."""
    precision = case.config.training.precision
    weights = float(sum(parameter.nbytes for _, parameter in trainable(method)))
    moves = _OPTIMIZER_MOVES[case.config.optimizer.kind] * weights
    if method.momentum_encoder is not None:
        moves += _TWIN_MOVES * weights
    if precision == "fp16":
        moves += _UNSCALE_MOVES * weights
    values = case.images * case.view_values / case.config.images.channels
    first_keys = case.first_key_views * passes.forward_flops / case.query_views
    return {
        "reads and views": max(
            values / _PIXELS / machine.views_per_second,
            (0.0 if kept_bytes(case) else case.image_bytes * case.images)
            / machine.read_bytes_per_second,
        ),
        "networks": (passes.flops + first_keys) / machine.sustained(precision),
        "look-up": cost.flops / machine.flops_per_second,
        "optimizer and momentum encoder": moves / machine.memory_bytes_per_second,
        "the rest": machine.spent_seconds,
        **_away_seconds(case, passes, machine),
    }


def _away_seconds(case: Case, passes: Passes, machine: Machine) -> dict[str, float]:
    """Of saved activations on their way to main memory and back; nothing is computed meanwhile."""
    travelled = 2 * passes.away_bytes * case.chunks
    return {"offloading": travelled / machine.link_bytes_per_second} if travelled else {}


def _with_views_ahead(plan: Plan) -> Plan:
    """On an accelerator the next views are made meanwhile: only what is longer counts."""
    seconds = dict(plan.seconds)
    views = seconds.pop("reads and views")
    waited = max(0.0, views - sum(seconds.values()))
    return replace(plan, seconds={"waiting for views": waited, **seconds})


def _dim(case: Case, method: Contrastive) -> int:
    side, channels = case.config.views.side_pixels, case.config.images.channels
    if case.config.head.layers:
        return case.config.head.output_features
    with torch.device("meta"):
        features = count_features(method.encoder, channels=channels, side_pixels=side)
    return output_dim(case.config.head, features)
