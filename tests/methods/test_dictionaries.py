"""The queue is first in, first out; a bank's negatives never hold the query's image.

Nothing changes by being asked.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.config.files import nest, overlay
from diptych.config.method import BankConfig, DictionaryConfig, LossConfig, QueueConfig
from diptych.config.recipes import recipe_config
from diptych.methods.build import build_with_keys
from diptych.methods.contrastive import build_dictionary
from diptych.methods.dictionaries import (
    ImageBank,
    InBatch,
    KeyQueue,
)
from diptych.methods.losses import LOSSES
from diptych.methods.objective import contrast
from diptych.views.batches import Batch


def numbered(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, 2)


def batch_of(indices: list[int], step: int = 0, groups: list[int] | None = None) -> Batch:
    """A batch that says which images it has; dictionaries do not look at the views."""
    return Batch((), torch.tensor(indices), step, None if groups is None else torch.tensor(groups))


@given(size=st.integers(1, 17), batches=st.lists(st.integers(1, 40), max_size=12))
def test_the_queue_holds_the_newest_keys(size: int, batches: list[int]) -> None:
    queue, seen = KeyQueue(size, 2), 0
    for count in batches:
        queue.enqueue(numbered(seen, count))
        seen += count
        held = sorted(queue.negatives[:, 0].tolist())
        assert held == list(range(max(0, seen - size), seen))


@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_what_is_overwritten_next_is_the_oldest(size: int, batches: list[int]) -> None:
    queue, seen = KeyQueue(size, 2), 0
    for count in batches:
        queue.enqueue(numbered(seen, count))
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
        one.enqueue(numbered(100 * i, count))
    other.load_state_dict(one.state_dict())
    for i, count in enumerate(after):
        for queue in (one, other):
            queue.enqueue(numbered(-100 * i, count))
    assert torch.equal(one.keys, other.keys)
    assert one.get_extra_state().tolist() == other.get_extra_state().tolist()


@given(size=st.integers(1, 40), count=st.integers(1, 12), steps=st.integers(0, 12))
def test_the_oldest_keys_age_is_counted_in_steps(size: int, count: int, steps: int) -> None:
    queue = KeyQueue(size, 2)
    entered = []
    for step in range(steps):
        queue.enqueue(numbered(step * count, count))
        entered += [step] * count
    oldest = entered[-size:][0] if entered else steps
    assert queue.oldest_key_steps == steps - oldest
    assert queue.state_metrics() == {"oldest_key_steps": steps - oldest}


def test_comparing_changes_nothing_and_see_only_what_is_filled() -> None:
    torch.manual_seed(0)
    queue = KeyQueue(8, 4)
    queue.enqueue(torch.randn(3, 4))
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queries = torch.randn(5, 4, requires_grad=True)
    comparison = queue.compare(queries, torch.randn(5, 4), batch_of([0, 1, 2, 3, 4]))
    found = contrast(comparison, LOSSES["info_nce"], LossConfig(), temperature=0.2)
    torch.autograd.backward(found.loss)
    assert found.metrics["candidates"] == 4
    assert float(found.metrics["chance_loss"]) == pytest.approx(math.log(4))
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())


def test_keys_keep_no_graph() -> None:
    queue = KeyQueue(8, 4)
    queue.enqueue(torch.randn(3, 4, requires_grad=True) * 2)
    assert not queue.keys.requires_grad


def test_an_empty_queue_teaches_nothing() -> None:
    queries = torch.randn(5, 4, requires_grad=True)
    comparison = KeyQueue(8, 4).compare(queries, torch.randn(5, 4), batch_of([0, 1, 2, 3, 4]))
    found = contrast(comparison, LOSSES["info_nce"], LossConfig(), temperature=0.2)
    torch.autograd.backward(found.loss)
    assert float(found.loss.detach()) == 0.0
    assert found.metrics["chance_loss"] == 0.0
    assert queries.grad is not None
    assert not queries.grad.any()


def counted(excluded: torch.Tensor | None, keys: int, row: int) -> set[int]:
    """The columns that a query meets as negatives."""
    left_out = set() if excluded is None else set(excluded[row].tolist())
    return set(range(keys)) - left_out


def test_with_both_views_a_query_meets_all_views_of_other_images() -> None:
    vectors = torch.randn(6, 3)
    comparison = InBatch().compare(vectors, vectors, batch_of([7, 8, 9]))
    assert comparison.in_batch
    assert comparison.candidates == 5
    for row in range(6):
        assert counted(comparison.excluded, 6, row) == set(range(6)) - {row % 3, row % 3 + 3}
        assert torch.equal(comparison.positives[row], vectors[(row + 3) % 6])


def test_end_to_end_a_query_meets_the_keys_of_other_images() -> None:
    queries, keys = torch.randn(4, 3), torch.randn(4, 3)
    comparison = InBatch(both_views=False).compare(queries, keys, batch_of([7, 8, 9, 5]))
    assert comparison.candidates == 4
    for row in range(4):
        assert counted(comparison.excluded, 4, row) == set(range(4)) - {row}
    assert comparison.positives is keys


def test_images_of_one_group_are_no_negatives_of_each_other() -> None:
    vectors = torch.randn(8, 3)
    batch = batch_of([0, 1, 2, 3], groups=[5, 6, 5, 7])
    comparison = InBatch().compare(vectors, vectors, batch)
    assert counted(comparison.excluded, 8, 0) == {1, 3, 5, 7}
    assert counted(comparison.excluded, 8, 5) == {0, 2, 3, 4, 6, 7}
    # Two rows of four meet 4 of 8 views, two of them 6: five on average, and their own key.
    assert comparison.candidates == 6


def test_in_batch_gives_gradients_to_the_keys() -> None:
    queries, keys = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    comparison = InBatch(both_views=False).compare(queries, keys, batch_of([0, 1, 2, 3]))
    output = contrast(comparison, LOSSES["info_nce"], LossConfig(), temperature=0.5)
    torch.autograd.backward(output.loss)
    assert keys.grad is not None
    assert keys.grad.abs().sum() > 0


def full_bank(images: int, negatives: int, seed: int = 0, **options: float) -> ImageBank:
    """A bank in which the key of image i points at angle i."""
    bank = ImageBank(images, 2, negatives=negatives, seed=seed, **options)  # type: ignore[arg-type]
    angles = torch.arange(images, dtype=torch.float32)
    bank.update(torch.stack([angles.cos(), angles.sin()], dim=1), torch.arange(images))
    return bank


@given(
    images=st.integers(2, 30),
    negatives=st.integers(1, 40),
    step=st.integers(0, 1000),
    data=st.data(),
)
def test_the_bank_never_draws_the_own_image(
    images: int, negatives: int, step: int, data: st.DataObject
) -> None:
    bank = full_bank(images, negatives)
    own = data.draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=8, unique=True))
    queries = torch.randn(len(own), 2)
    comparison = bank.compare(queries, queries, batch_of(own, step))
    drawn = bank.draw(step).tolist()
    assert len(set(drawn)) == len(drawn)
    for row, image in enumerate(own):
        met = [drawn[column] for column in counted(comparison.excluded, len(drawn), row)]
        assert image not in met
        assert len(met) == min(negatives, images - 1)
        assert torch.equal(comparison.positives[row], bank.keys[image])
    assert comparison.candidates == 1 + min(negatives, images - 1)


@pytest.mark.slow
def test_the_bank_draws_every_other_image_equally_often() -> None:
    bank, met = full_bank(12, 4, seed=3), torch.zeros(12)
    query = torch.randn(1, 2)
    for step in range(3000):
        comparison = bank.compare(query, query, batch_of([5], step))
        for column in counted(comparison.excluded, len(comparison.negatives), 0):
            met[bank.draw(step)[column]] += 1
    expected = 3000 * 4 / 11
    others = torch.cat([met[:5], met[6:]])
    assert met[5] == 0
    assert float(((others - expected) ** 2 / expected).sum()) < 29.6  # chi-squared, 10, p = 0.001
    assert torch.equal(bank.draw(7), full_bank(12, 4, seed=3).draw(7))
    assert not torch.equal(bank.draw(7), bank.draw(8))


def test_an_image_moves_its_own_key_when_it_is_seen_again() -> None:
    bank = full_bank(4, 2, momentum=0.75)
    before = bank.keys.clone()
    new = torch.nn.functional.normalize(torch.randn(2, 2), dim=1)
    bank.update(new, torch.tensor([3, 1]))
    for row, image in enumerate((3, 1)):
        mixed = 0.75 * before[image] + 0.25 * new[row]
        torch.testing.assert_close(bank.keys[image], mixed / mixed.norm())
    assert torch.equal(bank.keys[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("kind", [kind for kind, one in LOSSES.items() if one.one_positive])
def test_of_an_image_without_a_key_nothing_is_learned(kind: str) -> None:
    bank = ImageBank(10, 2, negatives=3)
    fresh = torch.tensor([[1.0, 0.2], [-0.5, 1.0]])
    assert not bank.needs_keys
    assert bank.compare(fresh, fresh, batch_of([4, 5])).candidates == 1
    bank.update(fresh, torch.tensor([4, 5]))
    assert bank.state_metrics() == {"images_in_bank": 2}
    # The first is farther from its own key than from the other: every loss has something to do.
    queries = torch.stack([fresh[1], -fresh[0]]).requires_grad_()
    second = bank.compare(queries, fresh, batch_of([4, 6], step=1))
    unit = fresh[0] / fresh[0].norm()
    torch.testing.assert_close(second.positives[0], unit)
    assert not second.positives[1].any()
    settings = LossConfig(kind=kind)
    torch.autograd.backward(contrast(second, LOSSES[kind], settings, temperature=0.2).loss)
    assert queries.grad is not None
    assert queries.grad[0].any()
    assert not queries.grad[1].any()
    # The share of the other one is that which it has in a batch where both have keys.
    alone = torch.tensor(queries.detach()[:1].tolist(), requires_grad=True)
    only = bank.compare(alone, fresh[:1], batch_of([4], step=1))
    torch.autograd.backward(contrast(only, LOSSES[kind], settings, temperature=0.2).loss)
    assert alone.grad is not None
    torch.testing.assert_close(queries.grad[:1], alone.grad / 2)


def test_a_temperature_is_not_learned_from_images_without_a_key() -> None:
    config = overlay(
        recipe_config("memory_bank", "tiny"),
        nest({"method.loss.learn_temperature": True, "encoder.width": 4}),
        "the test",
    )
    method = build_with_keys(config, image_count=8)
    assert method.log_temperature is not None
    views = (torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
    learned = list[bool]()
    for step in range(3):
        batch = Batch(views, torch.arange(4) + 4 * (step % 2), step)
        output = method(batch)
        method.log_temperature.grad = None
        if output.loss.requires_grad:
            torch.autograd.backward(output.loss)
        gradient = method.log_temperature.grad
        assert gradient is not None  # which processes average, whatever they know
        learned.append(bool(gradient.any()))
        method.after_step(output)
    assert learned == [False, False, True]


def test_a_saved_bank_goes_on_where_it_was() -> None:
    one, other = ImageBank(9, 2, negatives=3), ImageBank(9, 2, negatives=3)
    one.update(torch.randn(4, 2), torch.tensor([8, 1, 5, 2]))
    other.load_state_dict(one.state_dict())
    for bank in (one, other):
        bank.update(torch.ones(3, 2), torch.tensor([1, 0, 8]))
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.draw(5), other.draw(5))
    assert one.count == other.count == 5


def test_half_precision_halves_the_banks_memory() -> None:
    whole, half = (
        build_dictionary(
            DictionaryConfig("bank", bank=BankConfig(precision=precision)),
            dim=8,
            image_count=100,
            unit_length=True,
            seed=0,
        )
        for precision in ("fp32", "fp16")
    )
    assert isinstance(whole, ImageBank)
    assert isinstance(half, ImageBank)
    assert whole.keys.nbytes == 2 * half.keys.nbytes == 100 * 8 * 4
    half.update(torch.ones(2, 8), torch.tensor([3, 4]))
    queries = torch.randn(2, 8)
    assert half.compare(queries, queries, batch_of([3, 4])).positives.dtype == torch.float32


def test_the_config_decides_the_kind() -> None:
    def built(config: DictionaryConfig) -> object:
        return build_dictionary(config, dim=3, image_count=20, unit_length=True, seed=0)

    assert isinstance(built(DictionaryConfig("batch")), InBatch)
    queue = built(DictionaryConfig("queue", queue=QueueConfig(size=10)))
    assert isinstance(queue, KeyQueue)
    assert queue.keys.shape == (10, 3)
    bank = built(DictionaryConfig("bank"))
    assert isinstance(bank, ImageBank)
    assert bank.keys.shape == (20, 3)


def test_the_full_size_is_what_a_query_can_meet() -> None:
    def size(config: DictionaryConfig) -> int | None:
        return build_dictionary(config, dim=3, image_count=100, unit_length=True, seed=0).full_size

    assert size(DictionaryConfig("batch")) is None
    assert size(DictionaryConfig("queue", queue=QueueConfig(size=64))) == 64
    assert size(DictionaryConfig("bank", bank=BankConfig(negatives=64))) == 64
    assert size(DictionaryConfig("bank", bank=BankConfig(negatives=4096))) == 99
    assert size(DictionaryConfig("bank", bank=BankConfig(negatives=64, placement="sharded"))) == 64
