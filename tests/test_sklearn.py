"""The encoder as a transformer of scikit-learn."""

import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.files import SHORT_NAMES, nest, overlay
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, ImagesError
from diptych.evaluation.features import extract_features
from diptych.images.open import open_images
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.sklearn import ContrastiveEmbedder

NAMED = ("epochs", "seed", "optimizer.learning_rate", "views.pixel_mean", "training.compile")
Stripes = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An encoder file."""
    config = RunConfig(encoder=EncoderConfig(width=4), views=ViewsConfig(side_pixels=16))
    save_encoder(tmp_path / "encoder.safetensors", untrained_encoder(config), config)
    return tmp_path / "encoder.safetensors"


def test_features_are_those_of_the_encoder(run: Path, stripes: Stripes) -> None:
    images, _ = stripes(12, 3)
    found = ContrastiveEmbedder(run=run, threads=1).fit_transform(images)
    wanted = extract_features(load_encoder(run), images, threads=1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.numpy())
    from_torch = (
        ContrastiveEmbedder(run=run, threads=1).fit(images).transform(torch.from_numpy(images))
    )
    np.testing.assert_array_equal(from_torch, found)


def test_rows_are_those_of_the_paths(run: Path, class_folder: Path) -> None:
    paths = sorted(class_folder.rglob("*.png"))[:9]
    model = ContrastiveEmbedder(run=str(run), threads=1).fit(paths)
    forth = model.transform(paths)
    back = model.transform([str(one) for one in reversed([*paths, paths[0]])])
    np.testing.assert_allclose(back[0], forth[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back[1:][::-1], forth, rtol=1e-4, atol=1e-5)


def test_every_file_of_a_list_has_a_row(tmp_path: Path, class_folder: Path) -> None:
    # Whatever the run left out of its own folder.
    images = ImagesConfig(exclude=("class0",), pages="all")
    views, encoder = ViewsConfig(side_pixels=16), EncoderConfig(width=4)
    config = RunConfig(encoder=encoder, views=views, images=images)
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, untrained_encoder(config), config)
    paths = sorted(class_folder.rglob("*.png"))
    found = ContrastiveEmbedder(run=file, threads=1).fit(paths).transform(paths)
    assert any("class0" in str(one) for one in paths)
    assert len(found) == len(paths)


def test_names_containers_clones_and_copies(run: Path, stripes: Stripes) -> None:
    images, _ = stripes(6, 3)
    model = ContrastiveEmbedder(run=run, threads=1)
    with pytest.raises(NotFittedError):
        model.transform(images)
    features = model.fit_transform(images)
    names = list(model.get_feature_names_out())
    assert names == [f"contrastiveembedder{n}" for n in range(16)]
    table: Any = model.set_output(transform="pandas").transform(images)
    assert list(table.columns) == names
    np.testing.assert_array_equal(table.to_numpy(), features)
    assert not hasattr(clone(model), "encoder_")
    assert clone(model).get_params() == model.get_params()
    again = pickle.loads(pickle.dumps(model)).set_output(transform="default")
    np.testing.assert_array_equal(again.transform(images), features)


def test_in_a_pipeline(run: Path, stripes: Stripes) -> None:
    images, labels = stripes(60, 3)
    model = make_pipeline(
        ContrastiveEmbedder(run=run, threads=1), LogisticRegression(max_iter=1000)
    )
    assert (
        model.fit(images[:40], labels[:40]).score(images[40:], labels[40:]) > 0.6
    )  # chance is a third


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_the_checks_of_scikit_learn() -> None:
    """All that do not give it tables of numbers, which are no images."""
    results = check_estimator(ContrastiveEmbedder(), on_skip=None)
    assert {one["status"] for one in results} <= {"passed", "skipped"}
    for check in (
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ):
        check("ContrastiveEmbedder", ContrastiveEmbedder())


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((3, 8)), "array of float64 and the shape (3, 8)"),
        (np.zeros((3, 8, 8)), "array of float64 and the shape (3, 8, 8)"),
        (np.zeros((0, 8, 8), np.uint8), "holds no images"),
        ([1, 2], "got a list"),
        ([], "got a list"),
        ("photos/", "got a str"),
        (["a\nb.png"], "a path with a line break"),
        (["a.png "], "blanks at its ends"),
    ],
)
def test_what_is_no_images_is_refused(run: Path, images: Any, got: str) -> None:
    with pytest.raises(ImagesError, match=re.escape(got)):
        ContrastiveEmbedder(run=run).fit(images).transform(images)


def test_a_trained_run_learns_nothing_more(run: Path, stripes: Stripes) -> None:
    with pytest.raises(ConfigError, match="so that epochs would change nothing"):
        ContrastiveEmbedder(run=run, epochs=3).fit(stripes(4, 2)[0])


def test_numbers_of_numpy_are_settings_too(
    run: Path, stripes: Stripes, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def pretrain(path: Path, **settings: Any) -> None:
        given.update(settings)

    monkeypatch.setattr("diptych.sklearn.pretrain", pretrain)
    monkeypatch.setattr("diptych.sklearn.load_encoder", lambda _: load_encoder(run))
    images, _ = stripes(4, 2)
    more = {
        "optimizer.learning_rate": np.float32(0.5),
        "views.pixel_mean": tuple(np.array([0.5, 0.25, 0.125])),
        "training.compile": False,
    }
    model = ContrastiveEmbedder(
        epochs=np.int64(3),  # type: ignore[arg-type]
        random_state=np.uint8(7),  # type: ignore[arg-type]
        threads=np.int64(1),  # type: ignore[arg-type]
        batch_size=np.int32(3),  # type: ignore[arg-type]
        settings=more,
    )
    assert len(model.fit(images).transform(images)) == 4
    config = overlay(
        RunConfig(), nest({SHORT_NAMES.get(name, name): given[name] for name in NAMED}), "the test"
    )
    assert (config.training.epochs, config.seed) == (3, 7)
    assert config.optimizer.learning_rate == 0.5
    assert config.views.pixel_mean == (0.5, 0.25, 0.125)
    assert config.training.compile is False


def test_what_is_known_of_the_images_goes_with_the_run(
    run: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name leads to it once the list of the paths is gone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = list[int]()

    def pretrain(path: Path, **settings: Any) -> None:
        with ThreadPoolExecutor(1) as executor:
            folder = settings.get("images.cache_folder")
            config = ImagesConfig(path=str(path), cache_folder=folder)
            opened.append(len(open_images(config, executor).train))

    monkeypatch.setattr("diptych.sklearn.pretrain", pretrain)
    monkeypatch.setattr("diptych.sklearn.load_encoder", lambda _: load_encoder(run))
    paths = sorted(class_folder.rglob("*.png"))
    model = ContrastiveEmbedder(threads=1).fit(paths)
    assert opened == [48]
    assert len(model.transform(paths[:3])) == 3
    assert not (tmp_path / "cache").exists()
    assert model.encoder_.config.images.cache_folder is None
    own = {"images.cache_folder": str(tmp_path / "own")}
    ContrastiveEmbedder(threads=1, settings=own).fit(paths)
    assert list((tmp_path / "own").iterdir())


@pytest.mark.slow
def test_fit_learns(tmp_path: Path, stripes: Stripes, class_folder: Path) -> None:
    images, _ = stripes(24, 3)
    options: dict[str, Any] = {
        "epochs": 1,
        "random_state": 3,
        "threads": 1,
        "device": "cpu",
        "settings": {"encoder.width": 4, "batch_size": 8},
    }
    one = ContrastiveEmbedder(**options, out=tmp_path / "run").fit(images)
    other = clone(one).set_params(out=None).fit(images)
    np.testing.assert_array_equal(one.transform(images), other.transform(images))
    assert one.run_ == tmp_path / "run"
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    assert other.run_ is None
    seeded = clone(other).set_params(random_state=4).fit(images)
    assert np.abs(seeded.transform(images) - one.transform(images)).max() > 1e-3
    paths = sorted(class_folder.rglob("*.png"))
    assert clone(other).fit(paths).transform(paths[:5]).shape[0] == 5
