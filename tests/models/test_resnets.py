"""Wider ResNets and selective kernels: published sizes, torchvision's weights, NumPy's loop."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.models
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv2d
from torchvision.models import feature_extraction

from diptych.config.model import EncoderConfig
from diptych.models.encoders import build_encoder
from diptych.models.resnets import Convolution3x3, ResNet, SelectiveKernels


@pytest.fixture(autouse=True)
def _one_generator() -> None:
    torch.manual_seed(0)


# SimCLR, table 6, and SimCLR v2, table 1: millions of parameters, without the classifier.
PUBLISHED = [
    ("resnet50", 1, False, 24),
    ("resnet50", 2, False, 94),
    ("resnet50", 4, False, 375),
    ("resnet50", 1, True, 35),
    ("resnet50", 2, True, 140),
    ("resnet101", 1, False, 43),
    ("resnet101", 1, True, 65),
    ("resnet152", 1, False, 58),
    ("resnet152", 1, True, 89),
    ("resnet152", 3, True, 795),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "multiplier", "selective", "millions"), PUBLISHED)
def test_sizes_are_the_published_ones(
    name: str, multiplier: int, selective: bool, millions: int
) -> None:
    config = EncoderConfig(
        name=name, stem="imagenet", width_multiplier=multiplier, selective_kernels=selective
    )
    with torch.device("meta"):
        encoder = build_encoder(config, channels=3, side_pixels=64, seed=0)
        assert encoder(torch.zeros(2, 3, 64, 64)).shape == (2, 2048 * multiplier)
    assert round(sum(weight.numel() for weight in encoder.parameters()) / 1e6) == millions


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_without_a_multiplier_it_is_torchvisions(name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = nn.Identity()
    ours = ResNet(name)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 128, 128)
    for side in (32, 48, 128):
        seen = images[..., :side, :side]
        assert torch.equal(ours.eval()(seen), theirs.eval()(seen))
    # No map is as small as three places, where training sums in another order.
    assert torch.equal(ours.train()(images), theirs.train()(images))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("side", [32, 64, 96])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_on_small_maps_it_learns_as_torchvisions_does(name: str, side: int) -> None:
    theirs = torchvision.models.get_model(name, weights=None).double().train()
    theirs.fc = nn.Identity()
    ours = ResNet(name).double().train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(6, 3, side, side, dtype=torch.float64)
    for network in (ours, theirs):
        network(images).square().mean().backward()
    for (key, mine), (_, value) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert mine.grad is not None
        assert value.grad is not None
        torch.testing.assert_close(mine.grad, value.grad, rtol=1e-8, atol=1e-10, msg=key)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-10, atol=1e-12, msg=key)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 3), (5, 6), (9, 9)])
def test_a_small_map_is_convolved_as_any_other(
    size: tuple[int, int], stride: int, layout: torch.memory_format
) -> None:
    usual = nn.Conv2d(5, 256, 3, stride, padding=1, bias=False).double().to(memory_format=layout)
    ours = Convolution3x3(5, 256, stride).double().to(memory_format=layout)
    ours.load_state_dict(usual.state_dict())
    maps = torch.randn(3, 5, *size, dtype=torch.float64).to(memory_format=layout)
    inputs = [maps.clone().requires_grad_() for _ in range(2)]
    found, wanted = ours(inputs[0]), usual(inputs[1])
    weight = torch.randn_like(wanted)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, usual.weight.grad)
    assert torch.equal(ours.eval()(maps), usual.eval()(maps))


def test_lower_precision_and_compiling_leave_small_maps_to_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = Convolution3x3(8, 8)
    maps = torch.randn(3, 8, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(maps).dtype == torch.bfloat16
    assert not is_the_librarys(ours(maps))
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        assert is_the_librarys(ours(maps))
    assert is_the_librarys(ours.eval()(maps))


def test_what_only_counts_a_network_counts_the_whole_convolution() -> None:
    with FakeTensorMode():
        found = Convolution3x3(8, 8)(torch.empty(3, 8, 2, 2))
    assert is_the_librarys(found)


def is_the_librarys(convolved: Tensor) -> bool:
    return "Convolution" in type(convolved.grad_fn).__name__


def pair(features: int = 4, outer: int = 6, stride: int = 1) -> tuple[Convolution3x3, nn.Conv2d]:
    """Ours and the library's, of the same weights, in double precision."""
    usual = nn.Conv2d(features, outer, 3, stride, padding=1, bias=False).double()
    ours = Convolution3x3(features, outer, stride).double()
    ours.load_state_dict(usual.state_dict())
    return ours, usual


def dilate(convolution: nn.Conv2d) -> None:
    convolution.stride = (1, 1)
    convolution.dilation = convolution.padding = (2, 2)


def give_bias(convolution: nn.Conv2d) -> None:
    convolution.bias = nn.Parameter(torch.ones(6, dtype=torch.float64))


def surround_by_the_other_side(convolution: nn.Conv2d) -> None:
    convolution.padding_mode = "circular"
    convolution._reversed_padding_repeated_twice = [1, 1, 1, 1]


def stride_along_one_side(convolution: nn.Conv2d) -> None:
    convolution.stride = (2, 1)


@pytest.mark.parametrize(
    "change", [dilate, give_bias, surround_by_the_other_side, stride_along_one_side]
)
def test_a_convolution_that_was_changed_is_computed_as_it_is_now(
    change: Callable[[nn.Conv2d], None],
) -> None:
    both = pair(stride=2)
    for one in both:
        change(one)
    maps = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(both[0](maps), both[1](maps))


def test_small_maps_have_second_gradients_and_gradients_of_each_image() -> None:
    ours, usual = pair()
    maps = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, maps)
    assert torch.autograd.gradgradcheck(ours, maps)

    def of_image(network: nn.Module) -> Tensor:
        def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(network, weights, (image[None],))
            return found.square().sum()

        weights = {"weight": network.get_parameter("weight").detach()}
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(
            weights, maps.detach()
        )
        return gradients["weight"]

    torch.testing.assert_close(of_image(ours), of_image(usual))


def test_small_maps_may_be_changed_in_place_and_come_without_a_batch() -> None:
    ours, usual = pair()
    maps = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    for one in (ours, usual):
        one(maps).relu_().sum().backward()
    torch.testing.assert_close(ours.weight.grad, usual.weight.grad)
    torch.testing.assert_close(ours(maps[0]), usual(maps[0]))


def test_frozen_weights_of_small_maps_get_no_gradient() -> None:
    ours, usual = pair()
    for one in (ours, usual):
        one.requires_grad_(False)
    inputs = [torch.ones(2, 4, 2, 2, dtype=torch.float64).requires_grad_() for _ in range(2)]
    ours(inputs[0]).sum().backward()
    usual(inputs[1]).sum().backward()
    assert ours.weight.grad is None
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_gradients_of_small_maps_keep_their_precision_under_autocast() -> None:
    ours = Convolution3x3(64, 64)
    maps = torch.randn(8, 64, 2, 2)
    ours(maps).square().sum().backward()
    wanted = ours.weight.grad
    ours.weight.grad = None
    found = ours(maps).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found.backward()
    assert wanted is not None
    torch.testing.assert_close(ours.weight.grad, wanted, rtol=1e-5, atol=1e-4)


def test_a_norm_of_the_weight_is_computed_once_for_small_maps() -> None:
    ours = Convolution3x3(4, 6)
    nn.utils.parametrizations.spectral_norm(ours)
    usual = copy.deepcopy(ours)
    ours(torch.ones(2, 4, 2, 2))
    usual(torch.ones(2, 4, 9, 9))  # the library's
    steps = [one.get_buffer("parametrizations.weight.0._u") for one in (ours, usual)]
    assert torch.equal(*steps)


def test_layers_of_a_network_that_trains_can_be_taken_by_name() -> None:
    config = EncoderConfig(name="resnet18", stem="imagenet")
    network = build_encoder(config, channels=3, side_pixels=32, seed=0)
    layers = feature_extraction.create_feature_extractor(network, ["layer3", "layer4"])
    assert layers(torch.randn(2, 3, 32, 32))["layer4"].shape == (2, 512, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_a_seed_gives_torchvisions_weights(name: str) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = nn.Identity()
    config = EncoderConfig(name=name, stem="imagenet")
    ours = build_encoder(config, channels=3, side_pixels=64, seed=3).state_dict()
    assert list(ours) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet101", "resnet152"])
def test_every_channel_is_multiplied(name: str) -> None:
    with torch.device("meta"):
        usual = torchvision.models.get_model(name, weights=None)
        usual.fc = nn.Identity()
        wider = ResNet(name, width_multiplier=2)
    wide = wider.state_dict()
    assert list(wide) == list(usual.state_dict())
    for key, value in usual.state_dict().items():
        twice = [
            length if axis > 1 or length == 3 else 2 * length  # kernels and images' channels stay
            for axis, length in enumerate(value.shape)
        ]
        assert list(wide[key].shape) == twice, key


def test_initial_weights_have_torchvisions_spread() -> None:
    wider = ResNet("resnet18", width_multiplier=2)
    for module in wider.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert float(module.weight.detach().std()) == pytest.approx(
                (2 / fan_out) ** 0.5, rel=0.05
            )


@pytest.mark.parametrize("selective", [False, True])
def test_the_small_stem_is_one_convolution(selective: bool) -> None:
    with torch.device("meta"):
        config = EncoderConfig(
            name="resnet50", stem="small", width_multiplier=2, selective_kernels=selective
        )
        encoder = build_encoder(config, channels=1, side_pixels=32, seed=0)
        assert isinstance(encoder, ResNet)
        maps = encoder.maxpool(encoder.conv1(torch.zeros(2, 1, 32, 32)))
        assert encoder(torch.zeros(2, 1, 33, 33)).shape == (2, 4096)
    assert maps.shape == (2, 128, 32, 32)
    assert next(name for name, _ in encoder.named_parameters()) == "conv1.weight"


def test_gradients_reach_every_weight_of_selective_kernels() -> None:
    encoder = ResNet("resnet50", selective_kernels=True)
    torch.autograd.backward(encoder(torch.randn(4, 3, 32, 32)).square().sum())
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


# --- selective kernels --------------------------------------------------------------------------


def selective(features: int, stride: int = 1) -> SelectiveKernels:
    """In float64, with norms whose scale, shift and statistics are not the initial ones."""
    module = SelectiveKernels(features, stride).double()
    with torch.no_grad():
        for norm in (module.bn, module.squeeze_bn):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert value is not None
                value.copy_(torch.rand_like(value) + 0.2)
    return module.eval()


def test_weights_of_the_two_branches_sum_to_one() -> None:
    module = selective(6)
    weights = module.attention(torch.rand(3, 2, 6, 4, 4, dtype=torch.float64) * 9)
    assert weights.shape == (3, 2, 6)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3, 6, dtype=torch.float64))
    assert weights.std() > 1e-3


def test_equal_scores_take_the_mean_of_the_branches() -> None:
    module = selective(4, stride=2)
    nn.init.zeros_(module.attend.weight)
    maps = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    branches = module.bn(conv2d(maps, module.conv.weight, stride=2, padding=1)).relu()
    torch.testing.assert_close(module(maps), (branches[:, :4] + branches[:, 4:]) / 2)


def normalised(values: NDArray[np.float64], norm: nn.Module) -> NDArray[np.float64]:
    mean, variance, scale, shift = (
        getattr(norm, name).detach().numpy()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    scaled: NDArray[np.float64] = (values - mean) / np.sqrt(variance + 1e-5) * scale + shift
    return scaled


def test_one_pixel_against_a_loop() -> None:
    features = 5
    module = selective(features)
    maps = torch.randn(2, features, 1, 1, dtype=torch.float64)
    found = module(maps).detach().numpy()
    kernel = module.conv.weight.detach().numpy()[:, :, 1, 1]  # the rest meets padding only
    squeeze = module.squeeze.weight.detach().numpy()
    attend = module.attend.weight.detach().numpy()
    assert squeeze.shape == (32, features)  # 5 / 16, but 32 at least
    for image in range(2):
        pixel = maps[image, :, 0, 0].numpy()
        branches = np.maximum(normalised(kernel @ pixel, module.bn), 0)
        first, second = branches[:features], branches[features:]
        hidden = np.maximum(normalised(squeeze @ (first + second), module.squeeze_bn), 0)
        scores = attend @ hidden
        for channel in range(features):
            one, two = np.exp(scores[channel]), np.exp(scores[features + channel])
            wanted = (one * first[channel] + two * second[channel]) / (one + two)
            assert found[image, channel, 0, 0] == pytest.approx(wanted, abs=1e-12)
