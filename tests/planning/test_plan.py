"""Plans as a whole: laws that hold whatever the numbers, words that fit them, and the verb."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diptych.cli import main
from diptych.configs import RunConfig
from diptych.errors import ConfigError
from diptych.planning.case import Case
from diptych.planning.machine import MACHINES, MachineConfig, machine_named
from diptych.planning.plan import Plan, make_plan
from diptych.planning.verdict import limits, verdict
from diptych.recipes import recipe_config

SMALL = ("--scale", "tiny", "--encoder.width", "4", "--encoder.stage-blocks", "1")


def small(recipe: str, *, batch: int = 64, norm: str | None = None) -> RunConfig:
    config = recipe_config(recipe, "tiny")
    encoder = replace(config.encoder, width=4, stage_blocks=(1,))
    kind: Any = norm or config.norm.kind
    return replace(
        config,
        encoder=encoder,
        norm=replace(config.norm, kind=kind),
        training=replace(config.training, batch_size=batch),
    )


def planned(recipe: str, *, on: str = "cpu", images: int = 10_000, **more: Any) -> Plan:
    processes = more.pop("processes", 1)
    return make_plan(Case(small(recipe, **more), images, processes), MACHINES[on])


def test_days_are_steps_times_their_seconds() -> None:
    plan = planned("simclr")
    assert plan.case.steps == 30 * (10_000 // 64)
    seconds = plan.step_seconds + plan.checkpoint_seconds
    assert plan.days == pytest.approx(plan.case.steps * seconds / 86400)
    assert plan.step_seconds == pytest.approx(sum(plan.seconds.values()))


def test_a_faster_machine_shortens_the_networks_by_as_much() -> None:
    case = Case(small("moco_v2"), 10_000)
    quick = machine_named("cpu", MachineConfig(teraflops_per_second=1.0))
    seconds = make_plan(case, quick).seconds["networks"]
    assert seconds == pytest.approx(make_plan(case, quick).passes.flops / 1e12)


def test_measured_seconds_take_the_place_of_rates() -> None:
    case = Case(small("simclr"), 10_000)
    plan = make_plan(case, MACHINES["cpu"], measured={"networks": 5.0})
    assert plan.seconds["networks"] == 5.0
    assert plan.measured
    assert plan.step_seconds > 5.0


def test_an_accelerator_waits_only_for_views_that_take_longer_than_the_rest() -> None:
    slow = replace(MACHINES["h100"], views_per_second=1.0)
    case = Case(small("simclr"), 10_000, image_pixels=32 * 32)
    plan = make_plan(case, slow)
    values = 64 * 2 * 32 * 32 / 224**2  # views of 224 pixels
    assert plan.step_seconds == pytest.approx(values)
    assert make_plan(case, MACHINES["h100"]).seconds["waiting for views"] == 0.0


def test_a_bank_breaks_with_the_images_and_a_queue_does_not() -> None:
    bank = planned("memory_bank", on="h100", images=10**9, processes=8)
    keys = 10**9 * (128 * 4 + 8 + 1)  # and where each image stands in the list, and whether it does
    assert bank.memory.lasting["bank"] == keys
    said = verdict(bank)
    # A checkpoint needs it twice in main memory, before any device is full.
    assert said[0].startswith("Breaks first: main memory")
    assert "copies for a checkpoint" in said[0]
    assert said[1].startswith("Then: memory of the bank (521.0 GB of 80.0 GB)")
    assert "fp16" in said[1]
    queue = planned("moco_v2", on="h100", images=10**9, processes=2, norm="layer")
    assert queue.memory.lasting["queue"] == 2048 * 128 * 4 + 0
    assert not any("memory of the queue" in sentence for sentence in verdict(queue))


def test_shuffling_breaks_with_the_processes() -> None:
    slow = replace(MACHINES["a100"], network_bytes_per_second=1e8)
    case = Case(small("moco_v1", batch=1024), 10**6, 8)
    said = verdict(make_plan(case, slow))
    assert "shuffled views" in said[0]
    assert "layer" in said[0]


def test_too_large_a_batch_is_to_be_encoded_in_chunks_that_fit() -> None:
    config = small("simclr", batch=4096)
    machine = replace(MACHINES["cpu"], memory_bytes=1.25e9)
    said = " ".join(verdict(make_plan(Case(config, 10_000), machine)))
    chunk = int(said.split("--training.chunk-size ")[1].split()[0])
    chunked = replace(config, training=replace(config.training, chunk_size=chunk))
    after = make_plan(Case(chunked, 10_000), machine)
    assert not any(one.stops and one.breaks for one in limits(after))
    assert (
        after.seconds["networks"]
        > 1.2 * make_plan(Case(config, 10_000), machine).seconds["networks"]
    )


def test_what_ends_a_run_is_said_before_what_slows_it() -> None:
    every = limits(planned("memory_bank", on="l4", images=10**9, processes=8))
    broken = [one.stops for one in every if one.breaks]
    assert broken == sorted(broken, reverse=True)
    assert broken[0]


def test_processes_that_cannot_share_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="share it equally"):
        planned("simclr", processes=7)
    with pytest.raises(ConfigError, match="no machine 'abacus'"):
        machine_named("abacus")
    with pytest.raises(ConfigError, match=r"machine\.memory_gigabytes must be positive"):
        MachineConfig(memory_gigabytes=0)


def test_the_verb_takes_what_pretrain_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    asked = ["plan", *SMALL, "--recipe", "moco_v2", "--epochs", "3", "--images-count", "5000"]
    machine = ["--on", "a100", "--processes", "4", "--machine.network-gigabytes-per-second", "2"]
    assert main([*asked, *machine, "--norm.kind", "layer", "--json", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 processes of 32 images each" in said
    assert "gradients, reduced" in said
    found = json.loads(file.read_text())
    assert found["steps"] == 3 * (5000 // 128)
    assert found["machine"]["network_bytes_per_second"] == 2e9
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values()))


def test_the_verb_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 1
    assert "--images-count" in capsys.readouterr().err
    assert main(["plan", "--images-count", "100", "--processes", "0"]) == 1
    assert "--processes must be 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_parts_are_measured_at_the_runs_own_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    asked = ["plan", "photographs", *SMALL, "--recipe", "moco_v3", "--batch-size", "16"]
    assert main([*asked, "--measure", "--threads", "1", "--quiet", "--json", str(file)]) == 0
    assert capsys.readouterr().out == ""
    found = json.loads(file.read_text())
    assert found["measured"]
    assert found["images"] == 5120
    names = ("reads and views", "networks", "look-up", "optimizer and twin")
    assert all(found["seconds"][name] > 0 for name in names)
    assert found["memory"]["host"]["libraries"] > 1e8
