"""Trackers get every line; none that fails or hangs touches the run. True ones where installed."""

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diptych.config.run import ProbeConfig
from diptych.errors import ConfigError
from diptych.logging import trackers
from diptych.logging.metrics import RunLog, read_metrics
from diptych.logging.trackers import TrackedRun, Tracking, require_tracker
from diptych.runs.folder import RunFolder

RUN = TrackedRun("0123456789abcdef" * 2, "my-run", "project", {"seed": 3, "images.path": "x"})
LINES: list[dict[str, float | int]] = [{"step": n, "loss": 1 / n, "rate": 2.0} for n in (1, 2, 3)]


class Fake:
    """Records what a tracker is given."""

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.ended = run, False
        self.lines: list[tuple[int, dict[str, float]]] = []
        made.append(self)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.lines.append((step, dict(figures)))

    def finish(self) -> None:
        self.ended = True


made: list[Fake] = []


@pytest.fixture(autouse=True)
def _none_made() -> None:
    made.clear()


def tracked(said: list[str], kind: str = "wandb") -> Tracking:
    return Tracking(kind, RUN, said.append)


def test_a_log_hands_on_what_it_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Fake})
    said: list[str] = []
    folder = RunFolder(tmp_path)
    with RunLog(folder, resumed_step=0, say=said.append) as log:
        log.tracking = tracked(said)
        for line in LINES:
            log.write(line)
        log.finish()
    (fake,) = made
    assert fake.run == RUN
    assert fake.lines == [(n, {"loss": 1 / n, "rate": 2.0}) for n in (1, 2, 3)]
    assert fake.ended
    assert said == []


@pytest.mark.parametrize("place", ["start", "write", "finish"])
def test_one_that_fails_is_named_and_the_run_goes_on(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Failing(Fake):
        def __init__(self, run: TrackedRun) -> None:
            super().__init__(run)
            self.fail("start")

        def fail(self, here: str) -> None:
            if here == place:
                raise SystemExit("no route to host\nand more")

        def write(self, step: int, figures: Mapping[str, float]) -> None:
            self.fail("write")

        def finish(self) -> None:
            self.fail("finish")

    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Failing})
    said: list[str] = []
    with RunLog(RunFolder(tmp_path), resumed_step=0) as log:
        log.tracking = tracked(said)
        for line in LINES:
            log.write(line)
    assert said == [
        "wandb takes no more metrics: no route to host. They are in metrics.jsonl. Training goes "
        "on."
    ]
    assert read_metrics(RunFolder(tmp_path).metrics) == LINES


def test_one_that_hangs_does_not_keep_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    class Hanging(Fake):
        def write(self, step: int, figures: Mapping[str, float]) -> None:
            free.wait(30)

    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Hanging})
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.05)
    said: list[str] = []
    tracking = tracked(said)
    tracking.write(LINES[0])
    tracking.finish()
    free.set()
    assert "did not take all metrics" in said[0]


def test_a_missing_one_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    require_tracker(ProbeConfig())
    for kind in trackers.TRACKERS:
        config = ProbeConfig(tracker=kind)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=rf"pip install 'diptych\[{kind}\]'"):
            require_tracker(config)


def test_each_setting_has_its_tracker() -> None:
    for kind in trackers.TRACKERS:
        assert ProbeConfig(tracker=kind).tracker == kind  # type: ignore[arg-type]


class Calls:
    """Stands for a module or an object of one: notes every call."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.noted.append((name, args, options))
            return self

        return call


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_what_wandb_and_trackio_are_called_with(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Calls()
    monkeypatch.setitem(sys.modules, kind, module)
    said: list[str] = []
    tracking = tracked(said, kind)
    for line in LINES:
        tracking.write(line)
    tracking.finish()
    assert said == []
    (begun,) = [one for one in module.noted if one[0] == "init"]
    assert begun[2]["config"] == dict(RUN.settings)
    assert begun[2]["resume"] == "allow"
    logged = [(args, options) for name, args, options in module.noted if name == "log"]
    assert logged == [(({"loss": 1 / n, "rate": 2.0},), {"step": n}) for n in (1, 2, 3)]
    assert module.noted[-1][0] == "finish"


def test_what_mlflow_is_called_with(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = Calls()
    client.search_runs = lambda *args, **options: []
    client.create_run = lambda *args, **options: SimpleNamespace(info=SimpleNamespace(run_id="r"))
    entities = SimpleNamespace(Metric=lambda *all: all, Param=lambda *all: all)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    said: list[str] = []
    tracking = tracked(said, "mlflow")
    tracking.write(LINES[1])
    tracking.finish()
    assert said == []
    (params,), (metrics,) = (
        [options[key] for _, _, options in client.noted if key in options]
        for key in ("params", "metrics")
    )
    assert params == [("seed", "3"), ("images.path", "x")]
    assert [(name, value, step) for name, value, _, step in metrics] == [
        ("loss", 0.5, 2),
        ("rate", 2.0, 2),
    ]
    assert client.noted[-1][:2] == ("set_terminated", ("r",))


@pytest.mark.slow
def test_the_true_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny keeps runs in a folder")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    said: list[str] = []
    for lines in (LINES[:2], LINES[2:]):  # the second goes on with the same run
        tracking = tracked(said, "mlflow")
        for line in lines:
            tracking.write(line)
        tracking.finish()
    assert said == []
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("project").experiment_id
    (run,) = client.search_runs([place])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "images.path": "x"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(n, 1 / n) for n in (1, 2, 3)]


@pytest.mark.slow
def test_the_true_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb keeps offline runs in a folder")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    said: list[str] = []
    tracking = tracked(said, "wandb")
    for line in LINES:
        tracking.write(line)
    tracking.finish()
    assert said == []
    (log,) = tmp_path.rglob(f"run-{RUN.id}.wandb")
    assert b"loss" in log.read_bytes()


@pytest.mark.slow
def test_the_true_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio keeps runs in a folder")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    said: list[str] = []
    tracking = tracked(said, "trackio")
    for line in LINES:
        tracking.write(line)
    tracking.finish()
    assert said == []
    (name,) = SQLiteStorage.get_runs("project")
    assert [one["loss"] for one in SQLiteStorage.get_logs("project", name)] == [1, 1 / 2, 1 / 3]
