"""Probes on features that are made: intervals over whole videos, and no matrix that need not be."""

import tracemalloc
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from sklearn.metrics import f1_score
from torch import Tensor

from diptych.config.data import ImagesConfig
from diptych.evaluation import confidence, knn_and_linear
from diptych.evaluation.knn_and_linear import (
    TransferTask,
    _judge_classes,
    _measured,
    measure_knn,
    measure_linear,
    open_task,
)
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.predictions import Predictions
from diptych.evaluation.subject import PIXELS, TRAINED, EvaluationOptions
from diptych.images.collection import Collection
from diptych.images.open import from_array

FRAMES = 6


@pytest.fixture
def of_videos(rng: np.random.Generator) -> tuple[Labelled, dict[str, tuple[Tensor, Tensor]]]:
    """Two hundred videos of two classes; all frames of one look alike, whatever its class."""
    videos = np.repeat(np.arange(200), FRAMES)
    pixels = rng.integers(0, 256, (len(videos), 8, 8, 3), dtype=np.uint8)
    images = from_array(pixels, videos % 2, ImagesConfig())
    names = [f"v{video:03}_{frame:04}.png" for frame, video in enumerate(videos)]
    collection = Collection(replace(images, names=names), None, "")
    found = labelled_parts(collection, group_by="name:(v[0-9]+)_")
    assert found is not None

    def features(part: Any, noise: float) -> Tensor:
        of = np.array([int(name[1:4]) for name in part.names])
        drawn = np.random.default_rng(7).normal(0, noise, 200)[of]
        return torch.from_numpy(np.stack([of % 2 + drawn, np.ones(len(of))], axis=1)).float()

    parts = {
        name: (features(found.train, noise), features(found.test, noise))
        for name, noise in ((TRAINED, 1.0), (PIXELS, 3.0))
    }
    return found, parts


def subject_of(labelled: Labelled, features: dict[str, tuple[Tensor, Tensor]]) -> Any:
    whole = {name: torch.cat(both) for name, both in features.items()}
    cut = len(labelled.train)
    return SimpleNamespace(
        labelled=labelled,
        features=features,
        options=EvaluationOptions(neighbours=5),
        seen=None,
        features_of=lambda images: {
            name: one[:cut] if images is labelled.train else one[cut:]
            for name, one in whole.items()
        },
    )


def interval_over_videos(labelled: Labelled, right: NDArray[np.bool_]) -> tuple[float, float]:
    """By SciPy, of the share of each video."""
    videos = np.array([int(name[1:4]) for name in labelled.test.names])
    shares = [right[videos == one].mean() for one in np.unique(videos)]
    found = stats.bootstrap(
        (shares,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    return found.low, found.high


@pytest.mark.parametrize("protocol", ["knn", "linear", "transfer"])
def test_frames_of_a_video_count_as_one(
    protocol: str, of_videos: tuple[Labelled, dict[str, tuple[Tensor, Tensor]]]
) -> None:
    labelled, features = of_videos
    subject, truth = subject_of(labelled, features), labelled.test_labels
    if protocol == "knn":
        details = measure_knn(subject)["details"]["knn"]
    elif protocol == "linear":
        details = measure_linear(subject)["details"]["linear"]
    else:
        both = labelled.train_labels, labelled.test_labels
        details = _measured(subject, TransferTask(labelled, *both, labels=2, multilabel=False))
    assert details["split"]["test_units"] == 40
    assert f"as one: 40 of these {40 * FRAMES} images" in details["split"]["words"]
    low, high = (
        details["metrics"]["accuracy"]["intervals"][TRAINED][end] for end in ("low", "high")
    )
    if protocol != "knn":
        # The one feature that tells: linear classifiers answer by a threshold on it.
        value = details["metrics"]["accuracy"]["intervals"][TRAINED]["value"]
        cuts = [features[TRAINED][1][:, 0] > bound for bound in np.linspace(-1, 2, 301)]
        fitting = [
            said for said in cuts if abs(float((said == truth).double().mean()) - value) < 1e-9
        ]
        wanted = interval_over_videos(labelled, (fitting[0] == truth).numpy())
        np.testing.assert_allclose((low, high), wanted, atol=0.03)
    alone = replace(labelled, groups=None)
    narrow = measure_knn(subject_of(alone, features))["details"]["knn"]
    assert narrow["split"]["test_units"] == 40 * FRAMES
    one = narrow["metrics"]["accuracy"]["intervals"][TRAINED]
    assert high - low > 1.5 * (one["high"] - one["low"])


@pytest.mark.parametrize("parts", [("",), ("train/", "test/")], ids=["cut", "given"])
def test_photographs_with_several_labels_are_drawn_by_group(
    parts: tuple[str, ...], tmp_path: Path, executor: Executor, rng: np.random.Generator
) -> None:
    for part in parts:
        rows = ["name,red,round"]
        for number in range(60):
            name = f"{part[:2]}p{number // 3:02}_{number}.png"
            (tmp_path / part).mkdir(exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / name)
            rows.append(f"{name},{number % 2},{number // 30}")
        (tmp_path / part / "labels.csv").write_text("\n".join([*rows, ""]))
    images = ImagesConfig(group_by="name:(p[0-9]+)_")
    runtime = SimpleNamespace(executor=executor, counting=lambda words: lambda *done: None)
    subject: Any = SimpleNamespace(
        config=SimpleNamespace(images=images), runtime=runtime, seen=None
    )
    split = open_task(subject, str(tmp_path)).split
    groups = {name[:-4].rpartition("_")[0] for name in split.test.names}
    assert len(split.test) == 3 * len(groups)
    assert split.as_resampled()["test_units"] == len(groups)


def test_scores_in_blocks_give_the_same_answers(
    of_videos: tuple[Labelled, dict[str, tuple[Tensor, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled, features = of_videos
    # One class more, which no image is of.
    subject = subject_of(replace(labelled, classes=(*labelled.classes, "c")), features)
    whole = measure_linear(subject)
    monkeypatch.setattr(knn_and_linear, "_CELLS", 20)
    parts = measure_linear(subject)
    said: tuple[Predictions, Predictions] = (whole.pop("predictions"), parts.pop("predictions"))
    assert whole == parts
    for name in ("predicted", "probability", "label_probability", "label_rank"):
        ours, theirs = (getattr(one, name) for one in said)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert said[0].label_rank.max() <= 3


def test_figures_of_classes_equal_scikit_learn_and_hold_no_matrix(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confidence, "_CELLS", 100_000)
    monkeypatch.setattr(knn_and_linear, "_CELLS", 100_000)
    truth = np.concatenate([np.arange(2000), rng.integers(0, 2000, 200)])
    scores = rng.normal(size=(2200, 2000)).astype(np.float32)
    scores[np.arange(2200), truth] += 3.0
    counts = np.ones((1, 2200))
    tracemalloc.start()
    found = {name: float(one(counts)[0]) for name, one in _judge_classes(scores, truth).items()}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < scores.size  # bytes: the scores themselves have four times as many
    wide = scores.astype(np.float64)
    # The area by the sum of ranks (Mann and Whitney 1947).
    ranks = stats.rankdata(np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True), axis=0)
    each = np.bincount(truth)
    sums = np.bincount(truth, ranks[np.arange(2200), truth])
    areas = (sums - each * (each + 1) / 2) / (each * (2200 - each))
    assert found["auc"] == pytest.approx(areas.mean(), abs=1e-12)
    said = scores.argmax(axis=1)
    assert found["f1"] == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-12)
    assert found["accuracy"] == pytest.approx((said == truth).mean(), abs=1e-12)
