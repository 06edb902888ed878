"""What a command runs on is checked when it is chosen; progress is shown on a terminal only."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from diptych.cli.main import main
from diptych.errors import ConfigError
from diptych.runtime.console import ProgressBars, ProgressReporter
from diptych.runtime.devices import Runtime, available_threads, quota_cores


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"device": "gpu"}, "--device is one of auto, cpu, cuda, mps; got 'gpu'"),
        ({"threads": 0}, "--threads must be a positive number; got 0"),
        ({"threads": -1}, "--threads must be a positive number; got -1"),
        ({"batch_size": 0}, "the batch size of inference must be a positive number; got 0"),
        ({"batch_size": 2.5}, "the batch size of inference must be a positive number; got 2.5"),
        ({"batch_size": True}, "the batch size of inference must be a positive number; got True"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Runtime(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device = 'cuda', but torch"):
        Runtime(device="cuda").torch_device  # noqa: B018


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/outside\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "5:memory:/docker/one\n4:cpu,cpuacct:/docker/one\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        (
            "1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
    ],
)
def test_a_containers_quota_of_time_is_read(
    tmp_path: Path, own: str, files: dict[str, str], cores: int | None
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert quota_cores(tmp_path / "own", tmp_path / "groups") == cores


def test_no_more_threads_than_a_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    for quota, threads in ((3, 3), (100, 64), (None, 64)):
        monkeypatch.setattr("diptych.runtime.devices.quota_cores", lambda found=quota: found)
        assert available_threads() == threads
    assert quota_cores(own=Path("/nowhere")) is None


def test_threads_end_with_the_context() -> None:
    with Runtime(threads=1) as runtime:
        executor = runtime.executor
        assert executor.submit(int, "3").result() == 3
        assert runtime.executor is executor
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(int, "3")
    with Runtime():
        pass  # nothing was started, nothing has to end


def test_bars_are_drawn_on_a_terminal_and_go_when_all_is_done() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, markup=False)
    with ProgressBars(console) as bars:
        bars.images("Features of [red]", 3, 12)
        bars.say("Something else.")
        bars._bars.refresh()
        bars.images("Features of [red]", 12, 12)
    assert "Features of [red]" in out.getvalue()
    assert "3/12 images" in " ".join(out.getvalue().split())
    assert "Something else." in out.getvalue()
    assert not bars._bars.tasks


@pytest.mark.parametrize("quiet", [False, True])
def test_elsewhere_there_are_no_bars(quiet: bool) -> None:
    out = io.StringIO()
    with ProgressBars(Console(file=out, quiet=quiet, force_terminal=quiet)) as bars:
        bars.images("Features", 3, 12)
        bars.images("Features", 12, 12)
    assert out.getvalue() == ""


def test_without_a_watcher_what_went_wrong_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"no room"):
        ProgressReporter().say("There is no room.")


@pytest.mark.parametrize("verb", ["evaluate", "rank", "report", "detect", "check-leak", "embed"])
def test_every_verb_that_measures_takes_a_device(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help-all"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--device", "--threads", *(() if verb == "check-leak" else ("--batch-size",))):
        assert flag in said, flag
