"""The display of a run that trains: a progress bar, or plain lines without a terminal."""

import time
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from diptych.escaping import readable_lines
from diptych.logging.metrics import chance_of, has_choice, task_accuracy

_PLAIN_SECONDS = 10.0  # between two plain lines
_MANY_FILES = 5000


class Symptom(NamedTuple):
    """Something that the metrics of a run show.

    Attributes:
        name: stable, for programs.
        alarming: whether something is wrong, or it only looks frightening.
        sentence: for people.
    """

    name: str
    alarming: bool
    sentence: str


class Watcher:
    """Gets the events of training; it shows nothing itself."""

    def begin(self, *, step: int, total_steps: int) -> None:
        """Training begins, or goes on, after ``step`` steps."""

    def planned(self, total_steps: int) -> None:
        """The run will have another number of steps than was planned before."""

    def metrics(self, line: dict[str, Any]) -> None:
        """A line of metrics was written."""

    def symptom(self, symptom: Symptom) -> None:
        """The metrics show a symptom for the first time."""

    def say(self, sentence: str) -> None:
        """Something else happened that users should know."""


class Display(Watcher):
    """Shows a run on a terminal with a bar, elsewhere with a line now and then.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._total_steps = 0
        self._last_plain = 0.0
        self._last_files = 0.0
        self._knn: float | None = None

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, *, step: int, total_steps: int) -> None:
        """Shows the bar."""
        self._total_steps = total_steps
        if self.console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self._task = self._progress.add_task("", total=total_steps, figures="")
            self._progress.update(self._task, completed=step)
            self._progress.start()

    def planned(self, total_steps: int) -> None:
        """Makes the bar longer or shorter."""
        self._total_steps = total_steps
        if self._progress is not None:
            self._progress.update(self._task, total=total_steps)

    def files(self, done: int, total: int) -> None:
        """Says how many image files are checked, when that takes a while."""
        if total >= _MANY_FILES and (done == total or time.monotonic() - self._last_files > 2.0):
            self._last_files = time.monotonic()
            end = "\n" if done == total or not self.console.is_terminal else "\r"
            self.console.print(f"{done:,} of {total:,} image files checked", end=end)

    def metrics(self, line: dict[str, Any]) -> None:
        """Moves the bar; without a terminal, a line every ten seconds and for measurements."""
        self._knn = line.get("knn", self._knn)
        if self._progress is not None:
            self._progress.update(self._task, completed=line["step"], figures=self._figures(line))
            if "effective_rank" in line:
                self._progress.console.print(self._health(line), highlight=False)
            return
        due = time.monotonic() - self._last_plain > _PLAIN_SECONDS
        if "effective_rank" in line or due or line["step"] == self._total_steps:
            self._last_plain = time.monotonic()
            text = f"step {line['step']}/{self._total_steps}  {self._figures(line)}"
            if "effective_rank" in line:
                text += f"  rank {line['effective_rank']:.0f}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def symptom(self, symptom: Symptom) -> None:
        """Prints the sentence."""
        style = "bold yellow" if symptom.alarming else "dim"
        self.console.print(symptom.sentence, style=style, highlight=False)

    def say(self, sentence: str) -> None:
        """Prints the sentence."""
        self.console.print(readable_lines(sentence), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _figures(self, line: dict[str, Any]) -> str:
        text = f"loss {line['loss']:.3f}"
        if "chance_loss" in line:
            text += f" (chance {line['chance_loss']:.2f})"
        task = task_accuracy(line)
        if task is not None and has_choice(line):
            chance = chance_of(line, task.name)
            text += f"  {task.short} {line[task.name]:.0%} (chance {chance:.0%})"
        text += f"  {line['views_per_second']:,.0f} views/s"
        return text if self._knn is None else f"{text}  kNN {self._knn:.1%}"

    def _health(self, line: dict[str, Any]) -> str:
        text = (
            f"epoch {line['epoch'] + 1}: loss {line['loss']:.3f}, alignment "
            f"{line['alignment']:.2f}, uniformity {line['uniformity']:.2f}, effective rank "
            f"{line['effective_rank']:.0f}"
        )
        return f"{text}, kNN {line['knn']:.1%}" if "knn" in line else text


class Silent(Watcher):
    """A watcher that shows nothing."""
