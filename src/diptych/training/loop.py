"""Training from where a run stands to its end: steps, metrics, checkpoints, signals."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diptych.configs import RunConfig
from diptych.contrast.dictionaries import full_size
from diptych.contrast.method import Method
from diptych.contrast.sharded_bank import whole_banks
from diptych.distributed import largest_over_processes, process_count, process_rank
from diptych.errors import ConfigError, LostPeer, TrainingError
from diptych.evaluation.symptoms import find_symptoms
from diptych.hardware import choose_device, views_device
from diptych.images.collection import Collection
from diptych.images.groups import find_groups
from diptych.images.order import Order
from diptych.optimization.optimizers import build_optimizer
from diptych.optimization.schedules import learning_rate, peak_learning_rate, twin_momentum
from diptych.peers import from_first, leave_together, who_is_missing
from diptych.run_folder import RunFolder
from diptych.training.checkpoint import load_newest, save_checkpoint
from diptych.training.health import HealthProbe, build_probe
from diptych.training.in_step import require_in_step
from diptych.training.learner import build_learner
from diptych.training.memory import keep_freed_memory
from diptych.training.run_log import RunLog, read_metrics
from diptych.training.signals import collected_signals, interruption
from diptych.training.state import RunState
from diptych.training.step import StepResult, train_step
from diptych.training.watcher import Watcher
from diptych.views.batches import Batch, ViewBatches


def train(
    config: RunConfig,
    collection: Collection,
    folder: RunFolder,
    executor: Executor,
    watcher: Watcher,
) -> RunState:
    """Trains until the last epoch ends, from the newest good checkpoint in the folder if any.

    Every process of a run calls it; the first one writes.

    Args:
        config: of the run, resolved.
        collection: the images.
        folder: of the run; checkpoints and metrics go there.
        executor: its threads make views; as many as ``config.training.threads``.
        watcher: told how it goes.

    Returns:
        The state at the end, which is also the newest checkpoint.

    Raises:
        TrainingError: the loss or a weight is not a finite number; the last checkpoint is good.
        Interrupted: SIGINT or SIGTERM came to one of the processes; a checkpoint was written first.
        PeerError: another process is gone, or holds other weights; the last checkpoint is good.
        DamagedCheckpoint: there are checkpoints, but none is good or of these images.
        ConfigError: the settings ask for labels or groups that the images do not have.
    """
    keep_freed_memory()
    images = collection.train
    order = Order(config.seed, len(images), config.training.batch_size)
    if config.method.loss.kind == "supervised" and images.labels is None:
        raise ConfigError(
            "method.loss.kind = 'supervised' needs labels: put the images of each class into a "
            "folder of its own, or choose another loss."
        )
    group_by = config.images.group_by
    groups = None if group_by is None else find_groups(images.names, group_by)
    fingerprint = images.fingerprint() + ("" if groups is None else f" {groups.fingerprint()}")
    torch.manual_seed(config.seed)  # for what a network may draw itself, as dropout does
    state = _build_state(config, collection, executor)
    _restore(state, folder, fingerprint, watcher)
    run = _Run(
        config=config,
        folder=folder,
        batches=ViewBatches(
            images,
            order,
            config.views,
            executor,
            view_count=config.method.views,
            groups=groups,
            device=views_device(config.views.applier, choose_device(config.training.device)),
        ),
        probe=build_probe(collection, config.views, executor, image_count=config.probe.images),
        state=state,
        watcher=watcher,
        fingerprint=fingerprint,
        total_steps=config.training.epochs * order.steps_per_epoch,
    )
    watcher.begin(step=state.step, total_steps=run.total_steps)
    writes = process_rank() == 0
    opened = RunLog(folder, resumed_step=state.step) if writes else nullcontext()
    with opened as log, collected_signals(patient=process_count() > 1) as received:
        try:
            run.train(log, received)
        except LostPeer as error:
            raise who_is_missing(error, state.step + 1) from error
    return state


@dataclass
class _Run:
    """One sitting of a run."""

    config: RunConfig
    folder: RunFolder
    batches: ViewBatches
    probe: HealthProbe
    state: RunState
    watcher: Watcher
    fingerprint: str
    total_steps: int
    unchecked: list[tuple[int, Tensor]] = field(default_factory=list)
    symptoms: set[str] = field(default_factory=set)

    def train(self, log: RunLog | None, received: list[int]) -> None:
        """Steps, metrics, checkpoints until the end or a signal.

        What is due when is the same on all processes; the first has a log.
        """
        state, every = self.state, self.config.checkpoint.every_seconds
        begun, earlier = time.monotonic(), state.seconds
        saved = line_time = begun
        lines = read_metrics(self.folder.metrics) if log is not None else []
        self._require_in_step()
        for batch in self._batches():
            result = self._step(batch)
            state.step += 1
            now = time.monotonic()
            state.seconds = earlier + now - begun
            last = state.step == self.total_steps
            if self._is_due(self.config.probe.log_every_steps) or last or self._health_is_due():
                self._check_losses()
                line = self._line(result, now - line_time, lines)
                line_time = time.monotonic()
                if log is not None:
                    log.write(line)
                    lines.append(line)
                    self._watch(line, lines)
            if self._is_due(self.config.training.check_every_steps):
                self._require_in_step()
            stop, due = largest_over_processes(sum(received[:1]), int(now - saved >= every))
            if stop or last or due:
                self._save()
                saved = time.monotonic()
            if stop and not last:
                leave_together()
                raise interruption(stop, state.step, self.folder)

    def _batches(self) -> Iterator[Batch]:
        steps = range(self.state.step, self.total_steps)
        device = next(self.state.method.parameters()).device
        if device.type == "cpu":  # views and network share the cores: nothing to gain ahead
            yield from map(self.batches.at, steps)
            return
        for batch in self.batches.prefetched(steps, pin=device.type == "cuda"):
            yield batch.to(device)

    def _step(self, batch: Batch) -> StepResult:
        config, state = self.config, self.state
        rate = learning_rate(
            config.schedule,
            peak=peak_learning_rate(config.optimizer, config.training.batch_size),
            step=state.step,
            steps_per_epoch=self.batches.order.steps_per_epoch,
            total_steps=self.total_steps,
        )
        momentum = twin_momentum(
            config.method.key_encoder, step=state.step, total_steps=self.total_steps
        )
        result = train_step(
            state.method, state.optimizer, batch, rate=rate, momentum=momentum, config=config
        )
        self.unchecked.append((state.step, result.look_up.loss.detach()))
        if batch.indices.device.type == "cpu":  # reading a loss there waits for nothing
            self._check_losses()
        return result

    def _check_losses(self) -> None:
        steps, losses = zip(*self.unchecked, strict=True) if self.unchecked else ((), ())
        self.unchecked.clear()
        for step, loss in zip(steps, torch.stack(losses).tolist() if losses else [], strict=True):
            if not -float("inf") < loss < float("inf"):
                raise _not_finite(f"the loss is {loss}", step + 1, self.config, self.folder)

    def _is_due(self, interval: int) -> bool:
        return self.state.step % interval == 0

    def _health_is_due(self) -> bool:
        """At the ends of some epochs, after the first step, and at the end of the run."""
        interval = self.config.probe.health_every_epochs * self.batches.order.steps_per_epoch
        return self.state.step in (1, self.total_steps) or self._is_due(interval)

    def _line(
        self, result: StepResult, seconds: float, lines: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """One line of metrics: of this very step, so that a resumed run writes the same."""
        state, found = self.state, result.look_up
        steps = state.step - (lines[-1]["step"] if lines else 0)
        views = self.config.method.views + self.config.views.small_views
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": (state.step - 1) // self.batches.order.steps_per_epoch,
            "seconds": round(state.seconds, 3),
            "loss": float(found.loss.detach()),
            "chance": found.chance_loss,
            "accuracy": float(found.accuracy),
            "candidates": found.candidates,
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "views_per_second": round(views * self.config.training.batch_size * steps / seconds, 1),
        }
        line |= state.method.figures()
        if result.gradient_norm is not None:
            line["gradient_norm"] = float(result.gradient_norm)
        if self._health_is_due():
            measure = self.probe.measure
            line |= json.loads(from_first(lambda: json.dumps(measure(state.method, self.batches))))
        return line

    def _watch(self, line: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self.watcher.metrics(line)
        for symptom in find_symptoms(lines, dictionary_size=self._full_dictionary()):
            if symptom.name not in self.symptoms:
                self.symptoms.add(symptom.name)
                self.watcher.symptom(symptom)

    def _full_dictionary(self) -> int | None:
        if self.config.distillation.teacher is not None:
            return None
        return full_size(self.config.method.dictionary, self.batches.order.image_count)

    def _save(self) -> None:
        self._check_losses()
        if not self.state.is_finite():
            raise _not_finite("a weight is not finite", self.state.step, self.config, self.folder)
        whole = whole_banks(self.state.method)  # for this all processes are needed
        from_first(lambda: self._write_checkpoint(whole))

    def _write_checkpoint(self, whole: dict[str, Tensor]) -> str:
        written = save_checkpoint(
            self.folder.checkpoints,
            self.state.tensors(whole),
            {**self.state.scalars(), "images": self.fingerprint},
            keep=self.config.checkpoint.keep,
        )
        return str(written)

    def _require_in_step(self) -> None:
        require_in_step(self.state.method, self.state.step, images=self.fingerprint)


def _build_state(config: RunConfig, collection: Collection, executor: Executor) -> RunState:
    method = build_learner(config, collection, executor).train()
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
    method.to(choose_device(config.training.device)).to(memory_format=layout)
    if config.training.compile:
        method.network.compile()
        if isinstance(method, Method) and method.twin is not None:
            method.twin.network.compile()
    return RunState(method, build_optimizer(config.optimizer, method))


def _restore(state: RunState, folder: RunFolder, fingerprint: str, watcher: Watcher) -> None:
    found = load_newest(
        folder.checkpoints, lambda why: watcher.say(f"{why} The one before it is used.")
    )
    if found is None:
        return
    tensors, scalars = found
    if scalars["images"] != fingerprint:
        raise TrainingError(
            "the images are not those that this run began with: their names, sizes or groups "
            "differ. Restore them, or begin a new run in another folder."
        )
    state.restore(tensors, scalars)
    watcher.say(f"Going on from the checkpoint after step {state.step}.")


def _not_finite(what: str, step: int, config: RunConfig, folder: RunFolder) -> TrainingError:
    kept = (
        "The last good checkpoint is intact"
        if any(folder.checkpoints.glob("step-*"))
        else "No checkpoint was due before"
    )
    return TrainingError(
        f"{what} at step {step}, so training stopped. {kept}. Try a lower "
        f"--optimizer.learning-rate (now {config.optimizer.learning_rate:g}), a longer "
        "--schedule.warmup-epochs, or --optimizer.clip-norm 1."
    )
