"""An anchor: what holds the features of an encoder near those that it gave at the start.

Without labels, and without the images that the start was trained on. The start sees the same views
as the encoder; it is frozen and in evaluation mode.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.method import AnchorConfig
from diptych.methods.method import StepOutput, autocast_to
from diptych.runtime.distributed import gather_rows, gather_rows_with_gradient, process_count


class Anchor(nn.Module):
    """The encoder as it was at the start, and how far another is from it.

    Attributes:
        config: which distance, and its weight.
        start: a frozen copy, in evaluation mode whatever happens.
        features: length of what an encoder gives.
        autocast_type: encode under autocast to this type, if any.
        chunk_size: images that are encoded at once; None for all.
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: AnchorConfig,
        *,
        features: int,
        autocast_type: torch.dtype | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        self.start = copy.deepcopy(encoder).requires_grad_(False)
        self.autocast_type = autocast_type
        self.chunk_size = chunk_size
        self.train()

    def train(self, mode: bool = True) -> "Anchor":
        """Stays in evaluation mode: the features of the start must not depend on the batch."""
        return super().train(False)

    def forward(
        self, features: Float[Tensor, "views images dim"], views: Sequence[Tensor]
    ) -> Float[Tensor, ""]:
        """The distance of features of views from those of the start, a mean over views.

        Args:
            features: of the views of this process.
            views: each (images, channels, side, side).
        """
        distance = DISTANCES[self.config.kind]
        return distance(features.flatten(0, 1), self._of_start(views).flatten(0, 1))

    def added_to(
        self,
        output: StepOutput,
        features: Float[Tensor, "views images dim"],
        views: Sequence[Tensor],
    ) -> StepOutput:
        """The same output with the distance times its weight as a penalty, and as a metric."""
        with torch.autocast(features.device.type, enabled=False):
            distance = self(features, views)
        return replace(
            output,
            penalty=self.config.weight * distance,
            metrics={**output.metrics, "anchor_distance": distance.detach()},
        )

    @torch.no_grad()
    def _of_start(self, views: Sequence[Tensor]) -> Tensor:
        """(views, images, dim), in passes as large as those of the encoder."""
        found = []
        for _, same in groupby(views, key=lambda one: one.shape[-1]):
            images = torch.cat(list(same))
            size = len(images) if self.chunk_size is None else len(views) * self.chunk_size
            with autocast_to(self.autocast_type, images):
                found += [self.start(part) for part in torch.split(images, size)]
        features = torch.cat(found)
        return features.reshape(len(views), -1, features.shape[1])


def feature_distance(
    features: Float[Tensor, "views dim"], start: Float[Tensor, "views dim"]
) -> Float[Tensor, ""]:
    """Mean of 1 - cos(h, h_start), 0 to 2."""
    return (1.0 - functional.cosine_similarity(features, start.to(features.dtype))).mean()


def similarity_distance(
    features: Float[Tensor, "views dim"], start: Float[Tensor, "views dim"]
) -> Float[Tensor, ""]:
    """Mean squared difference of the cosines of all pairs of views of the batch.

    What is kept is how views lie to each other, and not where (relational distillation, Park et
    al. 2019, 1904.05068, here of cosines). Of several processes each has the rows of its own views.
    """
    ours, theirs = (
        functional.normalize(one, dim=1) for one in (features, start.to(features.dtype))
    )
    all_ours, all_theirs = ours, theirs
    if process_count() > 1:
        all_ours, all_theirs = gather_rows_with_gradient(ours), gather_rows(theirs)
    return (ours @ all_ours.T - theirs @ all_theirs.T).square().mean()


DISTANCES = {"features": feature_distance, "similarities": similarity_distance}
"""By ``AnchorConfig.kind``."""
