"""Where features can be taken from a network: h behind the encoder, g(h) behind the head, between.

The head is made to answer the pretext task, and may throw away what that task does not need
(SimCLR, section 4.2). To see what, features of every layer are taken in one pass.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from diptych.evaluation.features import require_finite
from diptych.models.heads import cut
from diptych.models.weights import load_encoder, load_head, untrained_encoder, untrained_head
from diptych.runs.folder import RunFolder

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
    return layers_of(encoder, load_head(folder) if encoder.config.has_projection_head else None)


def untrained_layers(folder: RunFolder) -> Layers:
    """Those of a run as it began."""
    config = load_encoder(folder).config
    encoder = untrained_encoder(config)
    head = untrained_head(config, encoder) if config.has_projection_head else None
    return layers_of(encoder, head)
