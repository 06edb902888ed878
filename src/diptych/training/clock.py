"""The minutes of a run: how many steps fit, planned anew while it trains."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from diptych.config.run import RunConfig
from diptych.escaping import quoted
from diptych.views.batches import Order

PLANNED_EVERY: Final = 0.05
"""Share of the training time after which the steps are planned anew: often enough to end within
the time when the pace changes late, and with enough steps between to know the pace."""
_MOST_SLOWDOWN: Final = 2.0  # that is set aside for
_FEW_STEPS: Final = 100  # from scratch; fewer hardly move the weights from their random start


@dataclass
class TimeBudget:
    """What of the minutes of a command is spent, and how many steps fit in the rest.

    Attributes:
        seconds: of all commands of the run together, report included.
        reserve_seconds: for evaluation and report, after the last step.
        step_seconds: of one step, in the mean of the run; as measured before training, then as
            seen.
        begun: when this command began, by ``now``.
        earlier_seconds: spent by earlier commands of the run, until their last checkpoint.
        early_share: of the steps, that come first and see smaller views.
        early_cost: seconds of one of them over those of a later one.
        now: a clock in seconds that nobody sets.
    """

    seconds: float
    reserve_seconds: float
    step_seconds: float
    begun: float
    earlier_seconds: float = 0.0
    early_share: float = 0.0
    early_cost: float = 1.0
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._measured_seconds = self.step_seconds
        self._pause_seconds = 0.0
        # Of an early step and of a later one, in mean steps.
        self._later = 1 / (self.early_cost * self.early_share + 1 - self.early_share)
        self._early = self.early_cost * self._later

    def spent_seconds(self) -> float:
        """By all commands of the run so far."""
        return self.earlier_seconds + self.now() - self.begun

    def training_seconds_left(self) -> float:
        """Until evaluation and report must begin; negative where it is too late."""
        # Programs that came in after measuring slow down what follows, as they do the steps.
        slowdown = min(max(1.0, self.step_seconds / self._measured_seconds), _MOST_SLOWDOWN)
        reserved = slowdown * self.reserve_seconds + self._pause_seconds
        return self.seconds - reserved - self.spent_seconds()

    def begin(self, step: int, *, earlier_seconds: float) -> int:
        """The steps of the whole run, as training begins or goes on after ``step`` steps."""
        self.earlier_seconds = earlier_seconds
        self._interval = PLANNED_EVERY * max(0.0, self.training_seconds_left())
        self._planned_step, self._planned_at = step, self.spent_seconds()
        return self._planned(step)

    def planned_after(self, step: int) -> int | None:
        """The steps of the whole run where a new plan is due after a step; None where it is not.

        When the time is over it is due at once: the next step is the last.
        """
        if self.training_seconds_left() <= 0:
            return step + 1
        passed = self.spent_seconds() - self._planned_at
        if passed < self._interval:
            return None
        seen = passed / (self._mean_steps(step) - self._mean_steps(self._planned_step))
        # Half of what was known before: a slow stretch, as images that are decoded for the first
        # time, is not the pace of all that comes.
        self.step_seconds = (self.step_seconds + seen) / 2
        self._planned_step, self._planned_at = step, self.spent_seconds()
        return self._planned(step)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """What is done inside is time spent, but does not count towards the pace of steps.

        The last step is followed by as much again, so time is set aside for that too.
        """
        begun = self.now()
        yield
        self._pause_seconds = self.now() - begun
        self._planned_at += self._pause_seconds

    def ends_at(self) -> datetime:
        """The time of day at which the minutes are over."""
        return datetime.now() + timedelta(seconds=self.seconds - self.spent_seconds())

    def _planned(self, step: int) -> int:
        left = self.training_seconds_left() / self.step_seconds
        # All steps of a run take what as many mean ones do, and the early ones come first.
        total = left + self._early * step
        if step >= self.early_share * total:
            total = step + left / self._later
        self._total = max(step + 1, round(total))
        return self._total

    def _mean_steps(self, step: int) -> float:
        """How many mean steps take as long as those up to a step, by the last plan."""
        early = min(float(step), self.early_share * self._total)
        return self._early * early + self._later * (step - early)


def plan_in_words(config: RunConfig, budget: TimeBudget, order: Order, total_steps: int) -> str:
    """What the minutes are used for, in one sentence."""
    training, epochs = config.training, total_steps / order.steps_per_epoch
    minutes, threads = budget.seconds / 60, training.threads or 1
    where = f"{threads} thread{'s' * (threads > 1)}" if training.device == "cpu" else "the GPU"
    few, views = "", config.views
    first = f" ({views.early_side_pixels} at first)" if views.has_early_part else ""
    if config.encoder.weights is None and total_steps < _FEW_STEPS:
        few = (
            f" These are {total_steps:,} steps, too few to learn much: give more minutes or fewer "
            "images (--images.limit). Opening a set takes its time only once."
        )
    return (
        f"{minutes:g} minute{'s' * (minutes != 1)} on {where}: "
        f"{config.encoder.name} on {views.side_pixels} pixels{first}, batch {training.batch_size}, "
        f"about {_count(epochs)} epochs of {order.image_count:,} images, ending at about "
        f"{budget.ends_at():%H:%M}.{few}"
    )


def length_in_words(
    config: RunConfig, steps: int, step_seconds: float, *, settled: bool = True
) -> str:
    """How long a run of so many epochs takes, roughly, in one sentence.

    Args:
        config: of the run.
        steps: of all of it.
        step_seconds: of one of its first steps.
        settled: whether later steps are as fast.
    """
    views = config.views
    if views.has_early_part:  # a view costs as its area does, or less
        step_seconds *= views.early_share + (1 - views.early_share) / views.early_side**2
    minutes = steps * step_seconds / 60
    about = f"{minutes:,.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds"
    first = "" if settled else " at the pace of the first epoch, in which images are decoded"
    return (
        f"{config.training.epochs:,} epochs are {steps:,} steps, which take about {about}{first}; "
        "--epochs or --minutes asks for another length."
    )


def taken_in_words(steps: int, steps_per_epoch: int, seconds: float, config_file: Path) -> str:
    """What a run of some minutes took, and how to repeat it, in two sentences."""
    epochs = steps / steps_per_epoch
    return (
        f"Training took {steps:,} steps, {_count(epochs)} epochs, in {seconds / 60:.1f} minutes. "
        f"To repeat it by length: --config {quoted(config_file)} --epochs {max(1, round(epochs))}."
    )


def _count(epochs: float) -> str:
    return f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.1f}"
