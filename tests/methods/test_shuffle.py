"""Shuffled keys come back to their places, with their gradients; nothing is lost on the way."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diptych.methods.contrastive import restore_rows, shuffle_rows, shuffled_order


@given(count=st.integers(1, 50), step=st.integers(0, 1000), seed=st.integers(0, 2**63 - 1))
def test_restoring_undoes_shuffling(count: int, step: int, seed: int) -> None:
    rows = torch.arange(float(2 * count)).reshape(count, 2)
    moved = shuffle_rows(rows, seed=seed, step=step)
    assert sorted(moved[:, 0].tolist()) == rows[:, 0].tolist()
    assert torch.equal(restore_rows(moved, seed=seed, step=step), rows)


def test_each_step_has_its_own_order() -> None:
    orders = [shuffled_order(5, step, 64) for step in range(20)]
    assert len({tuple(order.tolist()) for order in orders}) == 20
    assert torch.equal(shuffled_order(5, 3, 64), orders[3])
    assert not torch.equal(shuffled_order(6, 3, 64), orders[3])


def test_gradients_flow_back_to_where_rows_were_encoded() -> None:
    encoded = torch.randn(6, 3, requires_grad=True)
    weights = torch.randn(6, 3)
    torch.autograd.backward((restore_rows(encoded, seed=1, step=2) * weights).sum())
    order = shuffled_order(1, 2, 6)
    assert encoded.grad is not None
    for place, image in enumerate(order.tolist()):
        assert torch.equal(encoded.grad[place], weights[image])


def test_channels_last_views_stay_so() -> None:
    view = torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    moved = shuffle_rows(view, seed=1, step=2)
    assert moved.is_contiguous(memory_format=torch.channels_last)


def shuffled_over_processes(rank: int, count: int) -> dict[str, Tensor]:
    """Four rows of each process, moved, weighed where they are then, and put back."""
    rows = torch.arange(4.0, dtype=torch.float64)[:, None] + 4 * rank
    rows.requires_grad_()
    moved = shuffle_rows(rows.detach(), seed=9, step=1)
    encoded = moved.clone().requires_grad_()
    back = restore_rows(encoded * (rank + 1), seed=9, step=1)
    torch.autograd.backward((back * back.detach()).sum())
    assert encoded.grad is not None
    return {"moved": moved, "back": back.detach(), "gradient": encoded.grad}


def test_rows_change_processes_and_come_back() -> None:
    from processes import run_processes

    found = run_processes(shuffled_over_processes, 2)
    order = shuffled_order(9, 1, 8)
    moved = torch.cat([one["moved"] for one in found])[:, 0]
    assert moved.tolist() == order.tolist()
    # Row i was encoded by the process that holds place p of the order, which multiplied by p's
    # process number; the gradient of its square is that number times itself.
    factor = torch.empty(8, dtype=torch.float64)
    factor[order] = torch.tensor([1.0] * 4 + [2.0] * 4, dtype=torch.float64)
    expected = torch.arange(8.0, dtype=torch.float64) * factor
    back = torch.cat([one["back"] for one in found])[:, 0]
    torch.testing.assert_close(back, expected)
    gradient = torch.cat([one["gradient"] for one in found])[:, 0]
    torch.testing.assert_close(gradient, (expected * factor)[order])
