"""A student learns its teacher's predictions; the teacher stays as it is."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from diptych.config.consistency import require_consistent
from diptych.config.data import ViewsConfig
from diptych.config.files import nest
from diptych.config.method import DistillationConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, RunFolderError
from diptych.evaluation.protocols import evaluate
from diptych.images.collection import balanced_share, spread_indices
from diptych.images.open import open_images
from diptych.logging.metrics import read_metrics
from diptych.methods.build import NOTHING_OWN
from diptych.methods.distillation import distillation_loss
from diptych.models.weights import load_encoder
from diptych.pretraining import pretrain
from diptych.resolve import overrides_of, resolve
from diptych.training.budget import measure_speed

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

SMALL: dict[str, Any] = {
    "scale": "tiny",
    "encoder.stage_blocks": (1, 1),
    "views.side_pixels": 16,
    "training.batch_size": 32,
    "training.threads": 1,
    "probe.images": 32,
    "optimizer.scaling": "none",
    "optimizer.learning_rate": 0.05,
}


def test_the_loss_equals_the_formula() -> None:
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(0, 3, (2, 5, 4))

    def softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
        powers = np.exp(row)
        return powers / powers.sum()

    expected = -np.mean(
        [
            sum(
                p * np.log(q)
                for p, q in zip(softmax(wanted / 2.0), softmax(given / 2.0), strict=True)
            )
            for given, wanted in zip(student, teacher, strict=True)
        ]
    )
    found = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature=2.0)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_a_share_is_the_same_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [40, 20, 3])
    chosen = balanced_share(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 2, 1]
    assert len(set(chosen.tolist())) == len(chosen)
    assert (balanced_share(labels, 0.1, seed=0) == chosen).all()
    assert (balanced_share(labels, 0.1, seed=1) != chosen).any()


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(192)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


@pytest.fixture
def teacher(tmp_path: Path, images: Path) -> Path:
    settings = {**SMALL, "encoder.width": 8}
    return pretrain(images, out=tmp_path / "teacher", quiet=True, epochs=3, **settings)


def test_a_student_comes_to_agree_with_its_teacher(
    images: Path, teacher: Path, tmp_path: Path
) -> None:
    before = load_file(teacher / "encoder.safetensors")
    settings = {
        **SMALL,
        "encoder.width": 4,
        "distillation.teacher": str(teacher),
        "distillation.labelled_share": 0.2,
    }
    out = pretrain(images, out=tmp_path / "student", quiet=True, epochs=8, **settings)
    lines = read_metrics(out / "metrics.jsonl")
    assert lines[0]["classes"] == 3
    assert lines[-1]["teacher_agreement"] > 0.8 > lines[0]["teacher_agreement"]
    assert lines[0]["chance_teacher_agreement"] == pytest.approx(1 / 3)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    found = evaluate(out, threads=1)
    assert found["knn"]["trained"] > 0.9
    after = load_file(teacher / "encoder.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    small, large = (
        sum(p.numel() for p in load_encoder(run).parameters()) for run in (out, teacher)
    )
    assert small < large / 2
    with pytest.raises(RunFolderError, match="no hidden layers"):
        load_encoder(out, head_layers=1)


def test_the_speed_of_a_student_is_measured_whatever_classes_a_sample_has(
    images: Path, teacher: Path, executor: Executor
) -> None:
    arrays = dict(np.load(images))
    # The few images that a step is measured on lack the last class.
    arrays["labels"][spread_indices(192, 32)] %= 2
    np.savez(images, **arrays)
    asked = {**SMALL, "encoder.width": 4, "distillation.teacher": str(teacher)}
    layers = overrides_of(nest({**asked, "images.path": str(images)}), None)
    config, _ = resolve(layers, image_count=192, median_side_pixels=32, channels=3)
    collection = open_images(config.images, executor)
    assert collection.train.classes == ("0", "1", "2")
    assert measure_speed(config, collection, executor, NOTHING_OWN).image_seconds > 0


@pytest.mark.parametrize(
    "views", [ViewsConfig(small_views=1), ViewsConfig(side_pixels=32, early_side=0.5)]
)
def test_a_student_sees_views_of_one_size(views: ViewsConfig) -> None:
    config = RunConfig(views=views, distillation=DistillationConfig(teacher="runs/teacher"))
    with pytest.raises(ConfigError, match="distillation takes views of one size"):
        require_consistent(config)


def test_a_student_needs_its_teachers_views_and_labels(
    images: Path, teacher: Path, tmp_path: Path, stripes: Stripes
) -> None:
    settings = {**SMALL, "encoder.width": 4, "distillation.teacher": str(teacher)}
    other = {**settings, "views.side_pixels": 20}
    with pytest.raises(ConfigError, match=r"views of 16 pixels .* the student's have 20"):
        pretrain(images, out=tmp_path / "one", quiet=True, epochs=1, **other)
    np.savez(tmp_path / "unlabelled.npz", images=stripes(64)[0])
    with pytest.raises(ConfigError, match="needs labelled images"):
        pretrain(
            tmp_path / "unlabelled.npz", out=tmp_path / "two", quiet=True, epochs=1, **settings
        )
