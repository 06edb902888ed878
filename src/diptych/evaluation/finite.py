"""Features that are no numbers: found in one place, before anything is measured of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.errors import FeaturesError


def require_finite(
    features: Tensor, *, of: str = "the encoder", names: Sequence[str] | None = None
) -> Tensor:
    """The features as they came, if all of them are finite numbers.

    Args:
        features: (images, dim).
        of: which encoder they are from, for the message.
        names: of the images, to name the first.

    Raises:
        FeaturesError: says of how many images they are not.
    """
    if bool(torch.isfinite(features.sum())):  # the sum of numbers is a number, but for overflow
        return features
    bad = ~torch.isfinite(features).flatten(1).all(dim=1)
    if not bool(bad.any()):
        return features
    first = "" if names is None else f" (such as {names[int(bad.nonzero()[0, 0])]})"
    raise FeaturesError(
        f"the features that {of} gives for {int(bad.sum()):,} of {len(bad):,} images{first} are "
        "not finite numbers"
    )
