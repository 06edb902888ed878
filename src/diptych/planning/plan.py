"""The plan of a run: operations, seconds, memory, traffic and storage, put together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from diptych.checkpoints.state import trainable
from diptych.config.consistency import require_divisible
from diptych.config.run import RunConfig
from diptych.methods.contrastive import Contrastive
from diptych.methods.logits import tile_of
from diptych.planning.compute import (
    LogitsCost,
    NetworkCost,
    build_on_meta,
    count_networks,
    evaluation_peak,
    logits_cost,
    places_of,
    vector_dim,
)
from diptych.planning.machine import Machine
from diptych.planning.planned_run import PlannedRun, PlanRequest, resolve_run
from diptych.planning.storage import (
    ImageOpening,
    MemoryPlan,
    Storage,
    opening_by_rates,
    pause_seconds,
    plan_memory,
    probed_images,
    state_after_a_step,
    storage,
    writing_seconds,
)
from diptych.planning.traffic import Message, messages, network_seconds

_PIXELS: Final = 224 * 224  # of the views that a machine's views per second are given in
_OPTIMIZER_MOVES: Final = {"sgd": 5, "lars": 12, "adamw": 7}  # times a weight is read or written
_MOMENTUM_MOVES: Final = 3
_UNSCALE_MOVES: Final = 2  # gradients of fp16 are read and written once more


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        run: that is planned.
        machine: that it is planned for.
        weights: numbers that are trained.
        networks: of one process in a step.
        logits: of one process in a step.
        memory: of one process.
        messages: of a step.
        storage: of the run.
        seconds: of a step, part by part; they follow each other.
        opening: of the images, before the first step.
        pause_seconds: that training stands still for a checkpoint.
        measured: whether the seconds of a process's own work were measured here.
    """

    run: PlannedRun
    machine: Machine
    weights: int
    networks: NetworkCost
    logits: LogitsCost
    memory: MemoryPlan
    messages: tuple[Message, ...]
    storage: Storage
    seconds: Mapping[str, float]
    opening: ImageOpening
    pause_seconds: float = 0.0
    measured: bool = False

    @property
    def step_seconds(self) -> float:
        """Of a whole step."""
        return sum(self.seconds.values())

    @property
    def checkpoint_seconds(self) -> float:
        """That a step takes on average for checkpoints; one begins when the last is written."""
        every = max(self.run.config.checkpoint.every_seconds, self.writing_seconds)
        return self.pause_seconds * self.step_seconds / max(every, self.step_seconds)

    @property
    def writing_seconds(self) -> float:
        """Until a checkpoint is on disk, beside training or not."""
        return writing_seconds(self.storage.checkpoint, self.machine)

    @property
    def days(self) -> float:
        """Of all steps; the images are open."""
        return self.run.steps * (self.step_seconds + self.checkpoint_seconds) / 86400

    @property
    def sent_bytes(self) -> float:
        """That a process sends in a step."""
        return sum(one.sent(self.run.processes) for one in self.messages)

    def as_json(self) -> dict[str, Any]:
        """All figures, in bytes, seconds and operations."""
        return {
            "processes": self.run.processes,
            "images": self.run.image_count,
            "steps": self.run.steps,
            "machine": asdict(self.machine),
            "measured": self.measured,
            "weights": self.weights,
            "flops": {**asdict(self.networks), "logits": self.logits.flops},
            "seconds": dict(self.seconds),
            "step_seconds": self.step_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "pause_seconds": self.pause_seconds,
            "writing_seconds": self.writing_seconds,
            "opening_seconds": self.opening.first_seconds,
            "opening": asdict(self.opening),
            "days": self.days,
            "memory": {
                "lasting": dict(self.memory.lasting),
                "moments": {name: dict(parts) for name, parts in self.memory.moments.items()},
                "host": dict(self.memory.host),
                "device_bytes": self.memory.device,
                "host_bytes": self.memory.main,
            },
            "messages": [
                {**asdict(one), "sent": one.sent(self.run.processes)} for one in self.messages
            ],
            "storage": asdict(self.storage),
        }


def plan_run(
    request: PlanRequest, settings: Mapping[str, Any], config_file: Path | None = None
) -> Plan:
    """Plans what is asked for; arguments and errors as of ``resolve_run``."""
    run, images = resolve_run(request, settings, config_file)
    if images is None and not request.measure:
        return make_plan(run, request.machine)
    # Only now: this module loads the kernels that make views.
    from diptych.planning.measure import measure_opening, measure_step

    opening = None if images is None else measure_opening(run, request.machine)
    if not request.measure:
        return make_plan(run, request.machine, opening=opening)
    machine, seconds = measure_step(run, request.machine, images, local=request.processes_here)
    return make_plan(run, machine, measured=seconds, opening=opening)


def make_plan(
    run: PlannedRun,
    machine: Machine,
    *,
    measured: Mapping[str, float] | None = None,
    opening: ImageOpening | None = None,
) -> Plan:
    """Plans a run.

    Args:
        run: to plan.
        machine: what it runs on.
        measured: seconds of parts that were measured, in place of those by the machine's rates.
        opening: of the images, where that was measured.

    Raises:
        ConfigError: the processes cannot share the batch, or settings do not go together.
    """
    if run.processes > 1:
        require_divisible(run.config, run.processes)
    method = build_on_meta(run.config, run.learned_images)
    dim = vector_dim(run.config, method)
    networks, evaluation = _counted(_counted_config(run, machine), run.images, probed_images(run))
    tile = tile_of("cpu" if machine.is_one_memory else "cuda")
    logits = logits_cost(run, dim, tile=tile, places=places_of(method))
    sent = messages(run, method, dim)
    seconds = {
        **_rated_seconds(run, method, networks, logits, machine),
        **(measured or {}),
        "network": network_seconds(sent, run.processes, machine),
    }
    if not machine.is_one_memory:
        # The next views are made beside the step, which waits only for what takes longer.
        views = seconds.pop("reads and views")
        seconds = {"waiting for views": max(0.0, views - sum(seconds.values())), **seconds}
    between = run.steps * sum(seconds.values()) >= run.config.checkpoint.every_seconds
    state = state_after_a_step(run.config, method)
    files = storage(run, state)
    return Plan(
        run=run,
        machine=machine,
        weights=sum(parameter.numel() for _, parameter in trainable(method)),
        networks=networks,
        logits=logits,
        memory=plan_memory(
            run, state, networks, logits, evaluation, machine, saves_between=between
        ),
        messages=tuple(sent),
        storage=files,
        seconds=seconds,
        opening=opening_by_rates(run, machine) if opening is None else opening,
        pause_seconds=pause_seconds(run, state, files.checkpoint, machine),
        measured=measured is not None,
    )


@lru_cache(maxsize=64)
def _counted(config: RunConfig, images: int, probed: int) -> tuple[NetworkCost, int]:
    """A step, and bytes of an evaluation; kept, as many machines and processes share a count."""
    return count_networks(config, images), evaluation_peak(config, probed)


def _counted_config(run: PlannedRun, machine: Machine) -> RunConfig:
    """The config with a process's share as its batch, and without what a count does not read."""
    plain, config = RunConfig(), run.of_one_process().config
    away = config.training.offload_activations and not machine.is_one_memory
    training = replace(config.training, epochs=plain.training.epochs, offload_activations=away)
    return replace(
        config, training=training, checkpoint=plain.checkpoint, optimizer=plain.optimizer
    )


def _rated_seconds(
    run: PlannedRun,
    method: Contrastive,
    networks: NetworkCost,
    logits: LogitsCost,
    machine: Machine,
) -> dict[str, float]:
    """Seconds of what one process does by itself, by the machine's rates."""
    precision = run.config.training.precision
    weights = float(sum(parameter.nbytes for _, parameter in trainable(method)))
    moves = _OPTIMIZER_MOVES[run.config.optimizer.kind]
    moves += _MOMENTUM_MOVES * (method.momentum_encoder is not None)
    moves += _UNSCALE_MOVES * (precision == "fp16")
    values = run.images * run.view_values / run.config.images.channels
    read = 0.0 if run.kept_bytes else run.image_bytes * run.images
    seconds = {
        "reads and views": max(
            values / _PIXELS / machine.views_per_second, read / machine.read_bytes_per_second
        ),
        "networks": networks.flops / machine.sustained(precision),
        "logits": logits.flops / machine.flops_per_second,
        "optimizer and momentum encoder": moves * weights / machine.memory_bytes_per_second,
        "the rest": machine.spent_seconds,
    }
    if networks.away_bytes:  # there and back; nothing is computed meanwhile
        travelled = 2 * networks.away_bytes * run.chunks
        seconds["offloading"] = travelled / machine.link_bytes_per_second
    return seconds
