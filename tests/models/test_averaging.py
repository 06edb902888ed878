"""Averages of weights are exact; statistics taken anew are those of the images shown."""

import numpy as np
import pytest
import torch
from torch import nn

from diptych.config.model import NormConfig
from diptych.models.averaging import average_weights, estimate_statistics, moved_norms
from diptych.models.norms import use_norm
from diptych.models.parts import batch_norms


def test_averages_are_exact() -> None:
    """Of numbers whose averages float32 can hold, to the bit; counts are the end's."""
    rng = np.random.default_rng(0)
    start, end = rng.integers(-(2**20), 2**20, (2, 4, 5)).astype(np.float32)
    counts = torch.tensor(3), torch.tensor(8)
    states = [
        {"weight": torch.tensor(values), "num_batches_tracked": count}
        for values, count in zip((start, end), counts, strict=True)
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = average_weights(states[0], states[1], share)
        wanted = (1 - share) * start.astype(np.float64) + share * end.astype(np.float64)
        assert np.array_equal(found["weight"].numpy().astype(np.float64), wanted)
        assert found["weight"].dtype == torch.float32
        assert int(found["num_batches_tracked"]) == 8


def test_what_did_not_move_stays_to_the_bit() -> None:
    values = torch.randn(1000)
    assert torch.equal(average_weights({"a": values}, {"a": values}, 0.3)["a"], values)


@pytest.mark.parametrize("kind", ["batch", "split"])
def test_statistics_are_means_over_the_images_shown(kind: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    use_norm(network, NormConfig(kind, images_per_group=1000))  # type: ignore[arg-type]
    network.double().eval()
    first, second = batch_norms(network)
    second.running_mean = torch.full((4,), 5.0, dtype=torch.float64)
    batches = [torch.randn(6, 3, 5, 5, dtype=torch.float64) for _ in range(3)]
    estimate_statistics(network, [first], iter(batches))
    maps = [network[0](batch).detach().transpose(0, 1).flatten(1).numpy() for batch in batches]
    means = np.mean([one.mean(axis=1) for one in maps], axis=0)
    variances = np.mean([one.var(axis=1, ddof=1) for one in maps], axis=0)
    assert first.running_mean is not None
    assert first.running_var is not None
    np.testing.assert_allclose(first.running_mean.numpy(), means, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(first.running_var.numpy(), variances, rtol=1e-9)
    assert second.running_mean.tolist() == [5.0] * 4  # what is not asked for keeps its own
    assert first.momentum == second.momentum == 0.1
    assert not any(module.training for module in network.modules())


def test_norms_that_kept_their_statistics_are_not_among_those_that_moved() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    network[1](torch.randn(4, 2))
    assert moved_norms(network, start, network.state_dict()) == [network[1]]
