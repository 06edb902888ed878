"""An encoder as a transformer of scikit-learn: ``fit`` learns it, ``transform`` gives features.

>>> from sklearn.linear_model import LogisticRegression
>>> from sklearn.pipeline import make_pipeline
>>> model = make_pipeline(ContrastiveEmbedder(minutes=20), LogisticRegression())
>>> model.fit(paths, labels).score(other_paths, other_labels)  # doctest: +SKIP
"""

import numbers
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from diptych.errors import ConfigError, ImagesError
from diptych.evaluation.features import extract_features
from diptych.images.sources.lists import fits_a_line
from diptych.models.encoders import count_features
from diptych.models.weights import PretrainedEncoder, load_encoder
from diptych.pretraining import pretrain
from diptych.runtime.devices import BATCH_SIZE, choose_device

_CACHE: Final = "images.cache_folder"

Images = Sequence[str | Path] | NDArray[Any] | torch.Tensor
"""Paths of image files, or an array or tensor (images, height, width[, channels]) of uint8."""


class ContrastiveEmbedder(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Learns features of images without labels, and gives those of any images.

    ``fit`` and ``transform`` take the paths of image files or an array (images, height, width[,
    channels]) of uint8; a label given to ``fit`` is not used. The same images and ``random_state``
    give the same features.

    Args:
        run: a run folder or encoder file whose encoder is used; ``fit`` then learns nothing.
        recipe: name in ``diptych.RECIPES``; that of ``diptych.pretrain`` when not given.
        epochs: passes over the images; the recipe's when not given.
        minutes: how long to learn, in the place of ``epochs``.
        encoder: name of the network; the recipe's when not given.
        weights: to begin from, as ``--weights`` has them.
        settings: others by their dotted names, as ``{"views.side_pixels": 96}``.
        out: the run folder to keep; when not given the run is deleted and its encoder kept, with
            nothing of the images in ``images.cache_folder``.
        random_state: seed of the run; 0 when not given.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads; all cores when not given.
        batch_size: images that the trained encoder sees at once.
        verbose: whether the run shows its progress.

    Attributes:
        encoder_: frozen, from normalised images to features.
        run_: the run folder, where there is one that is kept.
    """

    encoder_: PretrainedEncoder
    run_: Path | None

    def __init__(
        self,
        *,
        run: str | Path | None = None,
        recipe: str | None = None,
        epochs: int | None = None,
        minutes: float | None = None,
        encoder: str | None = None,
        weights: str | None = None,
        settings: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        random_state: int | None = None,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int = BATCH_SIZE,
        verbose: bool = False,
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.epochs = epochs
        self.minutes = minutes
        self.encoder = encoder
        self.weights = weights
        self.settings = settings
        self.out = out
        self.random_state = random_state
        self.device = device
        self.threads = threads
        self.batch_size = batch_size
        self.verbose = verbose

    def fit(self, X: Images, y: object = None) -> "ContrastiveEmbedder":  # noqa: N803
        """Learns an encoder from images; ``y`` is not used.

        Raises:
            ImagesError: they are no images.
            ConfigError: a setting is wrong, or ``run`` contradicts another.
        """
        del y
        images = _checked(X)
        if self.run is not None:
            self._require_nothing_to_learn()
            self.run_, self.encoder_ = Path(self.run), load_encoder(self.run)
        else:
            self._learn(images)
        self.encoder_.to(choose_device(self.device, setting="device"))
        return self

    def transform(self, X: Images) -> NDArray[np.float32]:  # noqa: N803
        """The features of images, (images, features), row by row.

        Raises:
            ImagesError: they are no images, or one cannot be read.
        """
        check_is_fitted(self, "encoder_")
        images = _checked(X)
        options = {"threads": _plain(self.threads), "batch_size": _plain(self.batch_size)}
        if isinstance(images, np.ndarray):
            return extract_features(self.encoder_, images, **options).numpy()
        with _listed(images) as path:
            found = extract_features(_of_files(self.encoder_, path), path, **options).numpy()
        if len(found) != len(images):
            raise ImagesError(
                f"{len(images):,} images gave {len(found):,} rows. Give each file once, and none "
                "that holds several images."
            )
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        config = self.encoder_.config
        channels, side = config.images.channels, config.views.side_pixels
        return count_features(self.encoder_, channels=channels, side_pixels=side)

    def _learn(self, images: list[str] | NDArray[np.uint8]) -> None:
        """Trains a run on the images, and loads its encoder."""
        named = {
            "epochs": self.epochs,
            "minutes": self.minutes,
            "encoder.name": self.encoder,
            "weights": self.weights,
            "seed": self.random_state,
            "threads": self.threads,
        }
        given = {name: value for name, value in named.items() if value is not None}
        given = {"training.device": self.device, **given, **(self.settings or {})}
        settings = {name: _plain(value) for name, value in given.items()}
        with tempfile.TemporaryDirectory(prefix="diptych-") as folder, _listed(images) as path:
            self.run_ = None if self.out is None else Path(self.out)
            out = self.run_ or Path(folder) / "run"
            # A run that is kept would name a folder that is gone.
            aside = self.run_ is None and _CACHE not in settings
            if aside:
                settings[_CACHE] = str(_cache_beside(path))
            pretrain(path, recipe=self.recipe, out=out, quiet=not self.verbose, **settings)
            self.encoder_ = load_encoder(out)
            if aside:
                self.encoder_ = _with_images(self.encoder_, cache_folder=None)

    def _require_nothing_to_learn(self) -> None:
        """Refuses settings of a training that will not be."""
        names = ("recipe", "epochs", "minutes", "encoder", "weights", "settings", "out")
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            raise ConfigError(
                f"run={str(self.run)!r} is an encoder that is trained, so that {', '.join(given)} "
                "would change nothing. Leave out one or the other."
            )


def _plain(value: Any) -> Any:
    """Numbers of any kind, as searches over parameters draw them from NumPy, as Python's own."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _of_files(encoder: PretrainedEncoder, path: Path) -> PretrainedEncoder:
    """The encoder for a list of files, each of which is one image whatever its run left out."""
    cache = str(_cache_beside(path))
    return _with_images(encoder, exclude=(), pages="first", video_seconds=None, cache_folder=cache)


def _with_images(encoder: PretrainedEncoder, **settings: Any) -> PretrainedEncoder:
    """The same encoder with other settings of images."""
    config = replace(encoder.config, images=replace(encoder.config.images, **settings))
    return PretrainedEncoder(encoder.network, config, encoder.whitening, encoder.layer)


def _cache_beside(path: Path) -> Path:
    """Where what is kept of a list's images goes with the list, as nothing would find it again."""
    return path.with_name("cache")


def _checked(images: Any) -> list[str] | NDArray[np.uint8]:
    """Paths as texts, or an array of uint8.

    Raises:
        ImagesError: they are neither.
    """
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu().numpy()
    if isinstance(images, np.ndarray) and images.ndim in (3, 4) and images.dtype == np.uint8:
        if 0 in images.shape:
            raise ImagesError(f"an array of the shape {images.shape} holds no images.")
        return images
    if not isinstance(images, str | bytes | np.ndarray) or (
        isinstance(images, np.ndarray) and images.ndim == 1
    ):
        paths = list(images)
        if paths and all(isinstance(one, str | os.PathLike) for one in paths):
            return [os.path.abspath(one) for one in paths]
    what = type(images).__name__
    if isinstance(images, np.ndarray):
        what = f"array of {images.dtype} and the shape {images.shape}"
    raise ImagesError(
        f"got a {what}; wanted a list of paths of image files, or an array (images, height, "
        "width[, channels]) of uint8."
    )


@contextmanager
def _listed(images: list[str] | NDArray[np.uint8]) -> Iterator[Path]:
    """The same images as a path that ``pretrain`` takes: a list of files, or an array on disk."""
    with tempfile.TemporaryDirectory(prefix="diptych-") as folder:
        if isinstance(images, np.ndarray):
            path = Path(folder) / "images.npy"
            np.save(path, images)
        else:
            broken = next((one for one in images if not fits_a_line(one)), None)
            if broken is not None:
                raise ImagesError(
                    f"{broken!r}: a path with a line break, blanks at its ends or a # at its "
                    "beginning. Rename the file."
                )
            path = Path(folder) / "images.txt"
            text = "".join(f"{one}\n" for one in images)
            path.write_bytes(os.fsencode(text))
        yield path
