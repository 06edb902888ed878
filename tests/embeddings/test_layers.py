"""Layers of an encoder by name: what forward hooks give, averaged or whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.config.model import EncoderConfig
from diptych.embeddings.layers import EncoderLayer
from diptych.embeddings.vectors import read_vectors
from diptych.errors import ConfigError
from diptych.models.encoders import build_encoder
from embedding_runs import finish, write_run

BLANK = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError


def network(name: str) -> nn.Module:
    return build_encoder(
        EncoderConfig(name=name, stem="imagenet"), channels=3, side_pixels=32, seed=0
    ).eval()


def hooked(encoder: nn.Module, layer: str, images: Tensor) -> Tensor:
    """The oracle: what the whole network gives there."""
    found = []
    part = encoder.get_submodule(layer)
    hook = part.register_forward_hook(lambda *given: found.append(given[2]))
    with torch.no_grad():
        encoder(images)
    hook.remove()
    return found[0]


@torch.no_grad()
def test_a_map_is_averaged_or_kept(images: Tensor) -> None:
    encoder = network("resnet18")
    wanted = hooked(encoder, "layer2", images)
    mean = EncoderLayer(encoder, "layer2", maps=False, blank=BLANK)
    torch.testing.assert_close(mean(images), wanted.mean(dim=(2, 3)))
    whole = EncoderLayer(encoder, "layer2", maps=True, blank=BLANK)
    assert whole.map_shape == (128, 4, 4)
    torch.testing.assert_close(whole(images).reshape(2, 128, 4, 4), wanted)
    # What follows is not run.
    encoder.layer3 = Fails()
    torch.testing.assert_close(mean(images), wanted.mean(dim=(2, 3)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layer", "tokens"),
    [
        ("timm:test_vit", "blocks.1", 1),
        ("timm:vit_tiny_patch16_224", "patch_embed", 0),
        ("timm:test_vit", "patch_embed", 0),
        ("timm:test_vit3", "blocks.1", None),
    ],
)
def test_tokens_are_a_map_of_patches(
    name: str, layer: str, tokens: int | None, images: Tensor
) -> None:
    encoder = network(name)
    wanted = hooked(encoder, layer, images)
    if wanted.ndim == 4:  # of the second, (batch, height, width, channels)
        wanted = wanted.flatten(1, 2)
    if tokens is None:
        tokens = int(encoder.num_prefix_tokens)  # type: ignore[arg-type]
    patches = wanted[:, tokens:]
    mean = EncoderLayer(encoder, layer, maps=False, blank=BLANK)
    torch.testing.assert_close(mean(images), patches.mean(dim=1))
    whole = EncoderLayer(encoder, layer, maps=True, blank=BLANK)
    assert whole.map_shape is not None
    assert whole.map_shape[1] == whole.map_shape[2]
    torch.testing.assert_close(
        whole(images).reshape(2, *whole.map_shape).flatten(2).transpose(1, 2), patches
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", "layer3"), ("timm:test_vit", "norm"), ("vit_b_16", "")]
)
def test_the_last_map_is_found(name: str, last: str, images: Tensor) -> None:
    if name == "vit_b_16":  # torchvision's, small
        from torchvision.models import VisionTransformer

        encoder: nn.Module = VisionTransformer(32, 8, 2, 2, 16, 32).eval()
        encoder.heads = nn.Identity()
        last = "encoder"
    else:
        encoder = network(name)
    found = EncoderLayer(encoder, None, maps=True, blank=BLANK)
    assert found.layer == last
    wanted = hooked(encoder, last, images)
    dim = found(images).shape[1]
    assert dim == (wanted[:, 1:] if wanted.ndim == 3 else wanted)[0].numel()


def test_what_is_no_layer_is_refused() -> None:
    encoder = network("resnet18")
    with pytest.raises(ConfigError, match=r"no such layer\. Did you mean layer4\?.*conv1, bn1"):
        EncoderLayer(encoder, "layer44", maps=False, blank=BLANK)
    with pytest.raises(ConfigError, match="gives one vector for an image and no map"):
        EncoderLayer(encoder, "fc", maps=True, blank=BLANK)
    with pytest.raises(ConfigError, match="no layer of this encoder gives a map"):
        EncoderLayer(nn.Sequential(nn.Flatten()), None, maps=True, blank=BLANK)


def test_layers_and_maps_are_embedded(class_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    finish(run, class_folder, tmp_path / "mean.npy", layer="blocks")
    finish(run, class_folder, tmp_path / "maps.npy", maps=True)
    mean, maps = read_vectors(tmp_path / "mean.npy"), read_vectors(tmp_path / "maps.npy")
    assert mean.settings is not None
    assert maps.settings is not None
    assert (mean.settings["layer"], maps.settings["layer"]) == ("blocks", "blocks")
    shape = maps.settings["map"]
    assert "map" not in mean.settings
    averaged = maps.features.reshape(48, *shape).mean(axis=(2, 3))
    np.testing.assert_allclose(averaged, mean.features, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="of the head gives no map"):
        finish(run, class_folder, tmp_path / "x.npy", layer="g", maps=True)
    with pytest.raises(ConfigError, match="--crops center"):
        finish(run, class_folder, tmp_path / "x.npy", maps=True, crops="five")
