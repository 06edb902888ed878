"""A contrastive method: an encoder, a head, a twin or none, a dictionary, a temperature."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.configs import RunConfig
from diptych.contrast.dictionaries import Dictionary, LookUp, build_dictionary
from diptych.model.encoders import build_encoder, count_features
from diptych.model.heads import build_head
from diptych.model.twin import Twin


class Output(NamedTuple):
    """What one batch gave.

    Attributes:
        look_up: loss, accuracy and number of candidates.
        keys: (batch, dim), of length one, without gradient; for the dictionary.
    """

    look_up: LookUp
    keys: Tensor


class Method(nn.Module):
    """Look-up of queries in a dictionary of encoded keys.

    A call changes nothing but batch-norm statistics. After the optimizer has moved, ``follow``
    moves the twin and ``remember`` advances the dictionary, in this order.

    Attributes:
        network: encoder and head, one after the other; what the optimizer moves.
        twin: encodes the keys; None where the network itself does, with gradients.
        dictionary: what each query is compared with.
        temperature: cosines are divided by it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        dictionary: Dictionary,
        *,
        temperature: float,
        twin_momentum: float | None = None,
    ) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.add_module("encoder", encoder)
        self.network.add_module("head", head)
        # A copy, not a second initialisation: twin and original start as one network.
        self.twin = None if twin_momentum is None else Twin(self.network, twin_momentum)
        self.dictionary = dictionary
        self.temperature = temperature

    @property
    def encoder(self) -> nn.Module:
        """The part that is kept."""
        return self.network.get_submodule("encoder")

    def forward(self, first: Tensor, second: Tensor) -> Output:
        """Looks up the queries of a batch.

        Args:
            first: (batch, channels, side, side), one view of each image.
            second: the same shape, the other view of each.
        """
        if self.twin is None:  # one pass, so that both views share their batch statistics
            queries, keys = _unit(self.network(torch.cat([first, second]))).chunk(2)
        else:
            queries, keys = _unit(self.network(first)), _unit(self.twin(second))
        found = self.dictionary.look_up(queries, keys, temperature=self.temperature)
        return Output(found, keys.detach())

    def follow(self) -> None:
        """Moves the twin towards the network."""
        if self.twin is not None:
            self.twin.follow(self.network)

    def remember(self, output: Output) -> None:
        """Hands the keys of a batch to the dictionary."""
        self.dictionary.remember(output.keys)


def build_method(config: RunConfig) -> Method:
    """Builds a method with random weights that follow from the config's seed."""
    channels = config.images.channels
    encoder = build_encoder(config.encoder, channels=channels, seed=config.seed)
    features = count_features(encoder, channels=channels, side_pixels=config.views.side_pixels)
    twin = config.method.key_encoder if config.method.key_encoder.kind == "twin" else None
    return Method(
        encoder,
        build_head(config.head, features=features, seed=config.seed + 1),
        build_dictionary(config.method.dictionary, dim=config.head.output_features),
        temperature=config.method.loss.temperature,
        twin_momentum=None if twin is None else twin.momentum,
    )


def _unit(vectors: Tensor) -> Tensor:
    """Vectors scaled to length one, in at least float32."""
    return functional.normalize(vectors.float() if vectors.dtype.itemsize < 4 else vectors, dim=1)
