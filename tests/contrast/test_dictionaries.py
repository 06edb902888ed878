"""The queue is first in, first out for any sizes; look-ups change nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.configs import DictionaryConfig
from diptych.contrast.dictionaries import InBatch, KeyQueue, build_dictionary


def numbered(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, 2)


@given(size=st.integers(1, 17), batches=st.lists(st.integers(1, 40), max_size=12))
def test_the_queue_holds_the_newest_keys(size: int, batches: list[int]) -> None:
    queue, seen = KeyQueue(size, 2), 0
    for count in batches:
        queue.remember(numbered(seen, count))
        seen += count
        held = sorted(queue.keys[: queue.filled, 0].tolist())
        assert held == list(range(max(0, seen - size), seen))


@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_what_is_overwritten_next_is_the_oldest(size: int, batches: list[int]) -> None:
    queue, seen = KeyQueue(size, 2), 0
    for count in batches:
        queue.remember(numbered(seen, count))
        seen += count
    if queue.filled == size:
        assert queue.keys[queue.next_row, 0] == seen - size


@given(
    size=st.integers(1, 9),
    before=st.lists(st.integers(1, 12), max_size=5),
    after=st.lists(st.integers(1, 12), max_size=5),
)
def test_a_saved_queue_goes_on_where_it_was(size: int, before: list[int], after: list[int]) -> None:
    one, other = KeyQueue(size, 2), KeyQueue(size, 2)
    for i, count in enumerate(before):
        one.remember(numbered(100 * i, count))
    other.load_state_dict(one.state_dict())
    for i, count in enumerate(after):
        for queue in (one, other):
            queue.remember(numbered(-100 * i, count))
    assert torch.equal(one.keys, other.keys)
    assert (one.next_row, one.filled) == (other.next_row, other.filled)


def test_look_ups_change_nothing_and_see_only_what_is_filled() -> None:
    torch.manual_seed(0)
    queue = KeyQueue(8, 4)
    queue.remember(torch.randn(3, 4))
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queries = torch.randn(5, 4, requires_grad=True)
    found = queue.look_up(queries, torch.randn(5, 4), temperature=0.2)
    torch.autograd.backward(found.loss)
    assert found.candidates == 4
    assert found.chance_loss == pytest.approx(math.log(4))
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


def test_keys_keep_no_graph() -> None:
    queue = KeyQueue(8, 4)
    queue.remember(torch.randn(3, 4, requires_grad=True) * 2)
    assert not queue.keys.requires_grad


def test_an_empty_queue_teaches_nothing() -> None:
    queries = torch.randn(5, 4, requires_grad=True)
    found = KeyQueue(8, 4).look_up(queries, torch.randn(5, 4), temperature=0.2)
    torch.autograd.backward(found.loss)
    assert float(found.loss.detach()) == 0.0
    assert found.chance_loss == 0.0
    assert queries.grad is not None
    assert not queries.grad.any()


def test_in_batch_gives_gradients_to_the_keys() -> None:
    queries, keys = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    found = InBatch().look_up(queries, keys, temperature=0.5)
    torch.autograd.backward(found.loss)
    assert found.candidates == 7
    assert keys.grad is not None
    assert keys.grad.abs().sum() > 0


def test_the_config_decides_the_kind() -> None:
    assert isinstance(build_dictionary(DictionaryConfig("batch"), dim=3), InBatch)
    queue = build_dictionary(DictionaryConfig("queue", 10), dim=3)
    assert isinstance(queue, KeyQueue)
    assert queue.keys.shape == (10, 3)
