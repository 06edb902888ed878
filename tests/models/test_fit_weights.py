"""Weights made to fit: other channels, other grids of patches, other types, and what is refused."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from diptych.config.data import ViewsConfig
from diptych.errors import ConfigError
from diptych.models.fit_weights import Fitted, fit_weights
from foreign_networks import resnet18, vit

ALIKE = ViewsConfig(pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.25, 0.25, 0.25))
IMAGENET = ViewsConfig()


class Tiny(nn.Module):
    """A stem as a ResNet's, and a layer behind it; with a border or without."""

    def __init__(self, channels: int, *, padding: int = 0, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, padding=padding, bias=bias)
        self.bn1 = nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.bn1(self.conv1(images))).mean(dim=(2, 3)))
        return found


def tiny(channels: int, **options: Any) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tiny(channels, **options)
        nn.init.normal_(network.bn1.running_mean)  # type: ignore[arg-type]
    return network.eval()


def filled(network: nn.Module, fitted: Fitted) -> nn.Module:
    network.load_state_dict(fitted.state)
    return network.eval()


def normalised(pixels: Tensor, views: ViewsConfig) -> Tensor:
    """As views are made: three channels by their own numbers, others by the mean of them."""
    mean, std = torch.tensor(views.pixel_mean), torch.tensor(views.pixel_std)
    if pixels.shape[1] != 3:
        mean, std = mean.mean().expand(1), std.mean().expand(1)
    return (pixels - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


@pytest.mark.parametrize("channels", [1, 2, 4, 9])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("views", [ALIKE, IMAGENET], ids=["alike", "imagenet"])
def test_images_whose_channels_are_alike_give_what_they_gave(
    channels: int, bias: bool, views: ViewsConfig
) -> None:
    source = tiny(3, bias=bias)
    if channels == 4 or channels == 2:
        # Where some channels are repeated more often than others, these have one kernel.
        source.conv1.weight.data[:] = source.conv1.weight.data[:, :1]
        views = ALIKE
    fitted = fit_weights(source.state_dict(), tiny(channels, bias=bias), views, "FILE")
    ours = filled(Tiny(channels, bias=bias), fitted)
    gray = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        wanted = source(normalised(gray.expand(-1, 3, -1, -1), views))
        came = ours(normalised(gray.expand(-1, channels, -1, -1), views))
    torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-5)
    how = "summed" if channels == 1 else "repeated and rescaled"
    assert fitted.sentences[-1] == (
        f"The first convolution saw 3 channels and the images have {channels}: its kernels are "
        f"{how}."
    )


def test_a_border_of_zeros_is_the_same_where_channels_are_normalised_alike() -> None:
    source = tiny(3, padding=1)
    ours = filled(
        Tiny(1, padding=1), fit_weights(source.state_dict(), tiny(1, padding=1), ALIKE, "FILE")
    )
    gray = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        wanted = source(normalised(gray.expand(-1, 3, -1, -1), ALIKE))
        torch.testing.assert_close(ours(normalised(gray, ALIKE)), wanted)


def test_a_gray_network_takes_colour() -> None:
    source = tiny(1)
    ours = filled(Tiny(3), fit_weights(source.state_dict(), tiny(3), IMAGENET, "FILE"))
    gray = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        wanted = source(normalised(gray, IMAGENET))
        came = ours(normalised(gray.expand(-1, 3, -1, -1), IMAGENET))
    torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-5)


def test_position_embeddings_are_interpolated_as_timm_does() -> None:
    from timm.layers.pos_embed import resample_abs_pos_embed

    source = vit()
    larger = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    fitted = fit_weights(source.state_dict(), larger, IMAGENET, "FILE")
    wanted = resample_abs_pos_embed(source.pos_embed.data, [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(fitted.state["pos_embed"], wanted)
    assert "interpolated from 2 x 2 patches to 4 x 4" in fitted.sentences[-1]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(kind: torch.dtype) -> None:
    source = tiny(3)
    state = {n: t.to(kind) if t.is_floating_point() else t for n, t in source.state_dict().items()}
    fitted = fit_weights(state, tiny(3), IMAGENET, "FILE")
    for name, tensor in fitted.state.items():
        assert tensor.dtype == source.state_dict()[name].dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype))


def test_counters_may_be_missing_and_nothing_is_shared_with_the_file() -> None:
    state = tiny(3).state_dict()
    del state["bn1.num_batches_tracked"]
    state["bn1.bias"] = state["bn1.weight"]  # two names of the same memory
    fitted = fit_weights(state, tiny(3), IMAGENET, "FILE")
    fitted.state["bn1.bias"] += 1
    assert int(fitted.state["bn1.num_batches_tracked"]) == 0
    assert torch.equal(fitted.state["bn1.weight"], state["bn1.weight"])


def with_nan(state: dict[str, Any]) -> None:
    state["last.weight"] = state["last.weight"] * math.nan


def as_sparse(state: dict[str, Any]) -> None:
    state["last.weight"] = state["last.weight"].to_sparse()


def as_integers(state: dict[str, Any]) -> None:
    state["last.weight"] = state["last.weight"].to(torch.int8)


def as_meta(state: dict[str, Any]) -> None:
    state["last.weight"] = state["last.weight"].to("meta")


def as_complex(state: dict[str, Any]) -> None:
    state["last.weight"] = state["last.weight"].to(torch.complex64)


def as_text(state: dict[str, Any]) -> None:
    state["last.weight"] = "weight"


def other_grid(state: dict[str, Any]) -> None:
    state["conv1.weight"] = torch.zeros(6, 0, 3, 3)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (with_nan, r"last\.weight holds numbers that are not finite"),
        (as_sparse, r"last\.weight is sparse, quantized or empty there"),
        (as_meta, r"last\.weight is sparse, quantized or empty there"),
        (as_integers, r"last\.weight is of torch\.int8 there, torch\.float32 here"),
        (as_complex, r"last\.weight is of torch\.complex64 there"),
        (as_text, r"missing: last\.weight"),
        (other_grid, r"conv1\.weight is \(6, 0, 3, 3\) there"),
    ],
)
def test_what_cannot_be_a_weight_is_refused(break_it: Any, said: str) -> None:
    state = dict(tiny(3).state_dict())
    break_it(state)
    with pytest.raises(ConfigError, match=said):
        fit_weights(state, tiny(3), IMAGENET, "FILE")


def test_a_grid_that_is_not_square_is_refused() -> None:
    state = vit().state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 6, 192)
    larger = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    with pytest.raises(ConfigError, match=r"pos_embed is \(1, 7, 192\) there"):
        fit_weights(state, larger, IMAGENET, "FILE")


def test_a_resnet_for_gray_images_is_close_though_its_border_differs() -> None:
    source = resnet18()
    ours = resnet18()
    ours.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    ours = filled(ours, fit_weights(source.state_dict(), ours, IMAGENET, "FILE"))
    gray = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        wanted = source(normalised(gray.expand(-1, 3, -1, -1), IMAGENET))
        came = ours(normalised(gray, IMAGENET))
    assert float((came - wanted).norm() / wanted.norm()) < 0.05
