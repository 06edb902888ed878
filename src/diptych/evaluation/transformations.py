"""Which transformations of an image can be predicted from features (SimCLR, section 4.2, table 3).

Each held-out image is shown in several versions: as it is, gray, turned, noisy, and as its edges.
From the features of a version, a linear classifier predicts which version it is. What it predicts
from h and not from g(h), the head has thrown away. The paper trains small networks for this; a
linear classifier finds what is linearly separable, as the linear protocol does.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.config.data import ViewsConfig
from diptych.config.policies import parse_policy
from diptych.errors import ImagesError
from diptych.evaluation.confidence import BootstrapEstimate, count_units, estimate
from diptych.evaluation.features import LayeredNetwork, in_batches
from diptych.evaluation.linear import fit_linear
from diptych.evaluation.split import drawn_whole, groups_of_parts, units_of, unseen_split
from diptych.evaluation.subject import PIXELS, TRAINED, UNTRAINED, Subject
from diptych.images.collection import ImageSet, spread_indices
from diptych.images.groups import stratified_group_split
from diptych.runtime.devices import Runtime
from diptych.views import parameters as codes
from diptych.views.batches import as_images
from diptych.views.cpu import SizedViews, load_views
from diptych.views.draw import centre_views, draw_views
from diptych.views.parameters import STEP_WIDTH, ViewParameters

VERSIONS: Final[Mapping[str, str | int]] = {
    "original": "center",
    "gray": "center + gray(1)",
    "turned 90": 1,
    "turned 180": 2,
    "turned 270": 3,
    "noisy": "center + noise(1, sigma=0.1)",
    "edges": "center + sobel(1)",
}
"""What is made of each image: a policy without chance but for the noise, or quarter turns."""

TASKS: Final[Mapping[str, tuple[str, ...]]] = {
    "color or gray": ("original", "gray"),
    "rotation": ("original", "turned 90", "turned 180", "turned 270"),
    "original or noise-corrupted": ("original", "noisy"),
    "original or Sobel": ("original", "edges"),
}
"""Which versions a classifier has to tell apart; all are equally frequent."""

PROBED_PIXEL_SIDE: Final = 16
"""Raw pixels are probed at this side at most: the classifier needs their covariance."""

MOST_IMAGES: Final = 3000
_TESTED: Final = 1 / 3  # of the images, each in all of its versions
_FEWEST: Final = 30  # images


def measure_transformations(subject: Subject) -> dict[str, Any]:
    """How well transformations are predicted from each layer, trained and untrained, and pixels.

    Of held-out images where the run has any.
    """
    split = unseen_split(subject.collection, subject.seen, most=MOST_IMAGES)
    images, config = split.test, subject.config
    groups, _, remarks = groups_of_parts(images, None, config.images.group_by)
    how = "Classifiers are fitted on two thirds of them and measured on the rest."
    found = {
        name: probe_layers(
            layers,
            images,
            config.views,
            subject.runtime,
            groups=units_of(images, groups),
            pixels=name == UNTRAINED,
        )
        for name, layers in subject.layers.items()
    }
    layers = {name: one.pop("layers") for name, one in found.items()}
    pixels = layers[UNTRAINED].pop(PIXELS)
    remarks += drawn_whole(found[TRAINED]["test_units"], found[TRAINED]["test_images"])
    described = {"split": replace(split, remarks=(how, *remarks)).as_dict()}
    return {"transformations": layers | {PIXELS: pixels} | found[TRAINED] | described}


def probe_layers(
    network: LayeredNetwork,
    images: ImageSet,
    views: ViewsConfig,
    runtime: Runtime,
    *,
    groups: NDArray[np.int64] | None = None,
    pixels: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of telling the versions of images apart, from every layer of a network.

    Args:
        network: on its device; stays as it is.
        images: held-out ones; ``MOST_IMAGES`` of them at most are used.
        views: gives side and normalisation.
        runtime: gives threads and batch size.
        groups: (images,), numbers: no group is fitted and measured on, and resamples draw it whole.
        pixels: also probe the pixels themselves.
        seed: of noise, split and intervals.

    Returns:
        ``tasks`` with ``classes`` and ``chance`` of each; under ``layers`` for each layer and task
        the accuracy as ``value``, ``low`` and ``high`` (95%); under ``thrown_away`` for each task
        the same of the accuracy from h less that from g(h); ``train_images``, ``test_images``, and
        ``test_units``, the groups that these are.

    Raises:
        ImagesError: there are too few images.
    """
    rows = spread_indices(len(images), MOST_IMAGES)
    chosen = images.select(rows)
    if len(chosen) < _FEWEST:
        raise ImagesError(
            f"wanted {_FEWEST} images or more to see what the head throws away; got {len(chosen)}."
        )
    tasks = tasks_of(images.channels)
    wanted = [name for name in VERSIONS if any(name in task for task in tasks.values())]
    features = version_features(network, chosen, wanted, views, runtime, pixels=pixels, seed=seed)
    groups = np.arange(len(chosen)) if groups is None else groups[rows]
    # One split for every layer, so that what the head throws away is a difference in pairs.
    train, test = split_images(len(chosen), seed, groups)
    reached = {
        layer: {
            task: probe([found[name] for name in versions], train, test, groups=groups, seed=seed)
            for task, versions in tasks.items()
        }
        for layer, found in features.items()
    }
    return {
        "tasks": {
            name: {"classes": list(versions), "chance": 1 / len(versions)}
            for name, versions in tasks.items()
        },
        "layers": {
            layer: {task: one.interval().as_dict() for task, one in found.items()}
            for layer, found in reached.items()
        },
        "thrown_away": _thrown_away(reached, first=network.names[0], last=network.names[-1]),
        "train_images": len(train),
        "test_images": len(test),
        "test_units": count_units(len(test), groups[test.numpy()]),
    }


def _thrown_away(
    reached: Mapping[str, Mapping[str, BootstrapEstimate]], *, first: str, last: str
) -> dict[str, dict[str, float | None]]:
    """By task, the accuracy from the first layer less that from the last; paired intervals."""
    return {
        task: one.minus(reached[last][task]).interval().as_dict()
        for task, one in reached[first].items()
    }


def tasks_of(channels: int) -> Mapping[str, tuple[str, ...]]:
    """The tasks that make sense for images: one channel is gray already."""
    return {name: task for name, task in TASKS.items() if channels > 1 or "gray" not in task}


def probe(
    versions: list[Tensor],
    train: Tensor,
    test: Tensor,
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> BootstrapEstimate:
    """Fits a linear classifier of versions on some images and measures it on others.

    Args:
        versions: (images, dim) of each version, row i of all the same image.
        train: indices of images.
        test: indices of other images.
        groups: (images,), numbers; each image by itself when not given.
        seed: of the classifier's held-out part and of the resamples.

    Returns:
        The accuracy over all versions of the test images. Resamples draw groups, or images, as the
        versions of one image are not independent.
    """
    # Features lie version after version: a label is repeated, the row of groups is tiled.
    labels = torch.arange(len(versions)).repeat_interleave(len(train))
    own = train.numpy() if groups is None else groups[train.numpy()]
    features = torch.cat([one[train] for one in versions])
    # All versions of an image on one side, where the l2 strength is chosen too.
    classifier = fit_linear(features, labels, seed=seed, groups=np.tile(own, len(versions)))
    right = torch.stack(
        [classifier.predict(one[test]) == number for number, one in enumerate(versions)]
    )
    per_image = right.double().mean(dim=0).numpy()
    return estimate(
        lambda counts: counts @ per_image / counts.sum(axis=1),
        len(test),
        units=None if groups is None else groups[test.numpy()],
        seed=seed,
    )


def split_images(
    count: int, seed: int, groups: NDArray[np.int64] | None = None
) -> tuple[Tensor, Tensor]:
    """Indices to train and to test on: all versions of an image, and a group, are on one side."""
    # One class for all: every image comes in every version, so there is nothing to stratify.
    kept, held_out, _ = stratified_group_split(
        np.zeros(count, dtype=np.int64), groups, share=_TESTED, seed=seed
    )
    return torch.from_numpy(kept), torch.from_numpy(held_out)


def version_features(
    network: LayeredNetwork,
    images: ImageSet,
    versions: list[str],
    views: ViewsConfig,
    runtime: Runtime,
    *,
    pixels: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, Tensor]]:
    """Features by layer, then by version: (images, dim) each, on the CPU."""
    names = [*network.names, *([PIXELS] if pixels else [])]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    told = runtime.counting("Features of changed images")
    # Fewer images at once, as each comes in up to seven versions.
    for indices in in_batches(len(images), max(1, runtime.batch_size // 2)):
        made = _make(images, indices, versions, views, runtime, seed)
        count = len(indices)
        batch = as_images(made.reshape(-1, *made.shape[2:]))
        found = network.in_evaluation(batch)
        if pixels:
            found[PIXELS] = _small(batch)
        for name, one in found.items():
            parts[name].append(one.reshape(len(versions), count, -1))
        told(int(indices[-1]) + 1, len(images))
    joined = {name: torch.cat(several, dim=1) for name, several in parts.items()}
    return {name: dict(zip(versions, one, strict=True)) for name, one in joined.items()}


def draw_versions(
    versions: list[str],
    indices: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    *,
    side_pixels: int,
    seed: int,
) -> ViewParameters:
    """What is done to images to make versions of them, (versions, images).

    Args:
        versions: names in ``VERSIONS``.
        indices: (images,), of each in its set; the noise follows from it.
        heights: (images,), in pixels.
        widths: (images,), in pixels.
        side_pixels: of the versions.
        seed: of the noise.
    """
    centred = centre_views(heights, widths)
    # The same square in every version, as a crop of its own would tell which version it is.
    crops = np.repeat(centred.crops, len(versions), axis=0)
    steps = np.zeros((*crops.shape, 1, STEP_WIDTH))
    for row, name in enumerate(versions):
        version = VERSIONS[name]
        if isinstance(version, int):
            steps[row, :, 0, :2] = codes.TURN, version
            continue
        drawn = draw_views(
            [parse_policy(version)],
            side_pixels=side_pixels,
            seed=seed,
            epoch=0,
            indices=indices,
            heights=heights,
            widths=widths,
        )
        steps[row, :, : drawn.steps.shape[2]] = drawn.steps[0]
    return ViewParameters(crops, steps)


def _make(
    images: ImageSet,
    indices: NDArray[np.int64],
    versions: list[str],
    views: ViewsConfig,
    runtime: Runtime,
    seed: int,
) -> NDArray[np.float32]:
    """(versions, images, side, side, channels)."""
    side = views.side_pixels
    heights, widths = images.heights[indices], images.widths[indices]
    drawn = draw_versions(versions, indices, heights, widths, side_pixels=side, seed=seed)
    return load_views(images, indices, [SizedViews(drawn, side)], views, runtime.executor)[0]


def _small(batch: Tensor) -> Tensor:
    """The pixels themselves, at ``PROBED_PIXEL_SIDE`` at most, as rows."""
    if batch.shape[-1] > PROBED_PIXEL_SIDE:
        batch = nn.functional.interpolate(
            batch, size=(PROBED_PIXEL_SIDE, PROBED_PIXEL_SIDE), mode="bilinear", antialias=True
        )
    return batch.flatten(1)
