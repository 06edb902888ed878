"""Heads and predictors: their layers, their formula in NumPy, and the cut for fine-tuning."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.config.model import HeadConfig
from diptych.errors import ConfigError
from diptych.models.heads import build_head, build_predictor, first_layers, output_dim


@pytest.fixture(autouse=True)
def _one_generator() -> None:
    torch.manual_seed(0)


def kinds(network: nn.Module) -> str:
    letters = {nn.Linear: "L", nn.BatchNorm1d: "N", nn.ReLU: "R"}
    return "".join(letters[type(layer)] for layer in network.children())


@pytest.mark.parametrize(
    ("layers", "batch_norm", "output_norm", "wanted"),
    [
        (1, False, False, "L"),
        (1, True, False, "L"),
        (1, True, True, "LN"),
        (2, False, False, "LRL"),
        (2, True, False, "LNRL"),
        (3, False, True, "LRLRLN"),
        (3, True, True, "LNRLNRLN"),
    ],
)
def test_layers_follow_the_config(
    layers: int, batch_norm: bool, output_norm: bool, wanted: str
) -> None:
    config = HeadConfig(
        layers=layers,
        hidden_features=6,
        output_features=4,
        batch_norm=batch_norm,
        output_norm=output_norm,
    )
    head = build_head(config, features=5, seed=0)
    assert kinds(head) == wanted
    parts = list(head.children())
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    widths = [(part.in_features, part.out_features) for part in linear]
    assert widths == list(zip([5] + [6] * (layers - 1), [6] * (layers - 1) + [4], strict=True))
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(part, nn.Linear):  # a norm would take the bias away again
            assert (part.bias is None) == isinstance(after, nn.BatchNorm1d)
    if output_norm:
        assert not list(parts[-1].parameters())
    assert head(torch.randn(3, 5)).shape == (3, output_dim(config, 5)) == (3, 4)


def test_no_layers_leave_the_features() -> None:
    config = HeadConfig(layers=0, output_features=4)
    head = build_head(config, features=5, seed=0)
    features = torch.randn(3, 5)
    assert torch.equal(head(features), features)
    assert output_dim(config, 5) == 5
    assert not list(head.parameters())


def test_the_head_of_simclr_keeps_its_names() -> None:
    head = build_head(HeadConfig(), features=5, seed=0)
    assert list(head.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_hidden_layers_are_as_wide_as_the_features_unless_told() -> None:
    config = HeadConfig(layers=3, output_features=4)
    widths = [p.shape for p in build_head(config, features=7, seed=0).parameters() if p.ndim > 1]
    assert widths == [(7, 7), (7, 7), (4, 7)]
    told = build_head(HeadConfig(hidden_features=3), features=7, seed=0)
    assert [tuple(p.shape) for p in told.parameters() if p.ndim > 1] == [(3, 7), (128, 3)]


def test_three_layers_against_numpy() -> None:
    config = HeadConfig(
        layers=3, hidden_features=6, output_features=4, batch_norm=True, output_norm=True
    )
    head = build_head(config, features=5, seed=0).double()
    features = torch.randn(8, 5, dtype=torch.float64)
    weights = [part.weight.detach().numpy() for part in head if isinstance(part, nn.Linear)]  # type: ignore[attr-defined]
    values = features.numpy()
    for number, weight in enumerate(weights):
        values = values @ weight.T
        values = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0) + 1e-5)
        if number < 2:
            values = np.maximum(values, 0)
    np.testing.assert_allclose(head(features).detach().numpy(), values, atol=1e-12)


# --- the cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_first_layers_and_the_rest_are_the_head(batch_norm: bool) -> None:
    config = HeadConfig(layers=4, hidden_features=6, output_features=4, batch_norm=batch_norm)
    head = build_head(config, features=5, seed=0).eval()
    features = torch.randn(3, 5)
    block = "LNR" if batch_norm else "LR"
    assert torch.equal(first_layers(head, 0)(features), features)
    for count in (1, 2, 3):
        start = first_layers(head, count)
        assert kinds(start) == block * count
        hidden = start(features)
        assert hidden.shape == (3, 6)
        assert hidden.min() >= 0
        rest = list(head.children())[len(block) * count :]
        assert torch.equal(nn.Sequential(*rest)(hidden), head(features))
        assert next(start.parameters()) is next(head.parameters())


@pytest.mark.parametrize(("layers", "count", "has"), [(0, 1, 0), (1, 1, 0), (3, 3, 2), (3, -1, 2)])
def test_more_layers_than_there_are_is_refused(layers: int, count: int, has: int) -> None:
    head = build_head(HeadConfig(layers=layers), features=5, seed=0)
    with pytest.raises(ConfigError, match=f"the first {count} hidden .* has {has}; use 0 to {has}"):
        first_layers(head, count)


# --- the predictor ------------------------------------------------------------------------------


def test_the_predictor_of_moco_v3() -> None:
    config = HeadConfig(hidden_features=6, batch_norm=True, output_norm=True, predictor_layers=2)
    predictor = build_predictor(config, dim=4, seed=0)
    assert predictor is not None
    assert kinds(predictor) == "LNRLN"
    assert predictor[0].weight.shape == (6, 4)  # type: ignore[index]
    assert predictor(torch.randn(3, 4)).shape == (3, 4)
    assert build_predictor(HeadConfig(), dim=4, seed=0) is None


def test_weights_follow_from_the_seed_alone() -> None:
    config = HeadConfig(layers=3, predictor_layers=2)

    def weights(seed: int) -> dict[str, Tensor]:
        predictor = build_predictor(config, dim=5, seed=seed)
        assert predictor is not None
        both = nn.ModuleList([build_head(config, features=5, seed=seed), predictor])
        return both.state_dict()

    state = torch.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    again, other = weights(1), weights(2)
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert not any(torch.equal(other[key], value) for key, value in first.items())
