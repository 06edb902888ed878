"""Runs that begin from weights: what they begin with, and that they go on without the source."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.config.files import load_run_config, nest, overlay
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, Interrupted, RunFolderError
from diptych.evaluation.protocols import evaluate
from diptych.models.weights import (
    load_encoder,
    load_trained_on,
    save_encoder,
    untrained_encoder,
)
from diptych.pretraining import pretrain
from diptych.resolve import advice_on_weights
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import read_tensors, read_tensors_and_text
from diptych.views.batches import Batch, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

GIVEN: dict[str, Any] = {
    "recipe": "moco_v2",
    "scale": "tiny",
    "epochs": 2,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "method.dictionary.queue.size": 50,
    "batch_size": 16,
    "training.threads": 1,
    "probe.images": 32,
    "probe.health_every_epochs": 100,
    "checkpoint.every_seconds": 0.0,
}
SOURCE = overlay(
    RunConfig(seed=7),
    nest(
        {
            "encoder.width": 4,
            "encoder.stage_blocks": (1,),
            "views.side_pixels": 16,
            "views.pixel_mean": (0.3, 0.3, 0.3),
        }
    ),
    "the test",
)


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        if wanted == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, wanted)

    patch.setattr(ViewBatches, "at", at)


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_encoder(path, untrained_encoder(SOURCE), SOURCE)
    return path


def run_of(images: Path, weights: Path | None, out: Path, **more: Any) -> RunFolder:
    given = GIVEN | {"weights": None if weights is None else str(weights)} | more
    return RunFolder(pretrain(images, out=out, quiet=True, **given))


def same(one: Path, other: Path) -> bool:
    ours, theirs = read_tensors(one), read_tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_encoder_and_momentum_encoder_begin_from_the_weights(
    images: Path, source: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            # So little a rate that a step leaves the weights as they were, nearly.
            run_of(images, source, tmp_path / "run", **{"optimizer.learning_rate": 1e-12})
    folder = RunFolder(tmp_path / "run")
    assert same(folder.start, source)
    config = load_run_config(folder.config)
    assert config.encoder.weights == str(source)
    assert (config.encoder.width, config.encoder.stage_blocks) == (4, (1,))
    assert config.views.pixel_mean == (0.3, 0.3, 0.3)
    _, texts = read_tensors_and_text(folder.start)
    assert texts["source"] == str(source)
    assert len(texts["sha256"]) == 64
    weights = read_tensors(source)
    saved, _ = load_checkpoint(list_checkpoints(folder.checkpoints)[-1])
    for is_momentum in (False, True):
        mine = {n: t for n, t in saved.items() if ("momentum_encoder." in n) == is_momentum}
        ours = {n.partition("network.encoder.")[2]: t for n, t in mine.items()}
        for name in (one for one, tensor in weights.items() if tensor.ndim == 4):
            torch.testing.assert_close(ours[name], weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits_after_its_source_is_gone(
    images: Path, source: Path, tmp_path: Path
) -> None:
    whole = run_of(images, source, tmp_path / "whole")
    for stopped_at in (1, 5):
        out = tmp_path / f"stopped-{stopped_at}"
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, stopped_at)
            with pytest.raises(Interrupted):
                run_of(images, source, out)
        moved = source.rename(tmp_path / "moved")
        if stopped_at == 1:  # nothing is saved: it begins anew, from its own copy
            shutil.rmtree(RunFolder(out).checkpoints)
        folder = RunFolder(pretrain(images, out=out, quiet=True, resume=True))
        moved.rename(source)
        assert same(folder.encoder, whole.encoder)
        assert same(folder.head, whole.head)


def test_the_user_overrides_what_weights_say(images: Path, source: Path, tmp_path: Path) -> None:
    given = {"views.pixel_mean": (0.4, 0.4, 0.4), "epochs": 1}
    folder = run_of(images, source, tmp_path / "run", **given)
    assert load_run_config(folder.config).views.pixel_mean == (0.4, 0.4, 0.4)
    with pytest.raises(ConfigError, match="do not fit the encoder"):
        run_of(images, source, tmp_path / "other", **{"encoder.width": 8})
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_run_is_measured_beside_the_weights_it_began_from(
    images: Path, source: Path, tmp_path: Path
) -> None:
    folder = run_of(images, source, tmp_path / "run", epochs=1)
    found = evaluate(folder.path, threads=1)
    assert list(found["knn"]) == ["trained", "start", "untrained", "pixels"]
    assert json.loads(folder.evaluation.read_text())["linear"].keys() >= {"start"}
    assert "start" in found["details"]["knn"]["metrics"]["accuracy"]["gains"]
    without = run_of(images, None, tmp_path / "plain", epochs=1)
    assert not without.start.exists()
    assert "start" not in evaluate(without.path, threads=1)["knn"]


@pytest.mark.slow
def test_a_run_that_begins_from_another_keeps_its_start(
    images: Path, source: Path, tmp_path: Path
) -> None:
    first = run_of(images, source, tmp_path / "first", epochs=1)
    source.unlink()
    second = RunFolder(
        pretrain(images, out=tmp_path / "second", quiet=True, epochs=2, begin_from=str(first.path))
    )
    assert same(second.start, first.start)


@pytest.mark.slow
def test_a_student_begins_from_weights(images: Path, source: Path, tmp_path: Path) -> None:
    teacher = run_of(images, source, tmp_path / "teacher", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            run_of(
                images,
                source,
                tmp_path / "student",
                **{"distillation.teacher": str(teacher.path), "optimizer.learning_rate": 1e-12},
            )
    student = RunFolder(tmp_path / "student")
    saved, _ = load_checkpoint(list_checkpoints(student.checkpoints)[-1])
    begun = read_tensors(source)["conv1.weight"]
    mine = [t for n, t in saved.items() if n.endswith("conv1.weight") and t.shape == begun.shape]
    assert any(torch.allclose(one, begun, rtol=1e-5, atol=1e-6) for one in mine)


@pytest.mark.slow
def test_a_start_that_is_gone_is_missed_only_before_the_first_checkpoint(
    images: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            run_of(images, source, out)
    RunFolder(out).start.unlink()
    source.unlink()
    assert RunFolder(pretrain(images, out=out, quiet=True, resume=True)).encoder.exists()


@pytest.mark.slow
def test_a_pull_to_a_start_that_is_gone_is_missed_always(
    images: Path, source: Path, tmp_path: Path
) -> None:
    pull = {"optimizer.pull_to_start": 0.01, "optimizer.kind": "sgd"}
    out, place = tmp_path / "run", tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            run_of(images, source, out, **pull, **{"checkpoint.folder": str(place)})
    folder = RunFolder(out)
    folder.start.rename(tmp_path / "start.safetensors")
    with pytest.raises(RunFolderError, match="the weights that this run begins from, is gone"):
        pretrain(images, out=out, quiet=True, resume=True)
    # Of a run whose folder is lost they are read again.
    shutil.rmtree(out)
    pull |= {"checkpoint.folder": str(place)}
    again = run_of(images, source, tmp_path / "again", **pull, resume=True)
    assert same(again.start, tmp_path / "start.safetensors")


def test_weights_and_a_module_of_ones_own_do_not_go_together(
    images: Path, source: Path, tmp_path: Path
) -> None:
    module = untrained_encoder(SOURCE)
    with pytest.raises(ConfigError, match="load weights into the module"):
        run_of(images, source, tmp_path / "run", encoder=module)


@pytest.mark.slow
def test_an_imported_encoder_is_loaded_from_a_run_folder_too(
    images: Path, source: Path, tmp_path: Path
) -> None:
    first = run_of(images, None, tmp_path / "first", epochs=1, **{"encoder.width": 4})
    second = run_of(images, first.path, tmp_path / "second", epochs=1)
    assert same(second.start, first.encoder)
    assert load_encoder(second.path).config.encoder.width == 4


def test_it_saw_what_the_run_of_its_weights_saw(
    images: Path, stripes: Stripes, tmp_path: Path
) -> None:
    pixels, _ = stripes(40)
    np.savez(tmp_path / "others.npz", images=255 - pixels)
    first = run_of(images, None, tmp_path / "first", epochs=1, **{"encoder.width": 4})
    wanted = saw(first)
    assert wanted is not None
    for name, weights in (("folder", first.path), ("file", first.encoder)):
        folder = run_of(tmp_path / "others.npz", weights, tmp_path / name, epochs=1)
        found = saw(folder)
        assert found is not None
        assert wanted < found
        assert len(found) == 64 + 40
    begun = pretrain(out=tmp_path / "begun", begin_from=str(folder.path), epochs=2, quiet=True)
    assert saw(RunFolder(begun)) == found
    alone = Path(shutil.copy(first.encoder, tmp_path / "alone.safetensors"))
    assert saw(run_of(images, alone, tmp_path / "of alone", epochs=1)) is None


def saw(run: RunFolder) -> set[tuple[int, ...]] | None:
    """The contents that a run learned from, as far as it knows."""
    found = load_trained_on(run.trained_on)
    return None if found is None else {tuple(one) for one in found.checksums.tolist()}


def test_small_sets_are_told_of_weights() -> None:
    config = RunConfig()

    def said(images: int, more: dict[str, object]) -> str | None:
        return advice_on_weights(overlay(config, nest(more), "the test"), image_count=images)

    fitting: tuple[dict[str, object], ...] = ({}, {"images.color": "gray"})
    for more in fitting:  # the weights are made to fit gray images
        advice = said(500, more)
        assert advice is not None
        assert "--weights pretrained --encoder resnet18" in advice
    assert said(20_000, {}) is None
    others: tuple[dict[str, object], ...] = (
        {"images.color": "raw"},
        {"images.path": "photographs"},
        {"encoder.weights": "w.pt"},
        {"encoder.name": "own"},
        {"training.begin_from": "run"},
    )
    for more in others:
        assert said(500, more) is None
