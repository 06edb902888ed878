"""Sixty points on a circle, trained with negatives and without: the second collapses."""

from typing import Any, Final

import torch
from _style import BLUE, GRAY, RED, panels
from torch import Tensor, nn
from torch.nn import functional

from diptych import nt_xent
from diptych.evaluation.geometry import effective_rank

IMAGES: Final = 60
STEPS: Final = 300
DIM: Final = 12


def draw() -> Any:
    """Two circles, and the effective rank of the vectors over training."""
    figure, axes = panels(3, height=2.8, widths=(2, 2, 3))
    images = torch.randn(IMAGES, DIM, generator=torch.Generator().manual_seed(1))
    for axis, title, with_negatives, color in (
        (axes[0], "no negatives", False, RED),
        (axes[1], "NT-Xent", True, BLUE),
    ):
        vectors, ranks = _train(images, with_negatives=with_negatives)
        circle = torch.linspace(0, 2 * torch.pi, 200)
        axis.plot(circle.cos(), circle.sin(), color=GRAY, lw=0.7)
        axis.scatter(*vectors[:, :2].T.numpy(), s=14, color=color, alpha=0.8, lw=0)
        axis.set(title=title, aspect="equal", xticks=[], yticks=[], xlim=(-1.2, 1.2))
        axis.spines[:].set_visible(False)
        axes[2].plot(ranks, color=color, label=title)
    axes[2].set(title="effective rank of the vectors", xlabel="step", ylim=(0.9, 2.1))
    axes[2].legend(frameon=False)
    return figure


def _train(images: Tensor, *, with_negatives: bool) -> tuple[Tensor, list[float]]:
    """Vectors of the images after training, and their effective rank after each step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    ranks = []
    for _ in range(STEPS):
        noisy = [images + 0.5 * torch.randn_like(images) for _ in range(2)]
        first, second = (functional.normalize(network(view), dim=1) for view in noisy)
        if with_negatives:
            loss = nt_xent(first, second, temperature=0.2)
        else:
            loss = 1 - (first * second).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            vectors = functional.normalize(network(images), dim=1)
        ranks.append(effective_rank(vectors))
    return vectors, ranks
