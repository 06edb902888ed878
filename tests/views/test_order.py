"""The order is a function of seed and step, and visits every image alike."""

import numpy as np
import pytest

from diptych.errors import ConfigError
from diptych.views.batches import Order


def test_an_epoch_visits_each_image_at_most_once() -> None:
    order = Order(seed=1, image_count=103, batch_size=10)
    assert order.steps_per_epoch == 10
    epochs = [
        np.concatenate([order.batch(step)[1] for step in range(10 * e, 10 * e + 10)])
        for e in range(3)
    ]
    for visited in epochs:
        assert len(set(visited.tolist())) == 100
    assert not np.array_equal(epochs[0], epochs[1])
    assert [order.batch(step)[0] for step in (0, 9, 10, 29)] == [0, 0, 1, 2]


def test_the_same_step_gives_the_same_batch_in_any_sequence() -> None:
    one, other = (Order(seed=5, image_count=50, batch_size=7) for _ in range(2))
    forwards = [one.batch(step)[1] for step in range(20)]
    for step in reversed(range(20)):
        assert np.array_equal(other.batch(step)[1], forwards[step])


def test_seeds_differ() -> None:
    one, other = (Order(seed=s, image_count=50, batch_size=50).batch(0)[1] for s in (1, 2))
    assert not np.array_equal(one, other)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size 30 or less"):
        Order(seed=1, image_count=30, batch_size=31)
