"""Runs ranked without labels: runs and methods whose order is known, and loops as oracles."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint, save_checkpoint
from diptych.cli.main import main
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.files import load_run_config
from diptych.config.recipes import recipe_config
from diptych.diagnostics.candidates import Candidate as Kept
from diptych.diagnostics.candidates import Choice, write_choice
from diptych.diagnostics.ranking import MEASURES, candidates_of, pretext_accuracy, rank_runs
from diptych.errors import ConfigError, ImagesError, RunFolderError
from diptych.images.open import from_array
from diptych.methods.contrastive import build_contrastive
from diptych.models.weights import load_encoder, save_encoder
from diptych.pretraining import pretrain
from diptych.runs.folder import RunFolder, load_record
from diptych.views.batches import Order, ViewBatches

SETTINGS: dict[str, Any] = {
    "batch_size": 16,
    "threads": 1,
    "scale": "tiny",
    "encoder.width": 4,
    "views.side_pixels": 16,
    "quiet": True,
}


@pytest.fixture
def run(class_folder: Path, tmp_path: Path) -> Path:
    return pretrain(class_folder, out=tmp_path / "run", epochs=1, **SETTINGS)


def spoiled(run: Path, step: int) -> None:
    """Adds a later checkpoint of the same run whose encoder gives the same for every image."""
    folder = RunFolder(run)
    tensors, scalars = load_checkpoint(list_checkpoints(folder.checkpoints)[0])
    for name, value in tensors.items():
        if name.startswith("method/network.encoder") and value.ndim > 1:
            value.zero_()
    run_of = load_record(folder).identity
    save_checkpoint(folder.checkpoints, run_of, tensors, {**scalars, "step": step}, keep=5)


def test_a_collapsed_checkpoint_comes_last(run: Path) -> None:
    spoiled(run, 99)
    found = rank_runs([run], labels=True, threads=1)
    assert [row.step for row in found.rows] == [3, 99]
    good, bad = found.rows
    assert (good.combined, bad.combined) == (1, 0)
    assert (bad.effective_rank, bad.stability, bad.steadiness) == (1, 0, 0)
    assert bad.pretext == 0  # no key of its own scores above the others
    assert good.steadiness is None
    assert good.knn is not None
    assert found.images == 48
    assert found.agreement is not None
    assert set(found.agreement) == {*MEASURES, "combined"}
    assert set(found.agreement.values()) == {None}  # of two nothing can be said


def test_only_the_newest_of_several_runs(run: Path, class_folder: Path, tmp_path: Path) -> None:
    spoiled(run, 99)
    (run / "encoder.safetensors").unlink()  # as where training has not ended
    other = pretrain(class_folder, out=tmp_path / "other", epochs=1, recipe="moco_v3", **SETTINGS)
    found = rank_runs([run, other], threads=1)
    assert [(row.run, row.step) for row in found.rows] == [(str(other), 3), (str(run), 99)]
    assert found.rows[1].effective_rank == 1
    assert found.agreement is None
    assert len(rank_runs([run, other], checkpoints=True, threads=1).rows) == 3


def keep_of_start(run: Path) -> None:
    """Lets a run keep a start that gives the same for every image."""
    folder = RunFolder(run)
    (run / "encoder.safetensors").rename(folder.last)
    kept = load_encoder(folder.last)
    with torch.no_grad():
        for value in kept.network.parameters():
            value.zero_()
    save_encoder(folder.encoder, kept.network, kept.config)
    candidates = (Kept("start", 0.0, 1.0), Kept("last", 1.0, 0.5))
    write_choice(folder, Choice("start", "Kept is the start.", "", candidates, ""))


def test_a_run_is_measured_by_the_encoder_that_it_keeps(
    run: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pretrain(class_folder, out=tmp_path / "other", epochs=1, recipe="moco_v3", **SETTINGS)
    before = {row.run: row for row in rank_runs([run, other], labels=True, threads=1).rows}
    of_last = before[str(run)]
    assert of_last.kept is None
    assert of_last.effective_rank > 1
    keep_of_start(run)
    after = {row.run: row for row in rank_runs([run, other], labels=True, threads=1).rows}
    of_start = after[str(run)]
    assert of_start.kept == "start"
    assert (of_start.effective_rank, of_start.stability) == (1, 0)
    assert of_start.knn == pytest.approx(1 / 3)  # the same features of three equal classes
    assert (of_start.pretext, of_start.step) == (of_last.pretext, of_last.step)
    same = replace(before[str(other)], combined=after[str(other)].combined)
    assert after[str(other)] == same
    (checkpoint,) = rank_runs([run], threads=1).rows
    assert checkpoint.kept is None
    assert checkpoint.effective_rank == of_last.effective_rank

    file = tmp_path / "ranks.json"
    command = ["rank", str(run), str(other), "--threads", "1", "--json", str(file)]
    assert main(command) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Measured is the encoder that a run keeps. Pretext accuracy is that of its last" in out
    assert "last step" in out
    kept = {row["run"]: row["kept"] for row in json.loads(file.read_text())["rows"]}
    assert kept == {str(run): "start", str(other): None}
    for checkpoints in run.glob("checkpoints/*/manifest.json"):
        checkpoints.unlink()
    (alone,) = rank_runs([run], checkpoints=False, threads=1).rows
    assert (alone.kept, alone.effective_rank) == ("start", 1)
    assert alone.step is None


def test_a_damaged_checkpoint_is_passed_over(run: Path) -> None:
    spoiled(run, 99)
    newest = list_checkpoints(RunFolder(run).checkpoints)[0]
    (newest / "tensors.safetensors").write_bytes(b"no tensors")
    assert [row.step for row in rank_runs([run], threads=1).rows] == [3]


def test_without_checkpoints_the_files_are_the_same_encoder(run: Path) -> None:
    kept = rank_runs([run], threads=1).rows[0]
    for checkpoint in list_checkpoints(RunFolder(run).checkpoints):
        (checkpoint / "manifest.json").unlink()
    alone = rank_runs([run], threads=1).rows[0]
    assert alone == replace(kept, step=None)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="no runs to rank"):
        rank_runs([])
    config = load_run_config(RunFolder(run).config)
    with pytest.raises(RunFolderError, match="does not exist"):
        next(candidates_of(RunFolder(tmp_path), config, torch.device("cpu"), every=True))


def test_runs_on_different_images_are_not_compared(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    part = class_folder / "class1"
    other = pretrain(part, out=tmp_path / "other", epochs=1, **SETTINGS)
    with pytest.raises(ConfigError, match="Give --images PATH"):
        rank_runs([run, other])
    found = rank_runs([run, other], images=class_folder, image_count=20, threads=1)
    assert (len(found.rows), found.images) == (2, 20)
    with pytest.raises(ImagesError, match="needs labelled images"):
        rank_runs([other], labels=True)


def test_runs_on_unequal_parts_of_a_set_are_not_compared(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    """An effective rank grows with the images that it is measured on."""
    more: dict[str, Any] = {**SETTINGS, "images.limit": 32}
    other = pretrain(class_folder, out=tmp_path / "other", epochs=1, **more)
    with pytest.raises(ConfigError, match=r"48 images .* 32 others.*Give --images PATH"):
        rank_runs([run, other], threads=1)
    assert rank_runs([run, other], images=class_folder, threads=1).images == 48


def test_the_command_prints_and_writes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ranks.json"
    assert main(["rank", str(run), "--labels", "--threads", "1", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "Ranked without labels, on 48 images" in out
    assert "How well each agrees with kNN" in out
    assert "Measured on 48 images that pretraining saw (without labels)." in out
    row = json.loads(file.read_text())["rows"][0]
    assert row["step"] == 3
    assert row["effective_rank"] > 1


class Mean(nn.Module):
    """The mean colour and the corners of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images[:, :, 0, 0]], dim=1)


def test_pretext_accuracy_equals_a_loop(
    stripes: Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]],
) -> None:
    config = recipe_config("simclr", "tiny")
    method = build_contrastive(replace(config, head=replace(config.head, layers=0)))
    method.network.encoder = Mean()
    images = from_array(stripes(40, 3)[0], None, ImagesConfig())
    with ThreadPoolExecutor(1) as executor:
        views = ViewsConfig(policy="crop + flip", side_pixels=16)
        batches = ViewBatches(images, Order(0, 40, 16), views, executor)
        found = pretext_accuracy(method, batches)
        right = []
        for step in range(2):
            first, second = batches.at(step).views
            query, key = (Mean()(view).detach().numpy().astype(float) for view in (first, second))
            for i in range(16):
                cosines = [query[i] @ k / np.linalg.norm(query[i]) / np.linalg.norm(k) for k in key]
                right.append(int(np.argmax(cosines)) == i)
    assert 0.1 < found < 1
    assert found == pytest.approx(np.mean(right))
