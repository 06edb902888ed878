"""What processes share: rows in the order of ranks, and gradients as if there were one process."""

import pytest
import torch
from torch import Tensor

from diptych.runtime.distributed import (
    gather_rows,
    gather_rows_with_gradient,
    own_rows,
    process_count,
    process_rank,
    sum_over_processes,
)
from processes import Results, run_processes

ROWS = 3


def all_rows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count * ROWS, 2, 4, generator=generator, dtype=torch.float64)


def loss_of_process(rank: int, rows: Tensor) -> Tensor:
    """Every row meets every other; each process weighs them differently."""
    flat = rows.flatten(1)
    weights = torch.arange(len(rows), dtype=torch.float64) + 1 + 10 * rank
    return (weights[:, None] * torch.exp(flat @ flat.T / 10)).sum()


def loss_of_sum(rank: int, total: Tensor) -> Tensor:
    return (rank + 1) * (total**3).sum()


def gathered(rank: int, count: int) -> Results:
    """Runs in each process."""
    whole = all_rows(count)
    results: Results = {
        "rank": torch.tensor(process_rank()),
        "count": torch.tensor(process_count()),
    }
    share = whole[rank * ROWS : (rank + 1) * ROWS]
    results["own"] = own_rows(whole)
    results["plain"] = gather_rows(share)
    results["numbers"] = gather_rows(torch.arange(2) + 10 * rank)
    results["turned"] = gather_rows(share.transpose(1, 2))  # not contiguous
    tracked = share.clone().requires_grad_()
    results["tracks"] = torch.tensor(gather_rows(tracked).requires_grad)

    rows = gather_rows_with_gradient(tracked)
    results["rows"] = rows.detach()
    (results["gradient"],) = torch.autograd.grad(loss_of_process(rank, rows), tracked)

    summand = share[0].clone().requires_grad_()
    total = sum_over_processes(summand)
    results["total"] = total.detach()
    (results["summand_gradient"],) = torch.autograd.grad(loss_of_sum(rank, total), summand)
    results["summand"] = summand.detach()  # the reduction in place must not reach it

    expanded = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = sum_over_processes(expanded).sum()  # its gradient is expanded: no memory of its own
    (results["expanded_gradient"],) = torch.autograd.grad(loss, expanded)
    return results


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_get_what_one_process_would(count: int) -> None:
    results = run_processes(gathered, count)
    whole = all_rows(count).requires_grad_()
    losses = torch.stack([loss_of_process(rank, whole) for rank in range(count)])
    (gradient,) = torch.autograd.grad(losses.sum(), whole)

    summands = whole.detach()[::ROWS].clone().requires_grad_()
    total = summands.sum(dim=0)
    loss = torch.stack([loss_of_sum(rank, total) for rank in range(count)]).sum()
    (summand_gradient,) = torch.autograd.grad(loss, summands)

    for rank, result in enumerate(results):
        assert [result["rank"].item(), result["count"].item()] == [rank, count]
        own = slice(rank * ROWS, (rank + 1) * ROWS)
        assert torch.equal(result["own"], whole[own])
        assert torch.equal(result["plain"], whole)
        assert torch.equal(result["turned"], whole.transpose(1, 2))
        assert torch.equal(result["rows"], whole)
        assert result["numbers"].tolist() == [10 * r + i for r in range(count) for i in range(2)]
        assert not result["tracks"]
        assert torch.equal(result["summand"], summands[rank])
        assert torch.equal(result["expanded_gradient"], torch.full((2,), count).double())
        for name, wanted in [
            ("gradient", gradient[own]),
            ("total", total),
            ("summand_gradient", summand_gradient[rank]),
        ]:
            torch.testing.assert_close(result[name], wanted, rtol=1e-12, atol=1e-12)


def test_one_process_needs_no_group() -> None:
    assert (process_count(), process_rank()) == (1, 0)
    rows = torch.randn(4, 2, requires_grad=True)
    assert torch.equal(gather_rows(rows), rows)
    assert not gather_rows(rows).requires_grad
    assert torch.equal(own_rows(rows), rows)
    loss = (2 * gather_rows_with_gradient(rows) + 3 * sum_over_processes(rows)).sum()
    (gradient,) = torch.autograd.grad(loss, rows)
    assert torch.equal(gradient, torch.full((4, 2), 5.0))


def test_rows_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.runtime.distributed.process_count", lambda: 4)
    with pytest.raises(ValueError, match="6 rows are not as many on each of 4 processes"):
        own_rows(torch.zeros(6, 2))
