"""The leak's measure against plain loops, and on networks that must or cannot leak."""

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

from diptych.config.data import ViewsConfig
from diptych.config.method import MethodConfig
from diptych.config.model import NormConfig
from diptych.config.recipes import recipe_config
from diptych.config.run import RunConfig
from diptych.diagnostics.leak import Leak, cannot_leak, check_leak, compare_groupings, measure_leak
from diptych.errors import ImagesError, RunFolderError
from diptych.images.open import from_array
from diptych.methods.contrastive import Contrastive
from diptych.methods.dictionaries import KeyQueue
from diptych.pretraining import pretrain
from diptych.views.batches import Order, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


def test_the_comparison_equals_the_plain_loop() -> None:
    rng = np.random.default_rng(2)
    scores, elsewhere = rng.integers(0, 9, (2, 12, 12)).astype(float)  # with ties
    np.fill_diagonal(scores, 8)

    def found(row: NDArray[np.float64], own: int) -> float:
        return float(all(row[own] > score for place, score in enumerate(row) if place != own))

    own, other = ([found(matrix[i], i) for i in range(12)] for matrix in (scores, elsewhere))
    sums = [sum(own[i] - other[i] for i in range(12) if i // 4 == group) for group in range(3)]
    leak = compare_groupings(
        torch.from_numpy(scores), torch.from_numpy(elsewhere), torch.arange(12) // 4
    )
    assert 0 < sum(own) < 12
    assert leak.accuracy == pytest.approx(np.mean(own))
    assert leak.regrouped_accuracy == pytest.approx(np.mean(other))
    assert leak.leak_accuracy == pytest.approx(sum(sums) / 12)
    assert leak.error == pytest.approx(np.std(sums, ddof=1) * np.sqrt(3) / 12)
    assert (leak.groups, leak.images_per_group) == (3, 4)


def test_of_few_groups_no_leak_can_be_told() -> None:
    """Groups that happen to agree have an error of 0, whatever they say."""
    few, many = (Leak(0.5, 0.25, 0.0, groups, 4) for groups in (2, 16))
    assert not few.is_certain
    assert few.sentence().startswith("Too few images to tell")
    assert "give or take" not in few.sentence()
    assert many.is_certain


class GroupMean(nn.Module):
    """An encoder that gives every image the mean of its group of four, and nothing of its own."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images[:, :, ::4, ::4].flatten(1)
        mean = pixels.reshape(-1, 4, pixels.shape[1]).mean(dim=1)
        return mean.repeat_interleave(4, dim=0) + 1e-2 * pixels


class OwnPixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::4, ::4].flatten(1)


def leak_of(encoder: nn.Module, *, shuffle: bool) -> Leak:
    """Of images of one colour each in groups of four, in batches of 16."""
    colors = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(colors, (64, 16, 16, 3)))
    config = RunConfig()
    images = from_array(pixels, None, config.images)
    method = Contrastive(
        encoder,
        # The size of a group is read off the norms.
        nn.Sequential(_norm_of_four()),
        KeyQueue(8, dim=48),
        replace(MethodConfig(), dictionary=replace(config.method.dictionary, kind="queue")),
        shuffle_seed=3 if shuffle else None,
    )
    views = ViewsConfig(side_pixels=16, policy="crop + flip")
    with ThreadPoolExecutor(1) as executor:
        batches = ViewBatches(images, Order(0, 64, 16), views, executor)
        return measure_leak(method, batches, batch_count=4)


def _norm_of_four() -> nn.Module:
    from diptych.models.norms import SplitBatchNorm

    class Marked(SplitBatchNorm):
        def forward(self, input: Tensor) -> Tensor:
            return input

    return Marked(48, images_per_group=4)


def test_a_network_that_encodes_its_group_is_found_out_unless_keys_are_shuffled() -> None:
    leaking = leak_of(GroupMean(), shuffle=False)
    assert (leaking.groups, leaking.images_per_group) == (16, 4)
    assert leaking.accuracy > leaking.regrouped_accuracy + 0.1
    assert leaking.is_certain
    assert "Batch statistics leak" in leaking.sentence()
    shuffled = leak_of(GroupMean(), shuffle=True)
    assert shuffled.leak_accuracy < 0.1 < leaking.leak_accuracy
    assert not shuffled.is_certain
    alone = leak_of(OwnPixels(), shuffle=False)
    assert alone.accuracy == alone.regrouped_accuracy > 0.5  # of one colour, crops are the same
    assert not alone.is_certain
    assert "No leak" in alone.sentence()


def run_of(pixels: NDArray[np.uint8], folder: Path, **more: Any) -> Path:
    """A finished run of a batch of 32, whose norms see all of it."""
    np.savez(folder / "images.npz", images=pixels)
    settings: dict[str, Any] = {
        "recipe": "moco_v2",
        "scale": "tiny",
        "encoder.width": 4,
        "encoder.stage_blocks": (1, 1),
        "views.side_pixels": 16,
        "training.batch_size": 32,
        "training.threads": 1,
        "norm.kind": "batch",
        **more,
    }
    return pretrain(folder / "images.npz", out=folder / "run", quiet=True, epochs=1, **settings)


def test_a_finished_run_is_checked_with_its_head_and_key_encoder(
    tmp_path: Path, stripes: Stripes
) -> None:
    more = {"norm.kind": "shuffle", "norm.images_per_group": 8}
    run = run_of(stripes(96)[0], tmp_path, **more)
    before = (run / "encoder.safetensors").read_bytes()
    found = check_leak(run, image_count=96, threads=1)
    assert found is not None
    assert (found.groups, found.images_per_group) == (12, 8)
    assert 0.0 <= found.accuracy <= 1.0
    assert (run / "encoder.safetensors").read_bytes() == before
    assert json.loads((run / "leak.json").read_text())["accuracy"] == found.accuracy


def test_one_group_is_too_little(tmp_path: Path, stripes: Stripes) -> None:
    pixels, _ = stripes(16)
    np.savez(tmp_path / "images.npz", images=pixels)
    settings: dict[str, Any] = {"encoder.width": 4, "training.threads": 1, "scale": "tiny"}
    settings |= {"recipe": "moco_v2", "batch_size": 16}
    run = pretrain(tmp_path / "images.npz", out=tmp_path / "run", quiet=True, epochs=1, **settings)
    with pytest.raises(ImagesError, match="wanted two groups of 16"):
        check_leak(run, threads=1)


def test_a_run_on_windows_of_few_photographs_is_checked_on_these(
    tmp_path: Path, stripes: Stripes
) -> None:
    pixels, _ = stripes(20)  # fewer than a batch has images
    run = run_of(pixels, tmp_path, **{"images.windows": 2})
    found = check_leak(run, threads=1)
    assert found is not None
    assert (found.groups, found.images_per_group) == (2, 32)


@pytest.mark.parametrize("recipe", ["moco_v2", "simclr"])
def test_parts_of_processes_are_not_taken_for_the_batch(
    recipe: str, tmp_path: Path, stripes: Stripes
) -> None:
    """Each process of a run normalised its own part, and how many there were is not recorded."""
    pixels, _ = stripes(64)
    run = run_of(pixels, tmp_path, recipe=recipe)
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) | {"slowest_process": 1} for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunFolderError, match=r"several processes.*norm\.kind = 'sync'"):
        check_leak(run, threads=1)


def test_where_nothing_can_leak_nothing_is_measured() -> None:
    def why(recipe: str, **changes: object) -> str | None:
        config = recipe_config(recipe, "tiny")
        return cannot_leak(replace(config, **changes))  # type: ignore[arg-type]

    assert "share the statistics of one batch" in (why("simclr") or "")
    assert "share the statistics of one batch" in (why("moco_v3") or "")
    assert "an earlier epoch" in (why("memory_bank") or "")
    assert "no batch statistics" in (why("moco_v2", norm=NormConfig("layer")) or "")
    assert why("moco_v2") is None
    assert why("moco_v2", norm=NormConfig("batch")) is None
    assert why("simclr", norm=NormConfig("split")) is None
    chunked = replace(recipe_config("simclr", "tiny").training, chunk_size=32)
    assert why("simclr", training=chunked) is None
