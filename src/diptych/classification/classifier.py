"""A classifier of images, and its folder: encoder, classifier, classes and calibration.

The folder holds two files of tensors and one of JSON, and what is for people. Nothing in it is ever
unpickled, and no name of a file is read from it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from diptych.errors import ClassifierError, FeaturesError
from diptych.evaluation.knn import knn_votes
from diptych.evaluation.linear import LinearClassifier
from diptych.evaluation.predictions import softmax
from diptych.models.encoders import count_features
from diptych.models.weights import PretrainedEncoder, load_encoder, save_encoder
from diptych.runs.atomic import atomic_write
from diptych.runs.tensor_files import UnreadableTensors, read_tensors

ENCODER: Final = "encoder.safetensors"
WEIGHTS: Final = "classifier.safetensors"
MANIFEST: Final = "model.json"
PAGE: Final = "classifier.html"
PREDICTIONS: Final = "predictions.csv"

_FORMAT: Final = 1
_MOST_BYTES: Final = 2**26  # of the manifest
_MOST_CLASSES: Final = 100_000
_CROPS: Final = ("center", "five")


@dataclass(frozen=True, eq=False)
class NearestImages:
    """A vote of the most similar labelled images (InstDisc, section 3.4).

    Attributes:
        features: (images, dim), of the labelled images.
        labels: (images,).
        classes: how many.
        neighbours: images that vote.
        knn_temperature: a vote weighs exp(cosine / temperature), relative to the nearest.
    """

    features: Float[Tensor, "images dim"]
    labels: Int[Tensor, " images"]
    classes: int
    neighbours: int
    knn_temperature: float

    def scores(self, features: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries classes"]:
        """Logarithms of the votes; one vote more is spread over all classes, so none has 0."""
        votes = knn_votes(
            self.features,
            self.labels,
            features,
            k=self.neighbours,
            temperature=self.knn_temperature,
            classes=self.classes,
        )
        return (votes + 1.0 / self.classes).log()


FARTHEST: Final = 10.0
"""Standard deviations from the mean, beyond which a feature counts as that far away. A feature that
hardly varies over the images fitted on may lie hundreds of them away for another image, and would
decide alone, at a probability of 1."""


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier on standardised features.

    Attributes:
        fitted: its weights.
        farthest: that a standardised feature counts as, at most; None for no bound.
    """

    fitted: LinearClassifier
    farthest: float | None = FARTHEST

    def scores(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        """Logits of each image."""
        weight, bias, mean, scale, _ = self.fitted
        standard = (features - mean) * scale
        if self.farthest is not None:
            standard = standard.clamp(-self.farthest, self.farthest)
        return functional.linear(standard, weight, bias)


Head = LinearHead | NearestImages


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """From images to probabilities of classes.

    Attributes:
        encoder: gives the features.
        head: from features to scores.
        classes: their names.
        temperature: that scores are divided by.
        crops: what is seen of an image, as in ``extract_features``.
        about: how it was made and how well it does, for people.
    """

    encoder: PretrainedEncoder
    head: Head
    classes: tuple[str, ...]
    temperature: float = 1.0
    crops: Any = "center"
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Length of the features that it takes."""
        head = self.head
        rows = head.features if isinstance(head, NearestImages) else head.fitted.weight
        return rows.shape[1]

    def probabilities(self, features: Float[Tensor, "images dim"]) -> NDArray[np.float64]:
        """(images, classes) of features that the encoder gave.

        Raises:
            ClassifierError: they are of another length.
            FeaturesError: they are not finite numbers.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ClassifierError(
                f"the classifier takes features (images, {self.dim}); got {tuple(features.shape)}. "
                f"Embed the images with the {ENCODER} of its folder."
            )
        if not bool(torch.isfinite(features).all()):
            raise FeaturesError("the features that are to be classified are not finite numbers")
        return softmax(self.head.scores(features.float().cpu()).double().numpy(), self.temperature)


def save_classifier(folder: Path, classifier: ImageClassifier) -> None:
    """Writes its three files into a folder that is there.

    Raises:
        OSError: they cannot be written.
    """
    encoder, head = classifier.encoder, classifier.head
    save_encoder(
        folder / ENCODER,
        encoder.network,
        encoder.config,
        whitening=encoder.whitening,
        layer=encoder.layer,
    )
    if isinstance(head, NearestImages):
        tensors = {"features": head.features, "labels": head.labels}
        own: dict[str, Any] = {
            "neighbours": head.neighbours,
            "knn_temperature": head.knn_temperature,
        }
    else:
        names = ("weight", "bias", "mean", "scale")
        tensors = {name: getattr(head.fitted, name) for name in names}
        own = {"l2": head.fitted.l2, "farthest": head.farthest}
    contiguous = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    atomic_write(folder / WEIGHTS, save(contiguous))
    manifest = {
        "format": _FORMAT,
        "kind": "knn" if isinstance(head, NearestImages) else "linear",
        "classes": classifier.classes,
        "temperature": classifier.temperature,
        "crops": classifier.crops,
        **own,
        "about": classifier.about,
    }
    atomic_write(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def load_classifier(folder: str | Path) -> ImageClassifier:
    """Reads the folder of a classifier, whatever lies there.

    Raises:
        ClassifierError: it is none, or its files are damaged or do not go together.
        RunFolderError: its encoder is damaged.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    encoder = load_encoder(path / ENCODER)
    try:
        classes = _classes(manifest["classes"])
        head = _head(manifest, read_tensors(path / WEIGHTS), len(classes))
        temperature = _positive(manifest, "temperature")
        crops = manifest["crops"]
        if crops not in _CROPS:
            raise ValueError(f"crops are {crops!r}")
    except (UnreadableTensors, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ClassifierError(
            f"{path} is damaged, or of another version: {what}. Restore it, or fit it again with "
            "`diptych classify fit`."
        ) from error
    about = manifest.get("about")
    about = about if isinstance(about, dict) else {}
    found = ImageClassifier(encoder, head, classes, temperature, crops, about)
    given = count_features(
        encoder,
        channels=encoder.config.images.channels,
        side_pixels=encoder.config.views.side_pixels,
    )
    if given != found.dim:
        raise ClassifierError(
            f"{path}: the encoder gives {given} features and the classifier takes {found.dim}; "
            "its files are not of one model. Restore them."
        )
    return found


def read_manifest(path: Path) -> Mapping[str, Any]:
    """What the folder of a classifier says of it.

    Raises:
        ClassifierError: there is none, it is damaged, or of something else.
    """
    try:
        with open(path / MANIFEST, "rb") as file:
            # Bounded: whatever lies under this name must not fill the memory.
            manifest = json.loads(file.read(_MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ClassifierError(
            f"{path} is no folder of a classifier: it has no {MANIFEST}. `diptych classify fit RUN "
            f"LABELLED -o {path}` makes one."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ClassifierError(f"{path / MANIFEST} cannot be read: {error}. Restore it.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ClassifierError(
            f"{path / MANIFEST} is not of a classifier as this version of diptych writes it "
            f"(format {_FORMAT})."
        )
    return manifest


def _classes(found: Any) -> tuple[str, ...]:
    named = isinstance(found, list) and all(isinstance(one, str) and one for one in found)
    if not named or not 2 <= len(found) <= _MOST_CLASSES or len(set(found)) != len(found):
        raise ValueError("its classes are not two or more different names")
    return tuple(found)


def _positive(manifest: Mapping[str, Any], name: str) -> float:
    found = manifest[name]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{name} is no number")
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"{name} is {found}")
    return float(found)


def _head(manifest: Mapping[str, Any], tensors: dict[str, Tensor], classes: int) -> Head:
    """The classifier of tensors whose shapes, kinds and values fit."""
    if manifest["kind"] == "knn":
        features, labels = tensors["features"], tensors["labels"]
        _require(labels.dtype == torch.int64 and labels.ndim == 1 and len(labels) > 0, "labels")
        _require(int(labels.min()) >= 0 and int(labels.max()) < classes, "labels")
        _require_numbers("features", features, (len(labels), None))
        neighbours = int(_positive(manifest, "neighbours"))
        temperature = _positive(manifest, "knn_temperature")
        return NearestImages(features, labels, classes, neighbours, temperature)
    if manifest["kind"] != "linear":
        raise ValueError(f"its kind is {manifest['kind']!r}")
    weight = tensors["weight"]
    _require_numbers("weight", weight, (classes, None))
    _require_numbers("bias", tensors["bias"], (classes,))
    for name in ("mean", "scale"):
        _require_numbers(name, tensors[name], (weight.shape[1],))
    l2 = manifest["l2"]
    _require(isinstance(l2, float | int), "l2")
    farthest = None if manifest["farthest"] is None else _positive(manifest, "farthest")
    bias, mean, scale = (tensors[name] for name in ("bias", "mean", "scale"))
    return LinearHead(LinearClassifier(weight, bias, mean, scale, float(l2)), farthest)


def _require_numbers(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(
        wanted is None or wanted == came for wanted, came in zip(shape, tensor.shape, strict=True)
    )
    _require(fits and tensor.numel() > 0 and tensor.dtype == torch.float32, name)
    _require(bool(torch.isfinite(tensor).all()), name)


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(
            f"the tensor or number {name!r} is not of the kind, shape or values wanted"
        )
