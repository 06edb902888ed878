"""What `diptych launch` adds to torchrun, what it refuses, and how it exits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from diptych.cli.main import main
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, RunFolderError
from diptych.models.weights import save_encoder, untrained_encoder
from diptych.pretraining import pretrain
from diptych.runtime.launcher import prepare
from diptych.runtime.world import LAUNCHER_PRINTS_ERRORS, STORE_PER_RESTART, advice_on_restarts

SET = (
    "PET_MAX_RESTARTS",
    "PET_SHUTDOWN_TIMEOUT",
    "PET_RDZV_BACKEND",
    "PET_SIGNALS_TO_HANDLE",
    "OMP_NUM_THREADS",
    STORE_PER_RESTART,
    LAUNCHER_PRINTS_ERRORS,
)


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is set is taken back after each test."""
    for name in SET:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with images, and with a run that has ended."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "runs").mkdir()
    config = replace(RunConfig(), encoder=EncoderConfig(width=4, stage_blocks=(1, 1)))
    (tmp_path / "runs" / "a").mkdir()
    save_encoder(tmp_path / "runs/a/encoder.safetensors", untrained_encoder(config), config)
    return tmp_path


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
    command = ["pretrain", "photos/", "--out", "runs/b"]
    assert main(["launch", "--nproc-per-node", "2", "--", *command]) == 0
    (given,) = started
    assert given == [
        *("--nproc-per-node", "2", "--standalone", "--module", "diptych"),
        *(*command, "--resume"),
    ]
    assert os.environ[STORE_PER_RESTART] == "1"
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
    monkeypatch.setenv(STORE_PER_RESTART, "0")
    command = ["pretrain", "photos/", "--out", "runs/b", "--resume"]
    assert main(["launch", "--max-restarts=9", "--standalone", "--", *command]) == 0
    assert started == [["--max-restarts=9", "--standalone", "--module", "diptych", *command]]
    assert in_torchrun(["--max-restarts=9"])["max_restarts"] == 9
    assert in_torchrun([])["shutdown_timeout"] == 7
    assert os.environ[STORE_PER_RESTART] == "0"


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


OUT = ("photos/", "--out", "runs/b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "photos/"], "torchrun's options, then --, then a verb"),
        (["--"], "torchrun's options, then --, then a verb"),
        (["--", "evaluate", "runs/a"], "pretrain or embed in several processes; got 'evaluate'"),
        (["--", "pretrain", "photos/"], "needs pretrain's --out RUN"),
        (["--", "embed", "runs/a", "photos/"], "--out"),
        (["--", "pretrain", *OUT, "--epoch", "3"], "no flag --epoch"),
        (["--nproc", "2", "--np", "--", "pretrain", *OUT], "usage"),
        (["--", "pretrain", "nowhere/", "--out", "runs/b"], "nowhere' does not exist"),
        (["--", "pretrain", "photos/", "--out", "runs/a"], "is not empty and holds no run"),
        (["--", "pretrain", *OUT, "--config", "no.toml"], "cannot read the config file"),
        (["--", "pretrain", *OUT, "--training.begin-from", "runs/none"], "runs/none"),
        (["--nproc-per-node", "2", "--", "pretrain", *OUT, "--batch-size", "33"], "use 32 or 34"),
        (["--nproc-per-node", "3", "--", "pretrain", *OUT, "--batch-size", "5"], "use 6, or"),
        (["--", "pretrain", "photos/", "--out", "a-file/b"], "a-file/b cannot be written: Not a"),
        (["--", "pretrain", *OUT, "--recipe", "none"], "no recipe 'none'"),
        (["--", "pretrain", *OUT, "--scale", "none"], "no scale 'none'"),
        (["--nproc-per-node", "0", "--", "pretrain", *OUT], "must be 1 or more; got 0"),
        (["--nproc-per-node", "x", "--", "pretrain", *OUT], "--nproc-per-node x: "),
        (["--nproc-per-node", "-1", "--", "embed", "runs/a", "photos/", "-o", "f"], "got -1"),
        (["--nnodes", "x", "--", "pretrain", *OUT], "--nnodes is a number of machines"),
        (["--nnodes", "3:2", "--", "pretrain", *OUT], "as 2:4; got 3:2"),
        (["--nnodes", "1:2:3", "--", "pretrain", *OUT], "as 2:4; got 1:2:3"),
        (["--", "embed", "runs/none", "photos/", "-o", "f"], "runs/none does not exist"),
        (["--", "embed", "runs/a", "nowhere/", "-o", "f"], "'nowhere/' does not exist"),
        (["--", "embed", "runs/a", "photos/", "-o", "f", "--shard", "3/2"], "no shard 3 of 2"),
        (["--", "embed", "runs/a", "photos/", "-o", "a-file/f"], "a-file/f: Not a directory"),
    ],
)
def test_what_is_wrong_is_said_before_any_process_starts(
    arguments: list[str],
    message: str,
    started: list[list[str]],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "a-file").touch()
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["launch", *arguments]))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert said.count("diptych:") <= 1
    assert not started


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_found_before_any_process_starts(
    started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--", "pretrain", *OUT, "--training.device", "cuda"]) == 2
    assert "training.device = 'cuda', but torch" in capsys.readouterr().err
    assert not started


def in_two_processes(command: list[str], here: Path) -> tuple[int, str, float]:
    """The exit code of `diptych launch`, what it said on stderr, and its seconds."""
    began = time.monotonic()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "diptych", "launch", "--nproc-per-node", "2", "--"),
            *(*command, "--threads", "2"),
        ],
        cwd=here,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return ended.returncode, ended.stderr, time.monotonic() - began


@pytest.mark.slow
def test_what_only_a_process_can_find_ends_the_job_with_one_sentence(here: Path) -> None:
    """No restart mends it: one start, one sentence, no frame around it."""
    (here / "photos" / "a.png").write_bytes(b"no image")
    code, said, _ = in_two_processes(["pretrain", *OUT], here)
    assert code == 2, said
    assert said.startswith("diptych: ")
    assert said.count("diptych: ") == 1
    assert said.count("a.png") == 1
    assert "torch" not in said


@pytest.mark.slow
def test_what_the_first_finds_alone_is_said_once(here: Path, class_folder: Path) -> None:
    flags = ["--epochs", "1", "--encoder.width", "4", "--scale", "tiny", "--norm.kind", "shuffle"]
    flags += ["--norm.images-per-group", "7"]
    code, said, _ = in_two_processes(
        ["pretrain", str(class_folder), "--out", "runs/c", *flags], here
    )
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert "norm.images_per_group" in said


def test_a_process_hands_its_launcher_what_the_user_must_change(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the form that torchrun reads; without a launcher of ours the process says it itself."""
    file = here / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert main(["recipes", "nothing"]) == 2
    assert "no recipe 'nothing'" in capsys.readouterr().err
    monkeypatch.setenv(LAUNCHER_PRINTS_ERRORS, "1")
    assert main(["recipes", "nothing"]) == 2
    assert capsys.readouterr().err == ""
    failure = ProcessFailure(local_rank=0, pid=11, exitcode=2, error_file=str(file))
    killed = ProcessFailure(local_rank=0, pid=12, exitcode=-15, error_file="none")

    def torchrun_main(arguments: list[str]) -> None:
        raise ChildFailedError("diptych", {0: killed, 1: failure})

    monkeypatch.setattr(torchrun, "main", torchrun_main)
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--", "pretrain", *OUT])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("diptych: there is no recipe 'nothing'")
    assert len(said.splitlines()) == 1


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
        (failed(2), 2),
    ],
    ids=["SIGTERM", "SIGINT", "killed", "saved", "error", "user"],
)
def test_exit_codes(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def torchrun_main(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(torchrun, "main", torchrun_main)
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--", "pretrain", *OUT])
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
        ("0", True, "3", [STORE_PER_RESTART]),
        ("1", False, "3", ["--resume"]),
        ("0", False, "3", [STORE_PER_RESTART, "--resume"]),
        ("0", False, "0", []),
    ],
)
def test_what_would_make_a_restart_fail_is_one_sentence(
    cure: str, resume: bool, restarts: str, named: list[str]
) -> None:
    environment = {STORE_PER_RESTART: cure, "TORCHELASTIC_MAX_RESTARTS": restarts}
    said = advice_on_restarts(resume=resume, environment=environment)
    if not named:
        assert said is None
        return
    assert said is not None
    assert [name for name in (STORE_PER_RESTART, "--resume") if name in said] == named
    assert "diptych launch" in said
