"""Where features can be taken from a network: h behind the encoder, g(h) behind the head, between.

The head is made to answer the pretext task, and may throw away what that task does not need
(SimCLR, section 4.2). To see what, features of every layer are taken in one pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from diptych.evaluation.features import require_finite
from diptych.evaluation.geometry import Geometry, geometry
from diptych.evaluation.split import groups_of_parts, units_of, unseen_split
from diptych.evaluation.subject import PIXELS, TRAINED, UNTRAINED, Subject
from diptych.evaluation.transformations import MOST_IMAGES as MOST_PROBED
from diptych.evaluation.transformations import probe_layers
from diptych.images.order import Order
from diptych.models.heads import cut
from diptych.models.weights import load_encoder, load_head, untrained_encoder, untrained_head
from diptych.runs.folder import RunFolder
from diptych.runtime.device import choose_device
from diptych.views.batches import ViewBatches, evaluation_views

FEATURES: Final = "h"
"""The name of what the encoder gives."""

PROJECTION: Final = "g(h)"
"""The name of what the head gives; not of unit length."""


class Layers(nn.Module):
    """A network that gives the features of each of its layers.

    Attributes:
        parts: modules that come one after the other.
        names: of what each part gives, ``h``, ``hidden 1``, ..., ``g(h)``.
    """

    def __init__(self, parts: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.names = tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (batch, channels, side, side) to (batch, dim) of each layer."""
        found, features = [], images
        for part in self.parts:
            features = part(features)
            found.append(features)
        return tuple(found)

    @torch.no_grad()
    def in_evaluation(self, images: Tensor) -> dict[str, Tensor]:
        """Features by layer, float32, on the CPU, in evaluation mode."""
        training, device = self.training, next(self.parameters()).device
        self.eval()
        found = self(images.to(device))
        self.train(training)
        return {
            name: require_finite(one.float().cpu(), of=f"layer {name}")
            for name, one in zip(self.names, found, strict=True)
        }


def layers_of(encoder: nn.Module, head: nn.Module | None) -> Layers:
    """An encoder and the head behind it, if there is one, with the features of every layer.

    Args:
        encoder: from (batch, channels, side, side) to (batch, features).
        head: of ``build_head``.
    """
    parts = [] if head is None else cut(head)
    hidden = [f"hidden {number}" for number in range(1, len(parts))]
    names = [FEATURES, *hidden, *([PROJECTION] if parts else [])]
    return Layers([encoder, *parts], names)


def trained_layers(folder: RunFolder) -> Layers:
    """Those of a run; a student has a classifier instead of a head, and so only h."""
    encoder = load_encoder(folder)
    student = encoder.config.distillation.teacher is not None
    return layers_of(encoder, None if student else load_head(folder))


def untrained_layers(folder: RunFolder) -> Layers:
    """Those of a run as it began."""
    config = load_encoder(folder).config
    encoder = untrained_encoder(config)
    if config.distillation.teacher is not None:
        return layers_of(encoder, None)
    return layers_of(encoder, untrained_head(config, encoder))


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
