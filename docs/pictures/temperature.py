"""Which negatives push a query, at several temperatures: gradients of the library's own loss."""

from typing import Any, Final

import numpy as np
import torch
from _style import BLUE, GREEN, RED, panels

from diptych import info_nce

COSINES: Final = torch.linspace(-0.2, 0.9, 12)
TEMPERATURES: Final = {0.07: RED, 0.2: BLUE, 1.0: GREEN}


def draw() -> Any:
    """Left: share of the push by each negative. Right: the loss of a query with one near miss."""
    figure, (shares, losses) = panels(2, height=2.9)
    for (temperature, color), shift in zip(TEMPERATURES.items(), (-1, 0, 1), strict=True):
        pushed = _push(temperature)
        shares.bar(
            COSINES + 0.025 * shift, pushed, width=0.024, color=color, label=f"T = {temperature}"
        )
        margins = np.linspace(-0.5, 0.9, 60)
        losses.plot(margins, [_loss(float(m), temperature) for m in margins], color=color)
    shares.set(
        title="who pushes the query away", xlabel="cosine of query and negative", ylabel="share"
    )
    shares.legend(frameon=False)
    losses.set(
        title="loss, one positive and one negative",
        xlabel="cosine with the positive less that with the negative",
        ylabel="nats",
        ylim=(0, 4),
    )
    return figure


def _push(temperature: float) -> Any:
    """Length of the gradient that reaches each negative, as a share of all."""
    query, positive = _at(torch.ones(1)), _at(torch.tensor([0.8]))
    negatives = _at(COSINES).requires_grad_()
    loss = info_nce(query, positive, negatives, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, negatives)
    lengths = gradient.norm(dim=1)
    return (lengths / lengths.sum()).numpy()


def _loss(margin: float, temperature: float) -> float:
    query = _at(torch.ones(1))
    positive, negative = _at(torch.tensor([margin])), _at(torch.zeros(1))
    return float(info_nce(query, positive, negative, temperature=temperature))


def _at(cosines: torch.Tensor) -> torch.Tensor:
    """Unit vectors with these cosines to the first axis."""
    return torch.stack([cosines, (1 - cosines.square()).clamp(min=0).sqrt()], dim=1)
