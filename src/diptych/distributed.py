"""What the processes of one run share: rank, rows gathered with and without gradient, sums.

Without an initialised process group there is one process, and every function gives the answer
for one. Gradients are those of the sum of all processes' losses: whoever wants the gradient of
the mean, as `DistributedDataParallel` does, divides by `process_count()`.

The functions that talk are collective: every process calls them, in the same order.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def process_count() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if _initialised() else 1


def process_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _initialised() else 0


@torch.no_grad()
def gather_rows(rows: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "all_rows ..."]:
    """The rows of all processes, in the order of their ranks, without gradient.

    Args:
        rows: as many on each process, of the same shape and type.

    Returns:
        Processes x rows of them; with one process the rows themselves, detached.
    """
    if process_count() == 1:
        return rows.detach()
    rows = rows.contiguous()
    gathered = [torch.empty_like(rows) for _ in range(process_count())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


def gather_rows_with_gradient(rows: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "all_rows ..."]:
    """The rows of all processes, through which gradients return to where the rows came from.

    A row is used in the loss of every process, so its gradient is the sum of all of theirs.

    Args:
        rows: as many on each process, of the same shape and type.

    Returns:
        Processes x rows of them; with one process the rows themselves.
    """
    if process_count() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def sum_over_processes(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The elementwise sum of a tensor of every process, with gradient.

    Each process's loss sees the sum, so the gradient of a summand is the sum of their gradients.

    Args:
        tensor: of the same shape and type on each process.

    Returns:
        The sum, the same on all processes; with one process the tensor itself.
    """
    if process_count() == 1:
        return tensor
    summed: Tensor = _Sum.apply(tensor)
    return summed


def own_rows(rows: Shaped[Tensor, "all_rows ..."]) -> Shaped[Tensor, "rows ..."]:
    """This process's share of rows that `gather_rows` has put together, as a view.

    Raises:
        ValueError: the rows do not divide by the number of processes.
    """
    if len(rows) % process_count():
        raise ValueError(f"{len(rows)} rows are not as many on each of {process_count()} processes")
    share = len(rows) // process_count()
    return rows.narrow(0, process_rank() * share, share)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


class _GatherRows(torch.autograd.Function):
    """Forward: all-gather. Backward: the sum over processes, of which each keeps its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return own_rows(sum_over_processes(gradients[0]))


class _Sum(torch.autograd.Function):
    """Forward: all-reduce. Backward: the same of the gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        # The reduction works in place; a gradient that was expanded has no memory of its own.
        summed = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])
