"""Two protocols that need no labels and look at every layer: geometry, and transformations.

Both take held-out images where the run has any, and else those that it learned from, and say which.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diptych.evaluation.geometry import Geometry, geometry
from diptych.evaluation.layers import Layers, trained_layers, untrained_layers
from diptych.evaluation.split import groups_of_parts, units_of, unseen_split
from diptych.evaluation.subject import PIXELS, TRAINED, UNTRAINED, Subject
from diptych.evaluation.transformations import MOST_IMAGES as MOST_PROBED
from diptych.evaluation.transformations import probe_layers
from diptych.images.order import Order
from diptych.runtime.device import choose_device
from diptych.views.batches import ViewBatches, evaluation_views

MOST_IMAGES: Final = 2048
"""Of which the geometry is measured: the effective rank depends on how many there are, so it is
compared over as many images only."""


_BATCH: Final = 256  # images


def measure_geometry(subject: Subject) -> dict[str, Any]:
    """Geometry of every layer, trained and untrained; see ``evaluation.geometry``."""
    split = unseen_split(subject.collection, subject.seen, most=MOST_IMAGES)
    images = split.test
    batches = ViewBatches(
        images, Order(0, len(images), len(images)), subject.config.views, subject.executor
    )
    found = {
        name: {layer: one.as_dict() for layer, one in layer_geometry(layers, batches).items()}
        for name, layers in _networks(subject).items()
    }
    return {"geometry": found | {"images": len(images), "split": split.as_dict()}}


def measure_transformations(subject: Subject) -> dict[str, Any]:
    """What each layer tells of how an image was changed, trained and untrained, and pixels."""
    split = unseen_split(subject.collection, subject.seen, most=MOST_PROBED)
    images, config = split.test, subject.config
    groups, _, remarks = groups_of_parts(images, None, config.images.group_by)
    how = "Classifiers are fitted on two thirds of them and measured on the rest."
    found = {
        name: probe_layers(
            layers,
            images,
            config.views,
            subject.executor,
            groups=units_of(images, groups),
            pixels=name == UNTRAINED,
        )
        for name, layers in _networks(subject).items()
    }
    layers = {name: one.pop("layers") for name, one in found.items()}
    pixels = layers[UNTRAINED].pop(PIXELS)
    described = {"split": replace(split, remarks=(how, *remarks)).as_dict()}
    return {"transformations": layers | {PIXELS: pixels} | found[TRAINED] | described}


def layer_geometry(layers: Layers, batches: ViewBatches) -> dict[str, Geometry]:
    """Geometry of each layer over all images of the batches.

    Features are of the images as they are evaluated; the alignment is of two views of each as in
    training, of the first epoch.
    """
    centred: dict[str, list[Tensor]] = {name: [] for name in layers.names}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers.names}
    for start in range(0, len(batches.images), _BATCH):
        indices = np.arange(start, min(start + _BATCH, len(batches.images)))
        as_evaluated = evaluation_views(
            batches.images, indices, "center", batches.config, batches.executor
        )
        plain = layers.in_evaluation(as_evaluated[0])
        first, second = map(layers.in_evaluation, batches.of(indices, epoch=0)[:2])
        for name in layers.names:
            centred[name].append(plain[name])
            pairs[name].append((first[name], second[name]))
    return {name: geometry(torch.cat(centred[name]), _joined(pairs[name])) for name in layers.names}


def _networks(subject: Subject) -> Mapping[str, Layers]:
    made = {TRAINED: trained_layers(subject.folder), UNTRAINED: untrained_layers(subject.folder)}
    return {name: layers.to(choose_device("auto")) for name, layers in made.items()}


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*pairs, strict=True)
    return torch.cat(first), torch.cat(second)
