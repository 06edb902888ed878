"""What `diptych launch` adds to torchrun, what it refuses, and how it exits."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from diptych.cli import main
from diptych.errors import ConfigError, RunFolderError
from diptych.launch import CURE, advice_on_restarts
from diptych.launcher import prepare
from diptych.pretraining import pretrain

SET = (
    "PET_MAX_RESTARTS",
    "PET_SHUTDOWN_TIMEOUT",
    "PET_RDZV_BACKEND",
    "PET_SIGNALS_TO_HANDLE",
    "OMP_NUM_THREADS",
    CURE,
)


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is set is taken back after each test."""
    for name in SET:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What torchrun is called with, in its stead."""
    calls: list[list[str]] = []
    monkeypatch.setattr(torchrun, "main", calls.append)
    return calls


def in_torchrun(arguments: Sequence[str]) -> dict[str, object]:
    """The settings that torchrun would take from options and environment."""
    return vars(torchrun.get_args_parser().parse_args([*arguments, "script"]))


def test_one_machine_gets_what_a_restart_needs(started: list[list[str]]) -> None:
    command = ["pretrain", "photos/", "--out", "runs/a"]
    assert main(["launch", "--nproc-per-node", "2", "--", *command]) == 0
    (given,) = started
    assert given == [
        *("--nproc-per-node", "2", "--standalone", "--module", "diptych"),
        *(*command, "--resume"),
    ]
    assert os.environ[CURE] == "1"
    assert in_torchrun([])["max_restarts"] == 3
    assert in_torchrun([])["shutdown_timeout"] == 120
    assert int(os.environ["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)


def test_embeddings_need_no_resume(started: list[list[str]]) -> None:
    command = ["embed", "runs/a", "photos/", "-o", "features/", "--shards", "64"]
    assert main(["launch", "--nproc-per-node", "2", "--", *command]) == 0
    (given,) = started
    assert given[-len(command) - 2 :] == ["--module", "diptych", *command]


def test_what_the_user_says_stays(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", "7")
    monkeypatch.setenv(CURE, "0")
    command = ["pretrain", "photos/", "--out", "runs/a", "--resume"]
    assert main(["launch", "--max-restarts=9", "--standalone", "--", *command]) == 0
    assert started == [["--max-restarts=9", "--standalone", "--module", "diptych", *command]]
    assert in_torchrun(["--max-restarts=9"])["max_restarts"] == 9
    assert in_torchrun([])["shutdown_timeout"] == 7
    assert os.environ[CURE] == "0"


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    assert "SIGHUP" in str(in_torchrun([])["signals_to_handle"])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        prepare([])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert in_torchrun([])["signals_to_handle"] == "SIGTERM,SIGINT,SIGQUIT"


def test_several_machines_meet_where_a_lost_one_may_return() -> None:
    options = ["--nnodes", "1:4", "--rdzv-endpoint", "node1:29400"]
    assert prepare(options) == []
    assert in_torchrun(options)["rdzv_backend"] == "c10d"
    with pytest.raises(ConfigError, match=r"--nnodes 1:4 .* --rdzv-endpoint HOST:PORT"):
        prepare(["--nnodes", "1:4"])


def test_an_operator_of_kubernetes_says_it_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_RDZV_ENDPOINT", "worker-0:23456")
    monkeypatch.setenv("PET_NNODES", "1:4")
    monkeypatch.setenv("PET_MAX_RESTARTS", "100")
    assert prepare([]) == []
    found = in_torchrun([])
    assert (found["rdzv_backend"], found["max_restarts"]) == ("c10d", 100)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pretrain", "photos/"], 1, "torchrun's options, then --, then a verb"),
        (["--"], 1, "torchrun's options, then --, then a verb"),
        (["--", "evaluate", "runs/a"], 1, "pretrain or embed in several processes; got 'evaluate'"),
        (["--", "pretrain", "photos/"], 1, "needs pretrain's --out RUN"),
        (["--", "embed", "runs/a", "photos/"], 2, "--out"),
        (["--", "pretrain", "photos/", "--out", "a", "--epoch", "3"], 2, "no flag --epoch"),
        (["--nproc", "2", "--np", "--", "pretrain", "photos/", "--out", "a"], 2, "usage"),
    ],
)
def test_what_is_wrong_is_said_before_any_process_starts(
    arguments: list[str],
    code: int,
    message: str,
    started: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["launch", *arguments]))
    assert ended.value.code == code
    assert message in capsys.readouterr().err
    assert not started


def failed(code: int) -> ChildFailedError:
    later = ProcessFailure(local_rank=0, pid=11, exitcode=1, error_file="none")
    first = ProcessFailure(local_rank=1, pid=12, exitcode=code, error_file="none")
    first.timestamp, later.timestamp = 10, 20
    return ChildFailedError("diptych", {0: later, 1: first})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SignalException("", signal.SIGTERM), 143),
        (SignalException("", signal.SIGINT), 130),
        (failed(-signal.SIGKILL), 137),
        (failed(143), 143),
        (failed(1), 1),
    ],
    ids=["SIGTERM", "SIGINT", "killed", "saved", "error"],
)
def test_exit_codes(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def torchrun_main(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(torchrun, "main", torchrun_main)
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--", "pretrain", "photos/", "--out", "a"])
    assert ended.value.code == code


def test_a_run_that_torchrun_may_restart_needs_a_folder(
    class_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with pytest.raises(RunFolderError, match="without --out RUN a restart would begin another"):
        pretrain(class_folder, quiet=True)


@pytest.mark.parametrize(
    ("cure", "resume", "restarts", "named"),
    [
        ("1", True, "3", []),
        ("0", True, "3", [CURE]),
        ("1", False, "3", ["--resume"]),
        ("0", False, "3", [CURE, "--resume"]),
        ("0", False, "0", []),
    ],
)
def test_what_would_make_a_restart_fail_is_one_sentence(
    cure: str, resume: bool, restarts: str, named: list[str]
) -> None:
    environment = {CURE: cure, "TORCHELASTIC_MAX_RESTARTS": restarts}
    said = advice_on_restarts(resume=resume, environment=environment)
    if not named:
        assert said is None
        return
    assert said is not None
    assert [name for name in (CURE, "--resume") if name in said] == named
    assert "diptych launch" in said
