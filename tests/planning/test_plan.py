"""Plans as a whole: laws that hold whatever the numbers, words that fit them, and the verb."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.config.recipes import RECIPES, recipe_config
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.images.open import open_images
from diptych.planning import measure
from diptych.planning.machine import MACHINES, MachineConfig, machine_named
from diptych.planning.plan import Plan, make_plan
from diptych.planning.planned_run import PlannedRun, PlanRequest, resolve_run
from diptych.planning.print_plan import advice, limits

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
    return make_plan(PlannedRun(small(recipe, **more), images, processes), MACHINES[on])


def test_days_are_steps_times_their_seconds() -> None:
    plan = planned("simclr")
    assert plan.run.steps == 30 * (10_000 // 64)
    seconds = plan.step_seconds + plan.checkpoint_seconds
    assert plan.days == pytest.approx(plan.run.steps * seconds / 86400)
    assert plan.step_seconds == pytest.approx(sum(plan.seconds.values()))


def test_a_faster_machine_shortens_the_networks_by_as_much() -> None:
    run = PlannedRun(small("moco_v2"), 10_000)
    quick = machine_named("cpu", MachineConfig(teraflops_per_second=1.0))
    seconds = make_plan(run, quick).seconds["networks"]
    assert seconds == pytest.approx(make_plan(run, quick).networks.flops / 1e12)


def test_measured_seconds_take_the_place_of_rates() -> None:
    run = PlannedRun(small("simclr"), 10_000)
    plan = make_plan(run, MACHINES["cpu"], measured={"networks": 5.0})
    assert plan.seconds["networks"] == 5.0
    assert plan.measured
    assert plan.step_seconds > 5.0


def test_a_long_opening_is_named_among_what_breaks() -> None:
    many = planned("simclr", images=10**6)
    short = replace(many, opening=replace(many.opening, first_seconds=1.0))
    assert many.opening.first_seconds > 10 * many.opening.again_seconds > 0
    parts = {one.part: one for one in limits(many)}
    assert "the first time on a machine" in parts["opening the images"].found
    assert parts["opening the images"].load == pytest.approx(
        4 * many.opening.first_seconds / (many.days * 86400)
    )
    quick = machine_named("cpu", MachineConfig(teraflops_per_second=100.0))
    said = advice(
        make_plan(PlannedRun(small("moco_v2"), 10**6), replace(quick, views_per_second=10.0))
    )
    assert any(
        "--images.limit" in sentence and "opening the images" in sentence for sentence in said
    )
    assert not any("opening the images" in sentence for sentence in advice(short))


def test_an_accelerator_waits_only_for_views_that_take_longer_than_the_rest() -> None:
    slow = replace(MACHINES["h100"], views_per_second=1.0)
    run = PlannedRun(small("simclr"), 10_000, image_pixels=32 * 32)
    plan = make_plan(run, slow)
    values = 64 * 2 * 32 * 32 / 224**2  # views of 224 pixels
    assert plan.step_seconds == pytest.approx(values)
    assert make_plan(run, MACHINES["h100"]).seconds["waiting for views"] == 0.0


@pytest.mark.parametrize(
    ("applier", "on", "helps"),
    [("auto", "h100", False), ("cpu", "h100", True), ("cpu", "cpu", False)],
)
def test_the_device_is_to_make_views_only_where_it_does_not(
    applier: Any, on: str, helps: bool
) -> None:
    config = small("simclr")
    config = replace(config, views=replace(config.views, applier=applier))
    slow = replace(MACHINES[on], views_per_second=1.0)
    parts = {one.part: one for one in limits(make_plan(PlannedRun(config, 10_000), slow))}
    assert parts["making views"].breaks
    assert ("--views.applier device" in parts["making views"].cure) == helps


def test_a_bank_breaks_with_the_images_and_a_queue_does_not() -> None:
    bank = planned("memory_bank", on="h100", images=10**9, processes=8)
    keys = 10**9 * (128 * 4 + 8 + 1)  # and where each image stands in the list, and whether it does
    assert bank.memory.lasting["bank"] == keys
    said = advice(bank)
    assert said[0].startswith("Breaks first: memory of the bank (521.0 GB of 80.0 GB)")
    shares, fp16 = "bank.placement sharded", "bank.precision fp16"
    assert 0 < said[0].index(shares) < said[0].index(fp16) < said[0].index("A queue")
    assert said[1].startswith("Then: main memory")
    assert "copy for checkpoints 521.0 GB" in said[1]
    queue = planned("moco_v2", on="h100", images=10**9, processes=2, norm="layer")
    assert queue.memory.lasting["queue"] == 2048 * 128 * 4 + 0
    assert not any("memory of the queue" in sentence for sentence in advice(queue))


def test_a_bank_in_shares_fits_where_a_whole_one_does_not() -> None:
    config = small("memory_bank")
    dictionary = replace(
        config.method.dictionary, bank=replace(config.method.dictionary.bank, placement="sharded")
    )
    config = replace(config, method=replace(config.method, dictionary=dictionary))
    images, processes = 10**9, 8
    plan = make_plan(PlannedRun(config, images, processes), MACHINES["h100"])
    assert plan.memory.lasting["bank"] == images * (128 * 4 / processes + 8 + 1)
    parts = {one.part: one for one in limits(plan)}
    assert not parts["memory of the bank"].breaks
    assert "More processes hold smaller shares." in parts["memory of the bank"].cure
    # The first process still gathers the whole for a checkpoint.
    assert plan.memory.host["copy for checkpoints"] > images * 128 * 4
    assert parts["main memory"].breaks
    assert any(one.what == "fetched keys" for one in plan.messages)
    # 7/8 of the keys come over the network while training stands still.
    whole = images * 128 * 4
    assert plan.pause_seconds == pytest.approx(7 / 8 * whole / 12.5e9, rel=0.05)


def test_fp16_runs_at_its_own_rate_and_reads_gradients_once_more() -> None:
    half, single = small("simclr"), small("simclr")
    half = replace(half, training=replace(half.training, precision="fp16"))
    t4 = MACHINES["t4"]
    plan, plain = (make_plan(PlannedRun(one, 10_000), t4) for one in (half, single))
    assert plan.seconds["networks"] == pytest.approx(plan.networks.flops / (0.15 * 65e12))
    more = (
        plan.seconds["optimizer and momentum encoder"]
        - plain.seconds["optimizer and momentum encoder"]
    )
    assert more == pytest.approx(2 * 4 * plan.weights / 320e9)


def test_offloaded_activations_lie_in_main_memory_of_accelerators_only() -> None:
    config = small("simclr")
    away = replace(config, training=replace(config.training, offload_activations=True))
    plan, plain = (make_plan(PlannedRun(one, 10_000), MACHINES["a100"]) for one in (away, config))
    size = plan.memory.host["saved activations"]
    saved = [one.memory.moments["networks"]["saved for backward"] for one in (plan, plain)]
    assert saved[0] < 0.1 * saved[1]
    assert plan.memory.main - plain.memory.main == size
    assert plan.seconds["offloading"] == pytest.approx(2 * size / 32e9)
    on_cpu, plain_on_cpu = (
        make_plan(PlannedRun(one, 10_000), MACHINES["cpu"]) for one in (away, config)
    )
    assert on_cpu.memory == plain_on_cpu.memory
    assert on_cpu.seconds == plain_on_cpu.seconds
    little = replace(MACHINES["a100"], host_bytes=size, base_bytes=0.0)
    said = advice(make_plan(PlannedRun(away, 10_000), little))
    assert any("--training.offload-activations" in sentence for sentence in said)


def test_shuffling_breaks_with_the_processes() -> None:
    slow = replace(MACHINES["a100"], network_bytes_per_second=1e8)
    run = PlannedRun(small("moco_v1", batch=1024), 10**6, 8)
    said = advice(make_plan(run, slow))
    assert "shuffled views" in said[0]
    assert "layer" in said[0]


def test_too_large_a_batch_is_to_be_encoded_in_chunks_that_fit() -> None:
    config = small("simclr", batch=4096)
    machine = replace(MACHINES["cpu"], memory_bytes=1.4e9)
    said = " ".join(advice(make_plan(PlannedRun(config, 10_000), machine)))
    chunk = int(said.split("--training.chunk-size ")[1].split()[0])
    chunked = replace(config, training=replace(config.training, chunk_size=chunk))
    after = make_plan(PlannedRun(chunked, 10_000), machine)
    assert not any(one.stops and one.breaks for one in limits(after))
    assert (
        after.seconds["networks"]
        > 1.2 * make_plan(PlannedRun(config, 10_000), machine).seconds["networks"]
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
    assert "opening the images, the first time" in said
    assert "opening the images again" in said
    found = json.loads(file.read_text())
    assert found["steps"] == 3 * (5000 // 128)
    assert found["machine"]["network_bytes_per_second"] == 2e9
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values()))


def test_the_verb_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "--images-count" in capsys.readouterr().err
    for flag in ("--processes", "--processes-here", "--images-count", "--image-side"):
        assert main(["plan", "--images-count", "100", flag, "0"]) == 2
        assert f"{flag} must be positive; got 0" in capsys.readouterr().err


def test_the_file_of_a_recipe_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    assert main(["recipes", "moco_v2", "--scale", "tiny"]) == 0
    file.write_text(capsys.readouterr().out)
    assert main(["plan", "--config", str(file), *SMALL, "--images-count", "5000"]) == 0
    assert "5,000 images, batch 128" in " ".join(capsys.readouterr().out.split())


def photographs(folder: Path, *, side: int) -> Path:
    for number in range(8):
        picture = np.full((side, side + 64, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.jpg")
    return folder


def resolved(path: Path, **request: Any) -> PlannedRun:
    settings = {
        "images": {"path": str(path), "cache_folder": str(path / "cache")},
        "recipe": "moco_v2",
        "scale": "tiny",
    }
    return resolve_run(PlanRequest(MACHINES["cpu"], **request), settings)[0]


def test_images_are_kept_as_they_are_decoded(tmp_path: Path) -> None:
    path = photographs(tmp_path, side=400)
    run = resolved(path)
    with ThreadPoolExecutor(1) as executor:
        kept = open_images(run.config.images, executor).train.pixels
    assert run.config.images.decoded_side == 83
    assert run.kept_bytes == kept.gather(np.arange(8)).pixels.nbytes == 8 * 100 * 116 * 3
    # So in full they would need 48 gigabytes, and need 47 megabytes.
    many = resolved(path, images_count=1000, image_side=4000)
    assert many.image_pixels == 4000**2
    assert many.kept_bytes == 1000 * 125 * 125 * 3


def test_a_side_that_is_given_stands_before_that_of_the_images(tmp_path: Path) -> None:
    path = photographs(tmp_path, side=100)
    assert resolved(path).image_pixels == 100 * 164
    assert resolved(path, image_side=200).image_pixels == 200 * 200


PLANNED = [n for n in RECIPES if recipe_config(n, "tiny").method.kind in ("contrastive", "dense")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "4096"], "needs at least that many images"),
        (
            ["--weights", "pretrained", "--encoder", "resnet18"],
            "Plan the same network from scratch",
        ),
        (["--begin-from", "runs/photos"], "by --config RUN/config.toml"),
        (["--machine.host-gigabytes", "64"], "give machine.memory_gigabytes"),
    ],
)
def test_what_no_run_could_be_is_not_planned(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["plan", "--scale", "tiny", "--images-count", "1000", "--image-side", "64"]
    assert main([*given, *flags]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_plan_says_that_steps_on_smaller_views_take_less(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["plan", *SMALL, "--images-count", "5000", "--image-side", "32", "--on", "cpu"]
    words = "The first 75% of the steps are on views of 24 pixels and take less time"
    for recipe in ("simclr", "simclr_fast"):
        assert main([*given, "--recipe", recipe]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert (words in said) == (recipe == "simclr_fast")


def test_windows_are_images_of_a_bank(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--recipe", "memory_bank", "--images-count", "20", "--image-side", "480"]
    assert main([*given, "--measure"]) == 0
    assert "20 images" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - set(PLANNED)))
def test_a_method_without_negatives_is_not_planned(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan", *SMALL, "--recipe", recipe, "--images-count", "5000", "--on", "cpu"]
    assert main(asked) == 2
    assert "cannot be planned" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PLANNED)
def test_every_recipe_is_planned_with_every_setting(recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    asked = ["plan", *SMALL, "--recipe", recipe, "--images-count", "5000", "--json", str(file)]
    settings = [
        *("--training.precision", "fp16", "--training.recompute", "stages"),
        *("--training.offload-activations", "--checkpoint.no-asynchronous"),
        *("--probe.profile-steps", "3", "--checkpoint.folder", "s3://bucket/run"),
        *("--method.dictionary.bank.placement", "sharded"),
    ]
    for machine, more in (("cpu", []), ("h100", settings)):
        assert main([*asked, "--on", machine, "--processes", "2", "--quiet", *more]) == 0
        assert json.loads(file.read_text())["days"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_parts_are_measured_at_the_runs_own_shapes(
    processes: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "_WORK_SECONDS", 0.0)
    images, file = tmp_path / "images.npy", tmp_path / "plan.json"
    np.save(images, np.zeros((100, 32, 32, 3), dtype=np.uint8))
    asked = ["plan", str(images), *SMALL, "--recipe", "moco_v3", "--batch-size", "16"]
    asked += ["--processes", str(processes), "--processes-here", str(processes)]
    assert main([*asked, "--measure", "--threads", "1", "--quiet", "--json", str(file)]) == 0
    assert capsys.readouterr().out == ""
    found = json.loads(file.read_text())
    assert found["measured"]
    assert found["opening"]["measured"]
    assert found["opening_seconds"] == found["opening"]["first_seconds"] > 0
    assert found["images"] == 100
    names = ("reads and views", "networks", "logits", "optimizer and momentum encoder")
    assert all(found["seconds"][name] > 0 for name in names)
    assert (found["seconds"]["network"] > 0) == (processes > 1)
    assert found["memory"]["host"]["libraries"] > 1e8
