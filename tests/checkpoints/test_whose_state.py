"""Whose checkpoints a run reads, and what of another run it may take over."""

import json
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.config.files import flatten, load_run_config, overlay
from diptych.config.run import RunConfig
from diptych.diagnostics.leak import load_trained_method
from diptych.diagnostics.ranking import candidates_of
from diptych.errors import (
    ConfigError,
    DamagedCheckpoint,
    ForeignCheckpoint,
    ImagesError,
    Interrupted,
    RunFolderError,
    TrainingError,
)
from diptych.images.collection import ImageSet
from diptych.pretraining import pretrain
from diptych.runs.folder import RunFolder, RunRecord, alone_in, load_record
from diptych.training.begin_from import ITS_OWN, without_its_own
from diptych.views.batches import Batch, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

STEPS = 4
SMALL: dict[str, Any] = {
    "recipe": "moco_v2",
    "scale": "tiny",
    "epochs": 2,
    "encoder.width": 4,
    "encoder.stage_blocks": (1,),
    "head.output_features": 8,
    "views.side_pixels": 8,
    "method.dictionary.queue.size": 20,
    "batch_size": 16,
    "training.threads": 1,
    "probe.images": 16,
    "probe.health_every_epochs": 100,
    "checkpoint.every_seconds": 0.0,
    "checkpoint.asynchronous": False,
}


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        if wanted == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, wanted)

    patch.setattr(ViewBatches, "at", at)


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, _ = stripes(32)
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path / "images.npz"


def run(images: Path, out: Path, **more: Any) -> Path:
    return pretrain(images, out=out, quiet=True, **{**SMALL, **more})


def stopped(images: Path, out: Path, step: int = 2, **more: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            run(images, out, **more)
    return out


def files_in(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def state(place: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(place)[0])[0]


def identity(out: Path) -> str:
    return load_record(RunFolder(out)).identity.id


def test_checkpoints_repeat_the_identity_that_a_run_begins_with(
    images: Path, tmp_path: Path
) -> None:
    out = stopped(images, tmp_path / "a")
    begun = identity(out)
    for checkpoint in list_checkpoints(out / "checkpoints"):
        for file in ("manifest.json", "state.json"):
            assert json.loads((checkpoint / file).read_bytes())["run"]["id"] == begun
    run(images, out, resume=True)
    assert identity(out) == begun
    again = pretrain(out=tmp_path / "again", config_file=out / "config.toml", quiet=True)
    assert identity(again) != begun
    assert load_record(RunFolder(again)).identity.begun_as == str(tmp_path / "again")


def test_a_run_that_begins_from_another_leaves_its_place_alone(
    images: Path, tmp_path: Path
) -> None:
    """As `diptych launch` does it, which adds --resume."""
    place = tmp_path / "elsewhere"
    first = run(images, tmp_path / "a", **{"checkpoint.folder": str(place)})
    before = files_in(place)
    for resume in (True, True, False):
        out = tmp_path / f"b{resume}"
        pretrain(out=out, begin_from=f"{first}@{STEPS}", epochs=3, resume=resume, quiet=True)
        assert files_in(place) == before
        assert load_run_config(out / "config.toml").checkpoint.folder is None
        assert list_checkpoints(out / "checkpoints")[0].name == "step-000000006"


@pytest.mark.parametrize("resume", [True, False])
def test_another_run_in_the_same_place_is_refused_and_named(
    resume: bool, images: Path, tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    run(images, tmp_path / "a", **{"checkpoint.folder": str(place)})
    before = files_in(place)
    other = {"checkpoint.folder": str(place), "seed": 5, "optimizer.learning_rate": 0.5}
    with pytest.raises(ForeignCheckpoint, match=r"begun as .*/a\).*/b would be another run") as why:
        run(images, tmp_path / "b", resume=resume, **other)
    assert not resume or "seed, optimizer.learning_rate differ" in str(why.value)
    assert files_in(place) == before
    assert not (tmp_path / "b").exists()


def test_another_runs_checkpoints_among_its_own_are_refused_and_kept(
    images: Path, tmp_path: Path
) -> None:
    first = run(images, tmp_path / "a")
    second = stopped(images, tmp_path / "b", seed=3)
    name = f"step-{STEPS:09d}"
    shutil.copytree(first / "checkpoints" / name, second / "checkpoints" / name)
    before = files_in(second / "checkpoints")
    with pytest.raises(ForeignCheckpoint, match=r"not of this run, .*/b\): .* of run .*/a\)"):
        run(images, second, resume=True, seed=3)
    assert files_in(second / "checkpoints") == before
    config = load_run_config(second / "config.toml")  # who only reads takes the run's own
    (found,) = candidates_of(RunFolder(second), config, torch.device("cpu"), every=False)
    assert found.step == 2
    with pytest.raises(RunFolderError, match=r"@4'.*after steps: 1, 2\."):
        pretrain(out=tmp_path / "c", begin_from=f"{second}@4", quiet=True)
    shutil.rmtree(second / "checkpoints" / "step-000000001")
    shutil.rmtree(second / "checkpoints" / "step-000000002")
    with pytest.raises(ForeignCheckpoint, match="not of this run"):
        load_trained_method(RunFolder(second), config)


def test_another_run_that_comes_into_the_place_meanwhile_is_not_touched(
    images: Path, tmp_path: Path
) -> None:
    """Two that began in one place before either had saved: the later one trains on unsaved."""
    first = run(images, tmp_path / "a")
    place, before = tmp_path / "b" / "checkpoints", dict[str, bytes]()
    with pytest.MonkeyPatch.context() as patch:
        original = ViewBatches.at

        def at(self: ViewBatches, wanted: int) -> Batch:
            if wanted == STEPS - 1:
                shutil.copytree(first / "checkpoints", place)
                before.update(files_in(place))
            return original(self, wanted)

        patch.setattr(ViewBatches, "at", at)
        patch.setattr("diptych.checkpoints.saver.LAST_PAUSES", (0.0,))
        with pytest.raises(TrainingError, match=r"not be saved after step 4.*not of this run"):
            run(images, tmp_path / "b", seed=3, **{"checkpoint.every_seconds": 1e6})
    assert files_in(place) == before


def test_what_is_a_runs_own_is_not_inherited(tmp_path: Path) -> None:
    given = {
        "checkpoint": {"folder": "x", "keep": 7},
        "training": {"begin_from": "y"},
        "probe": {"profile_steps": 3},
    }
    config = without_its_own(overlay(RunConfig(), given, "here"))
    kept = {name: value for name, value in flatten(config).items() if name in ITS_OWN}
    assert set(kept.values()) == {None}
    assert config.checkpoint.keep == 7


def test_every_place_that_a_setting_names_was_thought_about() -> None:
    """A new setting that may be a path belongs to one of these; the first are not inherited."""
    shared = {
        "images.path",
        "images.column",
        "images.labels",
        "images.group_by",
        "images.cache_folder",
        "encoder.weights",
        "distillation.teacher",
        "distillation.labelled",
        "views.second",
        "views.small_policy",
    }
    texts = {name for name, kind in text_settings(RunConfig()) if kind == "str | None"}
    assert texts <= shared | set(ITS_OWN)


def text_settings(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value):
            found += text_settings(value, f"{prefix}{one.name}.")
        else:
            kind = one.type if isinstance(one.type, str) else str(one.type)
            found.append((f"{prefix}{one.name}", kind))
    return found


def test_to_begin_from_a_finished_run_needs_more_epochs(images: Path, tmp_path: Path) -> None:
    first = run(images, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"stands after step 4.*nothing is left.*--epochs 4"):
        pretrain(out=tmp_path / "b", begin_from=str(first), quiet=True)
    assert not (tmp_path / "b").exists()
    pretrain(out=tmp_path / "b", begin_from=str(first), epochs=4, quiet=True)
    assert list_checkpoints(tmp_path / "b" / "checkpoints")[0].name == "step-000000008"


def test_longer_epochs_are_refused_with_the_way_to_go_on(images: Path, tmp_path: Path) -> None:
    out = run(images, tmp_path / "a")
    with pytest.raises(RunFolderError, match=r"epochs differ.*--begin-from .*/a --out NEW"):
        run(images, out, resume=True, epochs=4)
    with pytest.raises(RunFolderError, match=r"seed, training.epochs differ.*another --out"):
        run(images, out, resume=True, epochs=4, seed=4)


def test_two_processes_do_not_train_in_one_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.runs.folder.PATIENCE_SECONDS", 0.0)
    out = stopped(images, tmp_path / "a")
    before = files_in(out)
    with alone_in(out):
        with pytest.raises(RunFolderError, match=r"another process trains in .*/a now"):
            run(images, out, resume=True)
        assert files_in(out) == before
    run(images, out, resume=True)


def test_two_runs_that_begin_in_one_folder_at_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds the folder empty and, when it comes to write, a run in it."""
    original = RunRecord.__init__

    def meanwhile(self: RunRecord, *given: Any) -> None:
        monkeypatch.setattr(RunRecord, "__init__", original)
        run(images, tmp_path / "a", seed=1)
        original(self, *given)

    monkeypatch.setattr(RunRecord, "__init__", meanwhile)
    with pytest.raises(RunFolderError, match=r"another process began a run in .*/a meanwhile"):
        run(images, tmp_path / "a", seed=2)
    assert load_run_config(tmp_path / "a" / "config.toml").seed == 1


def test_a_folder_is_waited_for_while_its_process_ends(images: Path, tmp_path: Path) -> None:
    out = stopped(images, tmp_path / "a")
    with ExitStack() as held:
        held.enter_context(alone_in(out))
        threading.Timer(0.5, held.pop_all().close).start()
        run(images, out, resume=True)
    assert (out / "encoder.safetensors").exists()


def test_a_run_without_its_checkpoints_begins_anew_and_says_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped(images, tmp_path / "a", 2, **{"checkpoint.folder": str(tmp_path / "place")})
    (tmp_path / "place").rename(tmp_path / "moved")
    pretrain(out=out, resume=True)
    said = " ".join(capsys.readouterr().out.split())
    assert f"No checkpoint of this run is in {tmp_path / 'place'}, so it begins anew." in said


def test_a_finished_run_without_its_checkpoints_is_not_trained_anew(
    images: Path, tmp_path: Path
) -> None:
    out = run(images, tmp_path / "a")
    shutil.rmtree(out / "checkpoints")
    before = files_in(out)
    with pytest.raises(RunFolderError, match=r"has ended, and none of its checkpoints is in"):
        run(images, out, resume=True)
    assert files_in(out) == before


def test_moved_images_are_the_same_images(images: Path, tmp_path: Path, stripes: Stripes) -> None:
    whole = run(images, tmp_path / "whole")
    out = stopped(images, tmp_path / "a")
    moved = tmp_path / "other" / "images.npz"
    moved.parent.mkdir()
    images.rename(moved)
    run(moved, out, resume=True)
    ours, theirs = state(out / "checkpoints"), state(whole / "checkpoints")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert load_run_config(out / "config.toml").images.path == str(moved)
    (sentence,) = load_record(RunFolder(out)).moved
    assert f"images.path is now '{moved}', before '{images}'" in sentence
    pretrain(out=out, resume=True, quiet=True)  # from now on it need not be said again
    begun = pretrain(moved, out=tmp_path / "b", begin_from=f"{whole}@3", quiet=True)
    assert load_run_config(begun / "config.toml").images.path == str(moved)


@pytest.mark.parametrize("after", [0, 2])
def test_other_images_under_another_path_are_refused(
    after: int, images: Path, tmp_path: Path, stripes: Stripes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run has no checkpoint yet."""
    out = stopped(images, tmp_path / "a")
    if not after:
        shutil.rmtree(out / "checkpoints")
    np.savez(tmp_path / "more.npz", images=stripes(48)[0])
    before = files_in(out)
    with pytest.raises(ImagesError, match="are not those that this run began with"):
        run(tmp_path / "more.npz", out, resume=True)
    with pytest.raises(ImagesError, match="are not those that this run began with"):
        pretrain(
            tmp_path / "more.npz",
            out=tmp_path / "b",
            begin_from=f"{whole(images, tmp_path)}@3",
            quiet=True,
        )
    assert files_in(out) == before
    assert not (tmp_path / "b").exists()


def whole(images: Path, tmp_path: Path) -> Path:
    return run(images, tmp_path / "whole")


def test_images_told_apart_in_another_way_are_not_called_others(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped(images, tmp_path / "a")
    later = f"77:{'0' * 64}"
    monkeypatch.setattr(ImageSet, "fingerprint", lambda self: later)
    with pytest.raises(RunFolderError, match="begun by another version of diptych"):
        run(images, out, resume=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"training.precision": "fp16"}),
        ({"training.precision": "fp16"}, {"training.precision": "fp32"}),
        ({"training.precision": "fp16"}, {"training.precision": "fp16"}),
        ({}, {"training.precision": "bf16"}),
        ({"optimizer.momentum": 0.0}, {"optimizer.momentum": 0.9}),
        ({"optimizer.momentum": 0.9}, {"optimizer.momentum": 0.0}),
        ({}, {"optimizer.clip_norm": 1.0}),
        ({"optimizer.kind": "lars"}, {"optimizer.momentum": 0.5}),
        ({"optimizer.kind": "adamw"}, {"optimizer.momentum": 0.5}),
    ],
)
def test_what_one_run_keeps_and_the_other_does_not(
    first: dict[str, Any], second: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    """It begins anew or is left; and the second is resumed from a checkpoint of its own."""
    run(images, tmp_path / "a", **first)
    out = tmp_path / "b"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, STEPS + 1)
        with pytest.raises(Interrupted):
            pretrain(out=out, begin_from=str(tmp_path / "a"), epochs=4, quiet=True, **second)
    pretrain(out=out, resume=True, quiet=True)
    assert list_checkpoints(out / "checkpoints")[0].name == "step-000000008"


@pytest.mark.parametrize(
    "second",
    [
        {"optimizer.kind": "adamw"},
        {"method.key_encoder.kind": "shared"},
        {"method.dictionary.queue.size": 40},
        {"distillation.teacher": "a"},
        {"head.output_features": 16},
    ],
)
def test_what_would_mean_something_else_is_refused_by_name(
    second: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    run(images, tmp_path / "a", epochs=1)
    (name,) = second
    with pytest.raises(ConfigError, match=rf"{name} cannot differ"):
        pretrain(out=tmp_path / "b", begin_from=str(tmp_path / "a"), epochs=4, quiet=True, **second)


def test_endless_settings_are_those_of_a_run(class_folder: Path, tmp_path: Path) -> None:
    endless = {
        "checkpoint.every_seconds": float("inf"),
        "optimizer.clip_norm": float("inf"),
        "images.max_megapixels": float("inf"),
    }
    out = stopped(class_folder, tmp_path / "a", 2, **endless)
    assert len(list_checkpoints(out / "checkpoints")) == 1
    config = (out / "config.toml").read_text()
    pretrain(out=out, resume=True, quiet=True)
    assert (out / "config.toml").read_text() == config
    whole_run = run(class_folder, tmp_path / "b", **{**endless, "optimizer.clip_norm": None})
    ours, theirs = state(out / "checkpoints"), state(whole_run / "checkpoints")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_of_an_older_version_is_refused_and_left(images: Path, tmp_path: Path) -> None:
    out = stopped(images, tmp_path / "a")
    (out / "run.json").unlink()
    before = files_in(out)
    with pytest.raises(RunFolderError, match=r"run\.json is missing.*the version that began it"):
        run(images, out, resume=True)
    with pytest.raises(RunFolderError, match=r"run\.json is missing"):
        pretrain(out=tmp_path / "b", begin_from=str(out), quiet=True)
    assert files_in(out) == before


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": 9}', b'{"format": 1, "id": "x"}'],
)
def test_a_record_that_is_none_is_an_error_in_words(
    text: bytes, images: Path, tmp_path: Path
) -> None:
    out = stopped(images, tmp_path / "a")
    (out / "run.json").write_bytes(text)
    with pytest.raises(RunFolderError, match=r"run\.json .*(Restore it|the version)"):
        run(images, out, resume=True)


def test_a_run_killed_before_its_config_is_there_can_begin(images: Path, tmp_path: Path) -> None:
    out = stopped(images, tmp_path / "a")
    left = tmp_path / "b"
    left.mkdir()
    shutil.copy(out / "run.json", left / "run.json")
    run(images, left, resume=True)
    assert identity(left) != identity(out)


def test_a_copy_of_a_run_does_not_share_its_place(images: Path, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    out = stopped(images, tmp_path / "a", 2, **{"checkpoint.folder": str(place)})
    shutil.copytree(out, tmp_path / "copy")
    with pytest.raises(RunFolderError, match=r"whose folder is still there"):
        pretrain(out=tmp_path / "copy", resume=True, quiet=True)
    out.rename(tmp_path / "moved")
    pretrain(out=tmp_path / "moved", resume=True, quiet=True)
    assert list_checkpoints(place)[0].name == f"step-{STEPS:09d}"


def test_damage_beyond_telling_is_set_aside_not_deleted(images: Path, tmp_path: Path) -> None:
    unbroken = run(images, tmp_path / "unbroken")
    out = stopped(images, tmp_path / "a", 3)
    newest = list_checkpoints(out / "checkpoints")[0]
    assert newest.name == "step-000000003"
    (newest / "manifest.json").write_bytes(b"?")
    (newest / "state.json").write_bytes(b"?")
    kept = files_in(newest)
    run(images, out, resume=True)
    assert files_in(out / "checkpoints" / "unknown-1-step-000000003") == kept
    ours, theirs = state(out / "checkpoints"), state(unbroken / "checkpoints")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_no_good_checkpoint_is_an_error(images: Path, tmp_path: Path) -> None:
    out = stopped(images, tmp_path / "a")
    for checkpoint in list_checkpoints(out / "checkpoints"):
        (checkpoint / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="none of the 2 checkpoints"):
        run(images, out, resume=True)
