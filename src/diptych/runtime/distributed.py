"""Collective operations among the processes of a run: gathers, sums and means of tensors.

Without an initialised process group there is one process, and every function gives the answer
for one. Gradients are those of the sum of all processes' losses: for the gradient of the mean, as
`DistributedDataParallel` gives, divide by `process_count()`.

Every process calls a collective function, in the same order. Where another process does not answer
they raise ``LostProcess``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from diptych.errors import LostProcess
from diptych.runtime.stopwatch import watch

BUCKET_BYTES: Final = 32 * 2**20  # sent at once: large enough to be quick, and a small copy


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
    rows = rows.contiguous()  # all_gather takes no other layout
    gathered = [torch.empty_like(rows) for _ in range(process_count())]
    with communicating():
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


def gather_views(
    vectors: Shaped[Tensor, "rows dim"], images: int
) -> Shaped[Tensor, "all_rows dim"]:
    """Vectors of several views of the images of each process, as one process would have them.

    Args:
        vectors: (views x images, dim): the first view of all images, then the second, and so on.
        images: on each process.

    Returns:
        (views x all images, dim), in the same order, the images in that of the processes' ranks.
        Gradients return to where the vectors came from, if they require any.
    """
    if process_count() == 1:
        return vectors
    by_image = vectors.reshape(-1, images, vectors.shape[1]).transpose(0, 1)
    gather = gather_rows_with_gradient if vectors.requires_grad else gather_rows
    return gather(by_image).transpose(0, 1).flatten(0, 1)


def own_view_rows(
    rows: Shaped[Tensor, "all_rows ..."], views: int
) -> Shaped[Tensor, "own_rows ..."]:
    """This process's rows of what ``gather_views`` has put together.

    Args:
        rows: (views x all images, ...).
        views: of each image.
    """
    if process_count() == 1:
        return rows
    by_image = rows.reshape(views, -1, *rows.shape[1:]).transpose(0, 1)
    return own_rows(by_image).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def average_over_processes(tensors: Sequence[Tensor]) -> None:
    """Puts the mean over all processes in the place of each tensor.

    They travel together, in buckets of one type and device, all of which are under way at once.

    Args:
        tensors: of the same shapes and types, in the same order, on each process.
    """
    if process_count() == 1:
        return
    sent = []
    with communicating():
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        # Only now: waiting within the loop above would send the buckets one after another.
        for bucket, flat, work in sent:
            assert work is not None
            work.wait()
            # A sum, divided here: gloo knows no mean.
            flat /= process_count()
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, mean in zip(bucket, parts, strict=True):
                tensor.copy_(mean.view(tensor.shape))


def largest_over_processes(*numbers: int) -> tuple[int, ...]:
    """For each number the largest that any process has."""
    if process_count() == 1:
        return numbers
    largest = torch.tensor(
        numbers
    )  # on the CPU, so over gloo: NCCL would wait for the device's work
    with communicating():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())


def send_to_first(
    rows: Shaped[Tensor, "rows dim"], sender: int, count: int
) -> Shaped[Tensor, "sent dim"] | None:
    """The rows of one process, on the first one; None elsewhere. Other processes do nothing.

    Args:
        rows: of this process; of the same type and length on each.
        sender: rank of the process that sends its rows.
        count: how many rows it has.
    """
    rank = process_rank()
    if sender == 0:
        return rows if rank == 0 else None
    with communicating():
        if rank == sender:
            dist.send(rows.contiguous(), dst=0)
        elif rank == 0:
            found = rows.new_empty(count, rows.shape[1])
            dist.recv(found, src=sender)
            return found
    return None


@contextmanager
def communicating() -> Iterator[None]:
    """Raises torch's errors as ``LostProcess``; counts the time as communication."""
    try:
        with watch("communication"):
            yield
    # All of torch's own, DistError and below it, are RuntimeErrors.
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        raise LostProcess(f"the processes cannot reach each other: {first_line}") from error


def own_slice(count: int) -> slice:
    """Which of so many rows of a whole batch are this process's.

    Raises:
        ValueError: they do not divide by the number of processes.
    """
    if count % process_count():
        raise ValueError(f"{count} rows are not as many on each of {process_count()} processes")
    share = count // process_count()
    return slice(process_rank() * share, (process_rank() + 1) * share)


def own_rows(rows: Shaped[Tensor, "all_rows ..."]) -> Shaped[Tensor, "rows ..."]:
    """This process's share of rows that `gather_rows` has put together, as a view.

    Raises:
        ValueError: the rows do not divide by the number of processes.
    """
    return rows[own_slice(len(rows))]


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in parts of one type and device and a bounded size; a large one is alone."""

    def kind(tensor: Tensor) -> tuple[str, str]:
        return str(tensor.dtype), str(tensor.device)

    # A stable sort: every process must send the same tensors in the same order.
    for _, alike in groupby(sorted(tensors, key=kind), key=kind):
        bucket, size = list[Tensor](), 0
        for tensor in alike:
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


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
        with communicating():
            dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])
