"""Experiment trackers that show the metrics of a run beside those of others: an extra each.

What a run logs goes to ``metrics.jsonl`` first; a tracker gets a copy, in a thread of its own. So
no step waits for a network, and a tracker that fails costs the copy and not the run.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Protocol

from diptych.config.run import ProbeConfig
from diptych.errors import ConfigError

FINISH_SECONDS: Final = 60.0
"""That the end of a run waits for a tracker to take what is left."""


class Tracker(Protocol):
    """Takes the metrics of one run; begun by a function of ``TRACKERS``. Any error is caught."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes the figures of a step."""
        ...

    def finish(self) -> None:
        """Sends what is left, and says that the run ended."""
        ...


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        id: of the run, the same when it goes on after an interruption.
        name: of its folder.
        project: of ``probe.tracker_project``.
        settings: all settings by their dotted names.
    """

    id: str
    name: str
    project: str
    settings: Mapping[str, Any]


class _WandB:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        # Not the terminal, which is the run's own; and no question to a user who is not there.
        quiet = wandb.Settings(console="off", silent=True, login_timeout=30)
        self._run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            config=dict(run.settings),
            resume="allow",
            settings=quiet,
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(run.project)
        place = (
            self._client.create_experiment(run.project) if found is None else found.experiment_id
        )
        same = self._client.search_runs([place], f"tags.diptych_run = '{run.id}'", max_results=1)
        if same:
            self._id = same[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(place, tags={"diptych_run": run.id}, run_name=run.name)
        self._id = made.info.run_id
        params = [Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            self._client.log_batch(self._id, params=params[start : start + 100])

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=found)

    def finish(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        import trackio

        # Its runs are known by their names: two folders of one name are two runs.
        name, settings = f"{run.name}-{run.id[:8]}", dict(run.settings)
        self._run = trackio.init(
            run.project, name=name, config=settings, resume="allow", embed=False
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self) -> None:
        self._run.finish()


TRACKERS: Final[Mapping[str, Callable[[TrackedRun], Tracker]]] = {
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
"""By the values of ``probe.tracker``, which are also the modules and the extras."""


def require_tracker(config: ProbeConfig) -> None:
    """Refuses a tracker that is not installed, before any work is done.

    Raises:
        ConfigError: it is not.
    """
    if config.tracker != "none" and find_spec(config.tracker) is None:
        raise ConfigError(
            f"probe.tracker = {config.tracker!r} needs pip install 'diptych[{config.tracker}]'; "
            "without a tracker all metrics are in metrics.jsonl and as TensorBoard events."
        )


class Tracking:
    """Hands lines of metrics to a tracker, in a thread of its own.

    Args:
        kind: of ``TRACKERS``.
        run: what it is told.
        say: called with a sentence where the tracker fails; it gets no more lines then.
    """

    def __init__(self, kind: str, run: TrackedRun, say: Callable[[str], None]) -> None:
        self._kind, self._run, self._say = kind, run, say
        self._lines: queue.SimpleQueue[Mapping[str, float | int] | None] = queue.SimpleQueue()
        # A daemon: a tracker that hangs does not keep the process from its end.
        self._thread = threading.Thread(target=self._work, name=f"tracker {kind}", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, float | int]) -> None:
        """Takes a line, which has a ``step``; never waits."""
        self._lines.put(dict(line))

    def finish(self) -> None:
        """Waits until the tracker has all lines, for a minute at most."""
        self._lines.put(None)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._say(
                f"{self._kind} did not take all metrics within {FINISH_SECONDS:.0f} seconds. They "
                "are in metrics.jsonl."
            )

    def _work(self) -> None:
        try:
            tracker = TRACKERS[self._kind](self._run)
            while (line := self._lines.get()) is not None:
                figures = {name: float(one) for name, one in line.items() if name != "step"}
                tracker.write(int(line["step"]), figures)
            tracker.finish()
        # A library that is not ours, a network, a server: whatever it raises, the run goes on.
        except BaseException as error:
            text = str(error).strip() or type(error).__name__
            self._say(
                f"{self._kind} takes no more metrics: {text.splitlines()[0]}. They are in "
                "metrics.jsonl. Training goes on."
            )
