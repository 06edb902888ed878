"""Features of an intermediate layer, against maps taken by plain calls; and damaged files."""

import copy
import json
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import diptych
from diptych.config.data import ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import RunFolderError
from diptych.evaluation.feature_store import FeatureStore
from diptych.evaluation.features import encode, layered_network
from diptych.images.open import from_array, open_images
from diptych.models.encoders import build_encoder
from diptych.models.final_features import (
    IntermediateLayer,
    Whitening,
    WithIntermediate,
    fit_blocks,
    fit_whitening,
    intermediate_layer,
)
from diptych.models.weights import save_encoder, untrained_encoder
from diptych.runtime.devices import Runtime

SIDE = 64
LAYER = IntermediateLayer("layer3", 2)
CONFIG = RunConfig(
    encoder=EncoderConfig("resnet18", stem="imagenet"), views=ViewsConfig(side_pixels=SIDE)
)


def built(name: str) -> nn.Module:
    return build_encoder(
        EncoderConfig(name, stem="imagenet"), channels=3, side_pixels=SIDE, seed=0
    ).eval()


def chosen(name: str, side: int = SIDE) -> IntermediateLayer | None:
    return intermediate_layer(built(name), torch.zeros(1, 3, side, side))


def test_it_is_the_last_stage_with_a_larger_map() -> None:
    """256 channels of 4 x 4 places: in 2 x 2 cells they are 1,024 features, in 4 x 4 too many."""
    assert chosen("resnet18") == IntermediateLayer("layer3", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet50", IntermediateLayer("layer3", 1)),
        ("tf_efficientnet_lite0", IntermediateLayer("blocks.4", 4)),
        ("timm:resnet18", IntermediateLayer("layer3", 2)),
        ("convnext_atto", IntermediateLayer("stages.2", 2)),
        ("timm:vit_tiny_patch16_224", None),
        ("vgg11", None),
    ],
)
def test_of_other_networks(name: str, layer: IntermediateLayer | None) -> None:
    assert chosen(name) == layer


def test_looking_for_it_changes_nothing() -> None:
    network = built("resnet18").train()
    before = copy.deepcopy(network.state_dict())
    intermediate_layer(network, torch.zeros(1, 3, SIDE, SIDE))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def by_hand(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features of torchvision's ResNet and the means of the four quarters of its third map."""
    parts = dict(network.named_children())
    maps = images
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        maps = parts[name](maps)
    half = maps.shape[2] // 2
    quarters = [maps[:, :, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    cells = torch.stack([one.mean(dim=(2, 3)) for one in quarters], dim=2)
    return parts["layer4"](maps).mean(dim=(2, 3)), cells.flatten(1)


@torch.no_grad()
def test_both_stand_in_one_vector() -> None:
    network, images = built("resnet18"), torch.randn(3, 3, SIDE, SIDE)
    last, cells = by_hand(network, images)
    found = WithIntermediate(network, LAYER)(images)
    torch.testing.assert_close(found, torch.cat([last, cells], dim=1))


def test_blocks_are_whitened_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(1, 50, 9, generator=generator) + torch.randn(4, 50, 9, generator=generator)
    views[:, :, 5:] *= 30.0  # another layer's numbers
    found = fit_blocks(views, (5, 4))
    first, second = found(views).split((5, 4), dim=2)
    torch.testing.assert_close(first, fit_whitening(views[:, :, :5])(views[:, :, :5]))
    alone = fit_whitening(views[:, :, 5:])(views[:, :, 5:])
    ratio = second / alone
    torch.testing.assert_close(ratio, ratio[0, 0, 0].expand_as(ratio), rtol=1e-3, atol=1e-3)
    distances = [float(torch.cdist(one[0], one[0]).square().mean()) for one in (first, second)]
    assert distances[0] == pytest.approx(distances[1], rel=0.1)
    torch.testing.assert_close(found.of_first(5)(views[:, :, :5]), first)


def test_a_block_that_never_varies() -> None:
    views = torch.randn(4, 20, 6)
    views[:, :, 3:] = 1.0
    assert torch.isfinite(fit_blocks(views, (3, 3))(views)).all()


def encoder_file(path: Path, layer: IntermediateLayer | None = LAYER) -> Path:
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(size, size, generator=generator) for size in (512, 1024)]
    matrix = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    whitening = Whitening(torch.randn(1536, generator=generator), matrix)
    save_encoder(path, untrained_encoder(CONFIG), CONFIG, whitening=whitening, layer=layer)
    return path


@torch.no_grad()
def test_a_saved_encoder_gives_both_whitened(tmp_path: Path) -> None:
    loaded = diptych.load_encoder(encoder_file(tmp_path / "e.safetensors"))
    images = torch.randn(2, 3, SIDE, SIDE)
    last, cells = by_hand(loaded.network, images)
    assert loaded.whitening is not None
    wanted = (torch.cat([last, cells], dim=1) - loaded.whitening.mean) @ loaded.whitening.weight
    torch.testing.assert_close(loaded(images), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(loaded.network(images), last)


def test_kept_features_are_those_of_this_layer(tmp_path: Path, class_folder: Path) -> None:
    """Two encoders with the same weights and other layers must not read each other's features."""
    network = untrained_encoder(CONFIG)
    config = replace(CONFIG, images=replace(CONFIG.images, path=str(class_folder)))
    layers = (None, LAYER, IntermediateLayer("layer2", 2), IntermediateLayer("layer3", 1))
    with Runtime(threads=1) as runtime:
        shown = open_images(config.images, runtime.executor).train
        store, lengths = FeatureStore(tmp_path / "features", runtime), []
        for number, layer in enumerate(layers):
            file = tmp_path / f"{number}.safetensors"
            save_encoder(file, network, config, layer=layer)
            encoder = diptych.load_encoder(file)
            found = store.features(encoder, shown, config.images, config.views)
            assert torch.equal(found, store.features(encoder, shown, config.images, config.views))
            lengths.append(found.shape[1])
    assert lengths == [512, 512 + 1024, 512 + 512, 512 + 256]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"name": "layer9", "cells": 2}',
        '{"name": 3, "cells": 2}',
        '{"name": "layer3", "cells": 1000000}',
        '{"name": "layer3", "cells": true}',
        '{"name": "layer3", "cells": 2, "more": 1}',
        '{"name": "fc", "cells": 2}',
        '{"name": "layer2", "cells": 2}',
        "[" * 100_000,
    ],
)
def test_a_layer_that_does_not_fit_is_refused(text: str, tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "e.safetensors")
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert json.loads(header["intermediate_layer"]) == {"name": "layer3", "cells": 2}
    save_file(tensors, file, metadata=header | {"intermediate_layer": text})
    with pytest.raises(RunFolderError, match="does not fit the config in its own header"):
        diptych.load_encoder(file)


@torch.no_grad()
def test_encoding_leaves_every_part_in_its_mode(executor: Executor) -> None:
    """In training mode its norms would take their statistics from what is evaluated later."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    images = from_array(pixels, None, CONFIG.images)
    network = built("resnet18")
    network.layer1.train()  # type: ignore[union-attr]
    modes = [module.training for module in network.modules()]
    before = copy.deepcopy(network.state_dict())
    encode(WithIntermediate(network, LAYER), images, CONFIG.views, executor)
    layered_network(network, None).in_evaluation(torch.randn(2, 3, SIDE, SIDE))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not WithIntermediate(built("resnet18"), LAYER).training
