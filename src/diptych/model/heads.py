"""Projection heads g: features h to the vectors that the loss compares."""

import torch
from torch import nn

from diptych.configs import HeadConfig


def build_head(config: HeadConfig, *, features: int, seed: int) -> nn.Module:
    """Builds the MLP g(h) = W2 relu(W1 h) (SimCLR, section 2.1; MoCo v2, section 3).

    Args:
        config: widths and normalisation.
        features: length of h.
        seed: of the initial weights; the global generator is left as it was.

    Returns:
        A module from (batch, features) to (batch, config.output_features), not normalised.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = config.hidden_features
        layers: list[nn.Module] = [nn.Linear(features, hidden, bias=not config.batch_norm)]
        if config.batch_norm:
            layers.append(nn.BatchNorm1d(hidden))
        layers += [nn.ReLU(inplace=True), nn.Linear(hidden, config.output_features)]
        return nn.Sequential(*layers)
