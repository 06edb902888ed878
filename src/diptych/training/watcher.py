"""Who is told how training goes."""

from typing import Any, Protocol

from diptych.evaluation.symptoms import Symptom


class Watcher(Protocol):
    """Is told how training goes. The command line's watcher draws a progress bar."""

    def begin(self, *, step: int, total_steps: int) -> None:
        """Training begins, or goes on, after ``step`` steps."""

    def metrics(self, line: dict[str, Any]) -> None:
        """A line of metrics was written."""

    def symptom(self, symptom: Symptom) -> None:
        """Something new is to be seen in the metrics."""

    def say(self, sentence: str) -> None:
        """Something else happened that people should know."""


class Silent:
    """A watcher that shows nothing."""

    def begin(self, *, step: int, total_steps: int) -> None:
        """Nothing."""

    def metrics(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def symptom(self, symptom: Symptom) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""
