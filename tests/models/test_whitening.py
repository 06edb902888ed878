"""Whitening of features against SciPy and against views whose covariance is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

import diptych
from diptych.errors import RunFolderError
from diptych.evaluation.feature_store import FeatureStore
from diptych.images.open import open_images
from diptych.models.final_features import Whitening, fit_whitening
from diptych.models.start import fit_start, read_start
from diptych.models.weights import save_encoder
from diptych.runtime.devices import Runtime


def made_up(views: int = 40, images: int = 200, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    content = 2.0 * torch.randn(1, images, size, generator=generator)
    mixing = torch.randn(size, size, generator=generator)
    return content + torch.randn(views, images, size, generator=generator) @ mixing


def within(features: np.ndarray) -> np.ndarray:
    """Covariance of views around the mean of their image, by a plain loop over images."""
    return np.mean([np.cov(features[:, one].T) for one in range(features.shape[1])], axis=0)


@pytest.mark.parametrize("shrinkage", [0.01, 1.0, 10.0])
def test_the_map_is_the_inverse_root(shrinkage: float) -> None:
    features = made_up()
    covariance = within(features.double().numpy())
    floor = shrinkage * np.trace(covariance) / len(covariance)
    wanted = linalg.inv(linalg.sqrtm(covariance + floor * np.eye(len(covariance))))
    found = fit_whitening(features, shrinkage=shrinkage).weight.double().numpy()
    np.testing.assert_allclose(found / found[0, 0], wanted / wanted[0, 0], rtol=1e-4, atol=1e-5)


def test_views_vary_alike_in_all_directions() -> None:
    features = made_up()
    whitened = fit_whitening(features, shrinkage=1e-9)(features)
    covariance = within(whitened.double().numpy())
    np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(6), atol=1e-3)
    variances = [float((x - x.mean(dim=(0, 1))).square().mean()) for x in (features, whitened)]
    assert variances[0] == pytest.approx(variances[1], rel=1e-4)


def test_much_shrinkage_changes_nothing_but_the_mean() -> None:
    features = made_up()
    found = fit_whitening(features, shrinkage=1e6)(features)
    torch.testing.assert_close(found, features - features.mean(dim=(0, 1)), rtol=1e-3, atol=1e-3)


def test_views_that_are_alike_whiten_nothing() -> None:
    features = made_up()[:1].expand(3, -1, -1)
    torch.testing.assert_close(fit_whitening(features).weight, torch.eye(6))


@pytest.mark.parametrize("shape", [(1, 5, 3), (4, 1, 3)])
def test_too_few_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="two views of two images"):
        fit_whitening(torch.zeros(shape))


def test_fewer_images_than_features() -> None:
    features = made_up(views=2, images=3, size=6)
    assert torch.isfinite(fit_whitening(features)(features)).all()


def test_its_state_is_two_tensors() -> None:
    assert set(Whitening(torch.zeros(2), torch.eye(2)).state_dict()) == {"mean", "weight"}


@pytest.fixture
def run(class_folder: Path, tmp_path: Path) -> Path:
    settings: dict[str, Any] = {
        "encoder.width": 4,
        "views.side_pixels": 16,
        "batch_size": 8,
        "epochs": 1,
        "training.keep.kind": "last",
    }
    return diptych.pretrain(class_folder, out=tmp_path / "run", quiet=True, threads=1, **settings)


def whitened_file(run: Path, file: Path, size: int) -> Whitening:
    encoder = diptych.load_encoder(run)
    generator = torch.Generator().manual_seed(1)
    whitening = Whitening(
        torch.randn(size, generator=generator), torch.randn(size, size, generator=generator)
    )
    save_encoder(file, encoder.network, encoder.config, whitening=whitening)
    return whitening


def test_a_saved_encoder_whitens_its_features(run: Path, tmp_path: Path) -> None:
    plain, images = diptych.load_encoder(run), torch.randn(3, 3, 16, 16)
    whitening = whitened_file(run, tmp_path / "white.safetensors", plain(images).shape[1])
    loaded = diptych.load_encoder(tmp_path / "white.safetensors")
    wanted = (plain(images) - whitening.mean) @ whitening.weight
    torch.testing.assert_close(loaded(images), wanted)
    torch.testing.assert_close(loaded.network(images), plain(images))


def test_kept_features_are_whitened_too(run: Path, tmp_path: Path, class_folder: Path) -> None:
    plain = diptych.load_encoder(run)
    whitened_file(run, tmp_path / "white.safetensors", plain(torch.zeros(1, 3, 16, 16)).shape[1])
    white, config = diptych.load_encoder(tmp_path / "white.safetensors"), plain.config
    with Runtime(threads=1) as runtime:
        images = open_images(config.images, runtime.executor).train
        store = FeatureStore(tmp_path / "features", runtime)
        first = store.features(white, images, config.images, config.views)
        again = store.features(white, images, config.images, config.views)
        bare = store.features(plain, images, config.images, config.views)
    assert torch.equal(first, again)
    assert len(list((tmp_path / "features").iterdir())) == 1
    assert white.whitening is not None
    torch.testing.assert_close(first, white.whitening(bare))


def test_a_whitening_of_other_features_is_refused(run: Path, tmp_path: Path) -> None:
    whitened_file(run, tmp_path / "white.safetensors", 5)
    with pytest.raises(RunFolderError, match="whitening is of 5 features"):
        diptych.load_encoder(tmp_path / "white.safetensors")


def test_a_run_may_begin_from_a_whitened_encoder(run: Path, tmp_path: Path) -> None:
    """From its weights: the whitening was of other features than training will make of them."""
    file = tmp_path / "white.safetensors"
    plain = diptych.load_encoder(run)
    whitened_file(run, file, plain(torch.zeros(1, 3, 16, 16)).shape[1])
    begun = fit_start(read_start(str(file), None), plain.config)
    assert "the whitening of its features (2)" in begun.sentences[0]
    for name, value in plain.network.state_dict().items():
        assert torch.equal(begun.network.state_dict()[name], value), name
