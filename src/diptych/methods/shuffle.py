"""Keys encoded in other norm groups than their queries, and put back (MoCo, section 3.3).

Where groups of images share batch-norm statistics, an image's statistics are a mark by which its
query and its key find each other without looking at the image. In another order, across groups
and processes, the marks tell nothing.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from diptych.runtime.distributed import (
    gather_rows,
    gather_rows_with_gradient,
    own_rows,
    process_count,
)

SHUFFLE_STREAM: Final = 0x5348554646  # "SHUFF": keeps these draws apart from other uses of the seed


def shuffled_order(seed: int, step: int, count: int, view: int = 0) -> Tensor:
    """An order of ``count`` rows, int64: a function of seed, step and view, the same everywhere.

    No process has to tell it to the others.
    """
    key = np.array([seed, SHUFFLE_STREAM], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, view, step], dtype=np.uint64))
    return torch.from_numpy(np.random.Generator(bits).permutation(count))


def shuffle_rows(rows: Tensor, *, seed: int, step: int, view: int = 0) -> Tensor:
    """This process's part of the rows of all processes in their shuffled order; no gradient.

    Args:
        rows: (rows, ...), as many on each process.
        seed: of the run.
        step: counted from 0.
        view: each has an order of its own, or their keys would stay in one group.
    """
    order = shuffled_order(seed, step, len(rows) * process_count(), view).to(rows.device)
    return own_rows(gather_rows(rows)[order]) if process_count() > 1 else rows[order]


def restore_rows(rows: Tensor, *, seed: int, step: int, view: int = 0) -> Tensor:
    """Puts back what ``shuffle_rows`` moved; gradients flow back to where rows were encoded."""
    order = shuffled_order(seed, step, len(rows) * process_count(), view).to(rows.device)
    inverse = torch.argsort(order)
    if process_count() == 1:
        return rows[inverse]
    gather = gather_rows_with_gradient if rows.requires_grad else gather_rows
    return own_rows(gather(rows)[inverse])
