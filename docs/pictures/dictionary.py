"""Which keys a query meets, in each kind of dictionary: read off from what they answer."""

from typing import Any, Final

import numpy as np
import torch
from _style import BLUE, LIGHT, ORANGE, panels
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch.nn import functional

from diptych import Batch, ImageBank, InBatch, KeyQueue

IMAGES: Final = 4
DIM: Final = 16
LEFT_OUT, NEGATIVE, POSITIVE = range(3)


def draw() -> Any:
    """Queries are rows, keys are columns."""
    torch.manual_seed(0)
    figure, axes = panels(3, height=3.1, widths=(8, 9, 9))
    batch = Batch((), torch.arange(IMAGES), 0)
    views, queue, bank = _unit(2 * IMAGES), _queue(), _bank()
    queries, keys = views.chunk(2)
    both = InBatch().compare(views, views, batch)
    _matrix(axes[0], both, "keys of the batch (SimCLR)", "the 8 views of 4 images")
    _matrix(axes[1], queue.compare(queries, keys, batch), "queue (MoCo)", "own key, then the queue")
    _matrix(axes[2], bank.compare(queries, keys, batch), "memory bank", "own key, then keys drawn")
    axes[0].set_ylabel("queries")
    colors = {"positive": ORANGE, "negative": BLUE, "not compared": LIGHT}
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _matrix(axes: Any, found: Any, title: str, keys: str) -> None:
    """What each query is compared with; the positive key stands among or before the others."""
    cells = np.full((len(found.queries), len(found.negatives)), NEGATIVE)
    if found.excluded is not None:
        for row, columns in enumerate(found.excluded.numpy()):
            cells[row, columns[columns >= 0]] = LEFT_OUT
    if found.in_batch:
        positives = (found.positives @ found.negatives.T).argmax(dim=1).numpy()
        cells[np.arange(len(cells)), positives] = POSITIVE
    else:
        cells = np.hstack([np.full((len(cells), 1), POSITIVE), cells])
    axes.pcolormesh(
        cells, cmap=ListedColormap([LIGHT, BLUE, ORANGE]), vmin=0, vmax=2, edgecolors="white", lw=2
    )
    axes.set(title=title, xlabel=keys, xticks=[], yticks=[], aspect="equal")
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


def _unit(count: int) -> torch.Tensor:
    return functional.normalize(torch.randn(count, DIM), dim=1)


def _queue() -> KeyQueue:
    queue = KeyQueue(8, DIM)
    queue.enqueue(_unit(8))
    return queue


def _bank() -> ImageBank:
    """Of eleven images; four are in the batch."""
    bank = ImageBank(11, DIM, negatives=8)
    bank.update(_unit(11), torch.arange(11))
    return bank
