"""Training to the end of a run: steps, metrics, checkpoints, signals."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from diptych.checkpoints.saver import Saver
from diptych.checkpoints.state import RunState, fingerprint_of
from diptych.checkpoints.stores import CheckpointLocation, checkpoint_location
from diptych.config.files import to_toml
from diptych.config.run import OWN, RunConfig
from diptych.errors import (
    FeaturesError,
    FirstStopped,
    Interrupted,
    LostProcess,
    TrainingError,
)
from diptych.escaping import quoted
from diptych.images.collection import Collection
from diptych.logging.metrics import RunLog
from diptych.logging.progress import Symptom, Watcher
from diptych.logging.times import profiled, time_metrics
from diptych.methods.build import NOTHING_OWN, OwnParts
from diptych.methods.method import Method, StepOutput
from diptych.methods.sharded_bank import whole_banks
from diptych.models.parts import FrozenParts
from diptych.optimization.loss_scale import LEAST_SCALE
from diptych.optimization.optimizers import (
    encoder_momentum,
    learning_rate,
    peak_learning_rate,
    weight_decay,
)
from diptych.runs.folder import RunFolder, load_record
from diptych.runtime.devices import choose_device, keep_freed_memory, views_device
from diptych.runtime.distributed import largest_over_processes, process_count, process_rank
from diptych.runtime.rendezvous import name_missing, run_on_first, wait_for_all
from diptych.runtime.stopwatch import Stopwatch, watch
from diptych.training.clock import TimeBudget, length_in_words, plan_in_words, taken_in_words
from diptych.training.setup import (
    begun_before,
    build_state,
    frozen_parts,
    keep_config,
    keep_untrained,
    not_finite,
    open_log,
    require_labels,
    restore,
    start_file,
)
from diptych.training.signals import collected_signals
from diptych.training.step import require_synchronized, train_step
from diptych.views.batches import Batch, Order, ViewBatches, learned_images

_NO_END: Final = 2**40  # steps
_PATIENCE_SECONDS: Final = 30.0  # of a first epoch, before its steps say how long the run takes


class Health(Protocol):
    """Measures the encoder of a run and finds symptoms in its metrics: ``diagnostics.health``."""

    @property
    def words(self) -> str:
        """A sentence for the start of training, or nothing."""
        ...

    def measure(self, method: Method, batches: ViewBatches) -> dict[str, float]:
        """Metrics of the encoder as it is; changes no state of the run."""
        ...

    def symptoms(
        self, metrics: Sequence[Mapping[str, Any]], *, dictionary_size: int | None
    ) -> list[Symptom]:
        """What the lines of metrics so far show."""
        ...


def train(
    config: RunConfig,
    collection: Collection,
    folder: RunFolder,
    executor: Executor,
    watcher: Watcher,
    health: Health,
    own: OwnParts = NOTHING_OWN,
    budget: TimeBudget | None = None,
    *,
    says_length: bool = False,
) -> RunState:
    """Trains until the last epoch ends, or the time, from the newest good checkpoint if any.

    Every process of a run calls it; the first one writes.

    Args:
        config: of the run, resolved.
        collection: the images.
        folder: of the run; checkpoints and metrics go there.
        executor: its threads make views; as many as ``config.training.threads``.
        watcher: shows how it goes.
        health: measures the encoder now and then.
        own: parts of the method that are given in the place of those that the config names.
        budget: of ``training.minutes``; None where epochs say how long the run is.
        says_length: whether to say how long that takes, as soon as steps tell: where nobody asked
            for a length.

    Returns:
        The state at the end, which is also the newest checkpoint.

    Raises:
        TrainingError: the loss or a weight is not a finite number; the last checkpoint is good.
        Interrupted: a signal came to one of the processes; a checkpoint was written first.
        DistributedError: another process is gone, or holds other weights; the last checkpoint
            is good.
        NotSaved: at the end, or when a signal came, the run could not be saved.
        DamagedCheckpoint: there are checkpoints, but none is good or of these images.
        ConfigError: the settings ask for labels or groups that the images do not have.
    """
    keep_freed_memory()
    fingerprint, record = fingerprint_of(config, collection.train), load_record(folder)
    images, groups = learned_images(collection.train, config)
    device = choose_device(config.training.device)
    collection = replace(collection, train=images)
    order = Order(config.seed, len(images), config.training.batch_size)
    torch.manual_seed(config.seed)  # for what parts given in Python draw where they are built
    place = checkpoint_location(config.checkpoint, folder)
    start = start_file(config, folder, place)
    own = begun_before(own, folder, config)
    state = build_state(config, collection, executor, watcher, own, start)
    if state.method.needs_labels:
        require_labels(images, config)
    # Before restore, which puts the trained weights in the place of the untrained ones.
    if config.encoder.name == OWN:
        run_on_first(lambda: keep_untrained(folder, state.method.encoder, config))
    # Every process reads the file: nothing is sent to make them alike.
    restore(state, config, place, record.identity, fingerprint, watcher)
    batches = ViewBatches(
        images,
        order,
        config.views,
        executor,
        view_count=state.method.views,
        groups=groups,
        device=views_device(config.views.applier, device),
    )
    # After restore: a checkpoint may be of a time when they were no longer frozen.
    frozen = frozen_parts(state.method, config.encoder)
    run = _Run(
        *(config, folder, batches, health, state, watcher, place, fingerprint, frozen, budget),
        says_length=says_length,
    )
    run.plan()
    if health.words:
        watcher.say(health.words)
    watcher.begin(step=state.step, total_steps=run.total_steps)
    stopwatch = Stopwatch(device)
    with ExitStack() as opened:
        # Entered first and so left last: a signal must not end the saver while it finishes.
        received = opened.enter_context(collected_signals(patient=process_count() > 1))
        log = saver = None
        if process_rank() == 0:
            log = opened.enter_context(open_log(folder, state, watcher, config, record.identity))
            prepare = partial(keep_config, folder, config, record)
            saver = opened.enter_context(
                Saver(
                    place,
                    record.identity,
                    config.checkpoint,
                    watcher.say,
                    prepare=prepare,
                    resumed_step=state.step,
                )
            )
        try:
            with stopwatch.running(), profiled(stopwatch, config.probe, folder) as step_ended:
                run.train(log, saver, received, stopwatch, step_ended)
        except LostProcess as error:
            raise name_missing(error, state.step + 1) from error
    if budget is not None:
        watcher.say(taken_in_words(state.step, order.steps_per_epoch, state.seconds, folder.config))
    return state


@dataclass
class _Run:
    """A run until it ends or is stopped."""

    config: RunConfig
    folder: RunFolder
    batches: ViewBatches
    health: Health
    state: RunState
    watcher: Watcher
    checkpoints: CheckpointLocation
    fingerprint: str
    frozen: FrozenParts | None
    budget: TimeBudget | None = None
    says_length: bool = False
    # Losses by step, not yet read: reading one waits for the device.
    unchecked: list[tuple[int, Tensor]] = field(default_factory=list)
    symptoms: set[str] = field(default_factory=set)

    @property
    def total_steps(self) -> int:
        """Steps from the first epoch to the last, as the epochs say or the minutes allow."""
        planned = self.state.total_steps
        if planned is not None:
            return planned
        return self.config.training.epochs * self.batches.order.steps_per_epoch

    def plan(self) -> None:
        """Plans the steps of a run of some minutes that begins, and says what it will do."""
        state, budget = self.state, self.budget
        if budget is None:
            return
        # By the clock of the first process; a run that goes on keeps its plan until the next.
        (first,) = largest_over_processes(
            budget.begin(state.step, earlier_seconds=state.spent_seconds) * (process_rank() == 0)
        )
        state.total_steps = state.total_steps or first
        order = self.batches.order
        self.watcher.say(plan_in_words(self.config, budget, order, state.total_steps))

    def _plan_anew(self) -> int:
        """The steps of the run where the first process's clock asks for a new plan; else 0."""
        if self.budget is None or process_rank() > 0:
            return 0
        self.state.spent_seconds = self.budget.spent_seconds()
        return self.budget.planned_after(self.state.step) or 0

    def train(
        self,
        log: RunLog | None,
        saver: Saver | None,
        received: list[int],
        stopwatch: Stopwatch,
        step_ended: Callable[[], None],
    ) -> None:
        """Steps, metrics, checkpoints until the end or a signal.

        What is due when is the same on all processes; the first has a log and a saver.
        """
        state = self.state
        stopwatch.read()  # what came before is no step's
        # A clock that nobody sets: the seconds of a run must not jump with the time of day.
        begun, earlier = time.monotonic(), state.seconds
        line_time, line_step = begun, state.step
        lines = log.lines if log is not None else []
        self._require_synchronized()
        for batch in self._batches():
            output = self._step(batch)
            state.step += 1
            now = time.monotonic()
            state.seconds = earlier + now - begun
            last = state.step >= self.total_steps
            if self._is_due(self.config.probe.log_every_steps) or last or self._health_is_due():
                self._check_losses()
                steps = state.step - line_step
                self._say_length((now - line_time) / steps, steps)
                line = self._line(output, now - line_time, steps)
                line |= time_metrics(stopwatch.read(), steps)
                # Read anew: what this line took to measure does not lower the rate of the next one.
                line_time, line_step = time.monotonic(), state.step
                if log is not None:
                    log.write(line)
                    self._watch(line, lines)
            if self._is_due(self.config.training.check_every_steps):
                with watch("measuring"):
                    self._require_synchronized()
            # The first process decides by disk and clock; all must save or stop at the same step.
            asked = (0, 0) if saver is None else (saver.is_due(), saver.error is not None)
            stop, due, broken, planned = largest_over_processes(
                sum(received[:1]), *map(int, asked), self._plan_anew()
            )
            if broken:
                raise (saver.failure() if saver is not None else FirstStopped("process 0 says why"))
            if planned and not last:
                state.total_steps = planned
                self.watcher.planned(planned)
            if stop or last:
                with watch("checkpoint"):
                    self._save_and_wait(log, saver)
            elif due:
                with watch("checkpoint"):
                    self._save(saver)
            if stop and not last:
                wait_for_all()  # a launcher ends the others as soon as one has left
                raise Interrupted(
                    f"{signal.Signals(stop).name} came; the run was saved after step {state.step}. "
                    f"Go on with --resume --out {quoted(self.folder.path)}.",
                    stop,
                )
            step_ended()

    def _say_length(self, step_seconds: float, steps: int) -> None:
        """Says once how long the run takes, by the last so many steps.

        Images may be decoded in the first epoch alone, so that later ones are faster: only where
        that takes long is the length told by its steps. The very first step is slower than any.
        """
        state = self.state
        if not self.says_length or state.step == 1:
            return
        settled = state.step - steps >= self.batches.order.steps_per_epoch
        settled |= self.config.images.cache == "none"
        if settled or state.seconds > _PATIENCE_SECONDS:
            words = length_in_words(self.config, self.total_steps, step_seconds, settled=settled)
            self.watcher.say(words)
            self.says_length = False

    def _batches(self) -> Iterator[Batch]:
        device = next(self.state.method.parameters()).device
        if device.type == "cpu":  # views and network share the cores: nothing to gain ahead
            while self.state.step < self.total_steps:
                with watch("views"):
                    sized = self.batches.sized_for(self.state.step, total_steps=self.total_steps)
                    batch = sized.at(self.state.step)
                yield batch
            return
        # The clock may end a run early, or late: then batches are made ahead until it ends.
        end = self.total_steps if self.budget is None else _NO_END
        steps, pin = range(self.state.step, end), device.type == "cuda"
        with closing(
            self.batches.prefetched(steps, total_steps=lambda: self.total_steps, pin=pin)
        ) as ahead:
            while self.state.step < self.total_steps:
                with watch("data_wait"):
                    batch = next(ahead).to(device)
                yield batch

    def _step(self, batch: Batch) -> StepOutput:
        config, state = self.config, self.state
        if self.frozen is not None:
            self.frozen.set(frozen=self._is_frozen_time())
        step, total, per_epoch = state.step, self.total_steps, self.batches.order.steps_per_epoch
        state.method.begin_step(step, steps_per_epoch=per_epoch, total_steps=total)
        rate = learning_rate(
            config.schedule_of_steps,
            peak=peak_learning_rate(config.optimizer, config.training.batch_size),
            step=step,
            steps_per_epoch=per_epoch,
            total_steps=total,
        )
        momentum = encoder_momentum(config.method.key_encoder, step=step, total_steps=total)
        output = train_step(
            state.method,
            state.optimizer,
            batch,
            rate=rate,
            momentum=momentum,
            decay=weight_decay(config.optimizer, step=step, total_steps=total),
            config=config,
            scale=state.scale,
        )
        if state.scale.enabled and state.scale.value < LEAST_SCALE:
            what = "gradients overflow fp16 however little the loss is enlarged"
            raise self._not_finite(what, state.step + 1)
        self.unchecked.append((state.step, output.loss))
        if batch.indices.device.type == "cpu":  # reading a loss there waits for nothing
            self._check_losses()
        return output

    def _is_frozen_time(self) -> bool:
        """A function of the step alone, so that a resumed run does the same."""
        epochs = self.config.encoder.frozen_epochs
        return epochs is None or self.state.step < round(
            epochs * self.batches.order.steps_per_epoch
        )

    def _check_losses(self) -> None:
        # Stacked below, so that the device is waited for once and not for each loss.
        steps, losses = zip(*self.unchecked, strict=True) if self.unchecked else ((), ())
        self.unchecked.clear()
        for step, loss in zip(steps, torch.stack(losses).tolist() if losses else [], strict=True):
            # Turned this way NaN fails as well: every comparison with it is false.
            if not -float("inf") < loss < float("inf"):
                raise self._not_finite(f"the loss is {loss}", step + 1)

    def _is_due(self, interval: int) -> bool:
        return self.state.step % interval == 0

    def _health_is_due(self) -> bool:
        """At the ends of some epochs, after the first step, and at the end of the run."""
        interval = self.config.probe.health_every_epochs * self.batches.order.steps_per_epoch
        return self.state.step in (1, self.total_steps) or self._is_due(interval)

    def _line(self, output: StepOutput, seconds: float, steps: int) -> dict[str, Any]:
        """One line of metrics: of this very step, so that a resumed run writes the same."""
        state = self.state
        views = state.method.views + self.config.views.small_views
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": (state.step - 1) // self.batches.order.steps_per_epoch,
            "seconds": round(state.seconds, 3),
            "loss": float(output.loss),
            **{name: float(value) for name, value in output.metrics.items()},
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "views_per_second": round(views * self.config.training.batch_size * steps / seconds, 1),
        }
        line |= state.method.state_metrics() | state.scale.state_metrics()
        if self._health_is_due():
            measure = self.health.measure
            try:
                with watch("measuring"), self.budget.pausing() if self.budget else nullcontext():
                    measured = run_on_first(lambda: json.dumps(measure(state.method, self.batches)))
            except FeaturesError as error:  # the weights of this step are not finite; its loss was
                raise self._not_finite(error.what, state.step) from error
            line |= json.loads(measured)
        return line

    def _watch(self, line: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self.watcher.metrics(line)
        size = self.state.method.dictionary_size
        for symptom in self.health.symptoms(lines, dictionary_size=size):
            if symptom.name not in self.symptoms:
                self.symptoms.add(symptom.name)
                self.watcher.symptom(symptom)

    def _save(self, saver: Saver | None) -> None:
        """Begins to write a checkpoint; no process waits for the disk."""
        self._require_finite()
        whole = whole_banks(self.state.method)  # collective, so not left to the first process
        if saver is not None:
            saver.begin(self.state, whole, **self._identifying())

    def _save_and_wait(self, log: RunLog | None, saver: Saver | None) -> None:
        """Returns in all processes when all is written, or in none."""
        self._require_finite()
        # Collective, so not within finish: there the others wait, and the first would gather alone.
        whole = whole_banks(self.state.method)

        def finish() -> str:
            assert saver is not None
            assert log is not None
            # The checkpoint first: where the log fails, it says that the checkpoint is there.
            saver.finish(self.state, whole, **self._identifying())
            log.finish()
            return ""

        run_on_first(finish)

    def _identifying(self) -> dict[str, str]:
        """By which a run is recovered whose folder is lost."""
        return {"images": self.fingerprint, "config": to_toml(self.config)}

    def _require_finite(self) -> None:
        # A checkpoint with weights that are no numbers would be the newest good one to resume from.
        self._check_losses()
        if not self.state.is_finite():
            raise self._not_finite("a weight is not finite", self.state.step)

    def _not_finite(self, what: str, step: int) -> TrainingError:
        return not_finite(what, step, self.config, self.folder, self.checkpoints)

    def _require_synchronized(self) -> None:
        require_synchronized(self.state.method, self.state.step, images=self.fingerprint)
