"""Projection heads g: features h to the vectors that the loss compares; and the predictor."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from diptych.config.model import HeadConfig
from diptych.errors import ConfigError


def build_head(config: HeadConfig, *, features: int, seed: int) -> nn.Module:
    """Builds the projection head g.

    No layers leave h as it is, one is linear (MoCo v1, InstDisc), two are W2 relu(W1 h) (SimCLR,
    section 2.1; MoCo v2), three are SimCLR v2's (section 2). A norm follows each hidden layer or
    none, and the projection or not, without scale and shift there (MoCo v3's code). A linear layer
    in front of a norm has no bias, which the norm would take away again.

    Args:
        config: layers, widths and normalisation.
        features: length of h.
        seed: of the initial weights; the global generator is left as it was.

    Returns:
        A module from (batch, features) to (batch, ``output_dim(config, features)``), not of unit
        length: ``nn.Identity`` for no layers, else a flat ``nn.Sequential`` that ``first_layers``
        can cut.
    """
    if config.layers == 0:
        return nn.Identity()
    return _mlp(config, config.layers, features, config.output_features, seed)


def build_predictor(config: HeadConfig, *, dim: int, seed: int) -> nn.Module | None:
    """Builds the MLP behind the head, on the queries' side only (MoCo v3, section 3).

    With ``output_norm``, unless ``predictor_output_norm`` says otherwise, the prediction is
    normalised too: "all layers in both MLPs have BN" (MoCo v3, section 5). Its code did so for all
    networks at first, and later for transformers only.

    Args:
        config: layers, hidden width and normalisation; what it does not say of the latter two is
            as in the head.
        dim: length of the projection, and of the prediction.
        seed: of the initial weights; the global generator is left as it was.

    Returns:
        A module from (batch, dim) to (batch, dim), or None for ``predictor_layers = 0``.
    """
    if config.predictor_layers == 0:
        return None
    hidden, norm = config.predictor_hidden_features, config.predictor_output_norm
    config = replace(
        config,
        hidden_features=config.hidden_features if hidden is None else hidden,
        output_norm=config.output_norm if norm is None else norm,
    )
    return _mlp(config, config.predictor_layers, dim, dim, seed)


def output_dim(config: HeadConfig, features: int) -> int:
    """Length of the projection of features of this length."""
    return config.output_features if config.layers > 0 else features


def first_layers(head: nn.Module, count: int) -> nn.Module:
    """The first hidden layers of a head, each with its norm and activation.

    SimCLR v2 (section 2) fine-tunes from the head's first layer, not from the encoder's end.

    Args:
        head: of ``build_head``.
        count: hidden layers to keep; 0 is the encoder's end.

    Returns:
        The head's own layers, not copies; ``nn.Identity`` for none.

    Raises:
        ConfigError: the head has fewer hidden layers.
    """
    if count == 0:
        return nn.Identity()
    ends = _hidden_ends(head)
    if not 0 < count <= len(ends):
        raise ConfigError(
            f"Wanted the first {count} hidden layers of a head that has {len(ends)}; use 0 to "
            f"{len(ends)}, or a head with more (head.layers = {count + 1} when it is trained)."
        )
    assert isinstance(head, nn.Sequential)
    return head[: ends[count - 1]]


def layers_of_head(head: nn.Module) -> list[nn.Module]:
    """The layers of a head one by one: hidden ones with norm and activation, then the projection.

    Args:
        head: of ``build_head``.

    Returns:
        The head's own layers, not copies, which one after the other are the head; none for a head
        without layers.
    """
    if isinstance(head, nn.Identity):
        return []
    ends = _hidden_ends(head)
    if not ends:
        return [head]
    assert isinstance(head, nn.Sequential)
    return [head[begin:end] for begin, end in pairwise([0, *ends, len(head)]) if begin < end]


def _hidden_ends(head: nn.Module) -> list[int]:
    layers = head if isinstance(head, nn.Sequential) else nn.Sequential()
    return [index + 1 for index, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]


def _mlp(config: HeadConfig, layers: int, features: int, output: int, seed: int) -> nn.Sequential:
    hidden = features if config.hidden_features is None else config.hidden_features
    widths = [features, *[hidden] * (layers - 1), output]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential()
        for wide, wider in pairwise(widths[:-1]):
            network.append(nn.Linear(wide, wider, bias=not config.batch_norm))
            if config.batch_norm:
                network.append(nn.BatchNorm1d(wider))
            network.append(nn.ReLU(inplace=True))
        network.append(nn.Linear(widths[-2], output, bias=not config.output_norm))
        if config.output_norm:
            network.append(nn.BatchNorm1d(output, affine=False))
        return network
