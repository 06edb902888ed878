"""The harnesses under benchmarks/: what they add up and what they write, not what they measure."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu import Bench, NotApplicable
from peers import __main__ as harness
from peers import environments
from peers.contenders import CONTENDERS, Run, diptych_with, policy, refuse, settings_of_docs
from peers.environments import OF_OURS, ROOT, runner_environment
from peers.results import Row, least_ratio, load, markdown, save
from peers.runners.shared import Job, Snapshots, maps_of, network_of
from peers.watch import tree, watch
from torch import nn

from diptych.config.policies import parse_policy


def run_in(folder: Path, **settings: object) -> Run:
    run = Run(images=str(folder / "set" / "train"), out=str(folder / "run"))
    return replace(run, **settings)  # type: ignore[arg-type]


def test_the_ratio_is_that_of_the_nearest_peer_and_paired_by_turn() -> None:
    ours = [1.0, 2.0, 4.0]
    peers = {"a": [3.0, 4.0, 20.0], "b": [9.0, 18.0, 36.0]}

    found = least_ratio(ours, peers)

    assert found == np.median(np.array(peers["a"]) / np.array(ours))
    assert found == 3.0


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    row = Row("memory", "a case", "MB", 100.0, {"lightly": 50.0}, 2.0, 0.7, "at most", {"x": [1]})

    save([row], tmp_path / "figure.json", {"lightly": {"torch": "2"}})

    assert load(tmp_path / "figure.json") == [row]
    document = json.loads((tmp_path / "figure.json").read_text())
    assert document["rows"][0]["holds"] is False
    assert document["environments"] == {"lightly": {"torch": "2"}}
    assert document["machine"]["cores"] >= 1
    assert "torch" in document["versions"]


def test_the_table_has_a_dash_for_a_peer_without_the_method() -> None:
    one = Row("time", "simclr", "s", 2.0, {"a": 4.0, "b": 6.0}, 2.0, 2.0)
    other = Row("time", "moco_v2", "s", 1234.0, {"a": 5.0}, 0.5, 2.0)

    lines = markdown([one, other]).splitlines()

    assert lines[0] == "| figure, case | unit | diptych | a | b | ratio | goal |"
    assert {line.count("|") for line in lines} == {8}
    assert lines[2] == "| time, simclr | s | 2 | 4 | 6 | 2.00 | at least 2 |"
    assert lines[3] == "| time, moco_v2 | s | 1,234 | 5 | - | 0.50 | at least 2, missed |"


def test_runners_need_no_more_than_their_environments_get() -> None:
    """An environment of a peer has torch, what the peer needs, and what is installed for ours."""
    code = "import sys, peers.runners.shared; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(
        command, env=runner_environment(), capture_output=True, text=True, check=True
    )
    packages = packages_distributions()
    loaded = {one for name in answer.stdout.split() for one in packages.get(name, ())}
    wanted = [one for one in requires("diptych") or () if "extra ==" not in one]
    ours = {re.split(r"[^\w-]", one)[0] for one in wanted}

    assert {"torch", *OF_OURS} <= ours
    assert loaded & ours <= {"torch", "numpy", *OF_OURS}


@pytest.mark.parametrize(("method", "area"), [("simclr", 0.08), ("moco_v2", 0.2)])
def test_both_sides_get_the_same_views(tmp_path: Path, method: str, area: float) -> None:
    run = run_in(tmp_path, method=method, blur=True)
    job = Job(**asdict(run))

    crop, flip, color, gray, blur = (
        {one.name: getattr(step, one.name) for one in fields(step)}
        for step in parse_policy(policy(run))
    )

    assert crop["area"] == (job.crop_area, 1.0) == (area, 1.0)
    assert job.jitter == tuple(
        color[name] for name in ("brightness", "contrast", "saturation", "hue")
    )
    shares = [step["probability"] for step in (flip, color, gray, blur)]
    assert shares == [0.5, 0.8, 0.2, 0.5]


def test_a_job_has_all_that_a_run_says() -> None:
    assert [one.name for one in fields(Run)] == list(Job._fields)


def test_flags_of_ones_own_take_the_place_of_the_shared_settings(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    flags = ["--recipe", "moco_v3", "--method.loss.temperature", "0.3"]

    shared = CONTENDERS["diptych"].command(run, tmp_path)
    own = diptych_with(flags, run)

    assert shared.count("--method.loss.temperature") == 1
    assert own[-4:] == flags
    assert own.count("--method.loss.temperature") == 1
    assert {"--encoder.name", "--epochs", "--seed", "--out"} <= set(own)
    assert diptych_with(["--training.batch_size=64"], run).count("--batch-size") == 0


@pytest.mark.parametrize(
    "flags",
    [
        *(["--epochs", "9"], ["--training.epochs=9"], ["--minutes", "3"], ["--seed", "1"]),
        *(["--encoder.name=resnet50"], ["--encoder", "resnet50"], ["--views.side_pixels", "64"]),
        *(["--weights", "other.pth"], ["--encoder.weights=other.pth"], ["--begin-from", "runs/a"]),
        *(["--method.loss.kind", "supervised"], ["--method.loss.kind=supervised"]),
    ],
)
def test_flags_that_a_record_must_not_have_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    with pytest.raises(ValueError, match="nothing is learned from weights or labels"):
        refuse(flags)

    monkeypatch.setattr(sys, "argv", ["peers", "record", "--", *flags])
    with pytest.raises(SystemExit) as ended:
        harness.arguments()
    assert ended.value.code == 2
    assert "error: not with " in capsys.readouterr().err


def test_other_flags_are_a_records_own() -> None:
    refuse(["--recipe", "byol", "--batch-size", "64", "--optimizer.learning-rate=0.24"])


def test_an_environment_with_another_torch_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {**dict.fromkeys(OF_OURS, "1"), "lightly": "1.6.0", "torch": "2.14.1+cu130"}
    monkeypatch.setattr(environments, "versions", lambda *_: found)
    python = environments.python_of(tmp_path, "a")
    assert not environments._has(tmp_path, "a", ("lightly==1.6.0",))  # it is not there
    python.parent.mkdir(parents=True)
    python.touch()

    assert environments._has(tmp_path, "a", ("lightly==1.6.0", "torch==2.14.1"))
    assert not environments._has(tmp_path, "a", ("lightly==1.6.0", "torch==2.15.0"))


def test_threads_of_all_libraries_wait_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    variables = {name: one.variables() for name, one in CONTENDERS.items()}

    assert {found["GOMP_SPINCOUNT"] for found in variables.values()} == {"20000"}
    assert not any("OMP_NUM_THREADS" in found for found in variables.values())


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "diptych"])
def test_a_peers_command_names_a_runner_that_is_there(tmp_path: Path, name: str) -> None:
    run = settings_of_docs(name, run_in(tmp_path))

    python, _, module, job = CONTENDERS[name].command(run, tmp_path)

    assert python.startswith(str(tmp_path))
    assert (ROOT / "benchmarks" / Path(*module.split("."))).with_suffix(".py").exists()
    assert json.loads(job) == asdict(run)


@pytest.mark.parametrize("network", ["small_resnet", "resnet18"])
def test_the_maps_average_to_the_networks_features(tmp_path: Path, network: str) -> None:
    job = Job(**asdict(run_in(tmp_path, network=network)))
    built, features = network_of(job)
    built.eval()
    images = torch.randn(2, 3, 32, 32)

    with torch.no_grad():
        found = maps_of(built, images).mean(dim=(2, 3))
        torch.testing.assert_close(found, built(images))

    assert found.shape == (2, features)


def test_snapshots_come_when_their_time_has_come(tmp_path: Path) -> None:
    job = Job(**asdict(run_in(tmp_path, snapshot_seconds=0.05)))
    Path(job.out).mkdir()
    snapshots, network = Snapshots(job), nn.Linear(2, 2)

    snapshots.step(network)
    early = list(snapshots.folder.iterdir())
    time.sleep(0.06)
    snapshots.step(network)
    snapshots.save(network)

    assert early == []
    names = sorted(one.name for one in snapshots.folder.iterdir())
    assert names == ["000000.safetensors", "000001.safetensors"]


def test_memory_of_children_counts(tmp_path: Path) -> None:
    child = "held = bytearray(b'x' * 60_000_000); import time; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    found = watch([sys.executable, "-c", parent], os.environ, tmp_path / "log", memory=True)

    assert 60 < found.megabytes < 200
    assert found.seconds > 1


def test_a_failed_command_shows_the_end_of_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:\nno such thing"):
        watch(
            [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"],
            os.environ,
            tmp_path / "log",
        )


def test_a_command_ends_with_the_harness(tmp_path: Path) -> None:
    harness = (
        "import os, signal, sys; from pathlib import Path; from peers.watch import watch\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "command = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        f"watch(command, os.environ, Path({str(tmp_path / 'log')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", harness], env=runner_environment())
    while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
        time.sleep(0.02)
    command = tree(process.pid)[1]

    process.terminate()

    assert process.wait() == 143
    assert not Path(f"/proc/{command}").exists() or "Z" in Path(f"/proc/{command}/stat").read_text()


def test_the_tree_of_a_process_that_is_gone_is_itself() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()

    assert tree(done.pid) == [done.pid]


def test_peers_see_our_networks_and_are_not_bound_to_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    variables = runner_environment()

    assert "OMP_NUM_THREADS" not in variables
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT / "src")


def test_every_result_of_a_device_is_kept_though_a_check_fails(tmp_path: Path) -> None:
    bench = Bench("cpu", True, tmp_path, time.monotonic() + 60)

    def broken(_: Bench) -> dict[str, object]:
        raise ValueError("of no use")

    def senseless(_: Bench) -> dict[str, object]:
        raise NotApplicable("there is no GPU")

    bench.do("first", lambda _: {"state": "right"})
    bench.do("second", broken)
    bench.do("third", senseless)
    bench.deadline = 0.0
    bench.do("fourth", lambda _: {"state": "right"})

    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [one["state"] for one in found.values()] == ["right", "failed", "not run", "not run"]
    assert "of no use" in found["second"]["error"]
    assert found["third"]["why"] == "there is no GPU"
    assert found["fourth"]["why"] == "no time was left"
