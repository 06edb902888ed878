"""Encoders: names, shapes, stems, channels, and errors that say what to do."""

import copy

import pytest
import timm
import torch
import torchvision.models
from torch import nn

from diptych.config.model import EncoderConfig
from diptych.errors import ConfigError
from diptych.models.encoders import build_encoder, count_features


@pytest.fixture(autouse=True)
def _one_generator() -> None:
    torch.manual_seed(0)


def built(
    name: str, *, channels: int = 3, side: int = 32, seed: int = 0, **more: object
) -> nn.Module:
    settings = {"name": name, "stem": "imagenet", **more}
    config = EncoderConfig(**settings)  # type: ignore[arg-type]
    return build_encoder(config, channels=channels, side_pixels=side, seed=seed)


def size(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


# --- diptych's own ----------------------------------------------------------------------------


def test_the_small_resnet_has_the_size_it_says() -> None:
    encoder = built("small_resnet", stem="small")
    assert size(encoder) == 307_360
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize("stage_blocks", [(1,), (2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_width_and_depth_are_parameters(
    channels: int, stride: int, stage_blocks: tuple[int, ...]
) -> None:
    config = EncoderConfig(width=4, stem_stride=stride, stage_blocks=stage_blocks)
    encoder = build_encoder(config, channels=channels, side_pixels=33, seed=0)
    wanted = 4 * 2 ** (len(stage_blocks) - 1)
    assert encoder(torch.randn(2, channels, 33, 33)).shape == (2, wanted)
    assert count_features(encoder, channels=channels, side_pixels=33) == wanted
    assert encoder.training


@pytest.mark.parametrize(
    ("settings", "maps"),
    [
        ({"name": "small_resnet", "stem": "small", "width": 4}, "blocks"),
        ({"name": "resnet18", "stem": "small"}, "layer4"),
        pytest.param(
            {"name": "resnet18", "stem": "small", "width_multiplier": 2},
            "layer4",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_pooling_in_cells_keeps_the_mean_of_each_quarter(
    settings: dict[str, object], maps: str
) -> None:
    whole, cells = (built(side=64, pool=pool, **settings).eval() for pool in (1, 2))  # type: ignore[arg-type]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cells.state_dict()[name]), name
    seen = list[torch.Tensor]()
    cells.get_submodule(maps).register_forward_hook(lambda *of: seen.append(of[-1]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, mean = cells(images).unflatten(1, (-1, 2, 2)), whole(images)
    half = seen[0].shape[2] // 2
    torch.testing.assert_close(found[:, :, 0, 1], seen[0][:, :, :half, half:].mean(dim=(2, 3)))
    torch.testing.assert_close(found.mean(dim=(2, 3)), mean)
    assert count_features(cells, channels=3, side_pixels=64) == 4 * mean.shape[1]


# --- torchvision's ----------------------------------------------------------------------------

TORCHVISION = {
    "resnet18": ("fc", 512),
    "regnet_x_400mf": ("fc", 400),
    "shufflenet_v2_x0_5": ("fc", 1024),
    "mobilenet_v3_small": ("classifier.3", 1024),
    "mnasnet0_5": ("classifier.1", 1280),
    "squeezenet1_1": ("classifier.1", 512),
}
ON_META = {
    "googlenet": ("fc", 1024, 32),
    "inception_v3": ("fc", 2048, 96),
    "convnext_tiny": ("classifier.2", 768, 32),
    "densenet121": ("classifier", 1024, 32),
    "efficientnet_b0": ("classifier.1", 1280, 32),
    "swin_t": ("head", 768, 32),
    "vgg11": ("classifier.6", 4096, 32),
    "vit_b_16": ("heads.head", 768, 224),
    "maxvit_t": ("classifier.5", 512, 224),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_load_without_the_classifier(name: str) -> None:
    classifier, features = TORCHVISION[name]
    ours = built(name, side=64)
    theirs = torchvision.models.get_model(name, weights=None)
    weights = theirs.state_dict()
    for left_out in (f"{classifier}.weight", f"{classifier}.bias"):
        del weights[left_out]
    ours.load_state_dict(weights, strict=True)
    taken = []
    theirs.get_submodule(classifier).register_forward_hook(
        lambda _module, inputs, _output: taken.append(inputs[0])
    )
    images = torch.randn(2, 3, 64, 64)
    theirs.eval()(images)
    found = ours.eval()(images)
    assert found.shape == (2, features)
    wanted = taken[0]
    if wanted.dim() == 4:  # SqueezeNet classifies by a convolution, a ReLU and a mean
        wanted = wanted.relu().mean(dim=(2, 3))
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", ON_META)
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvisions_larger_networks(name: str, channels: int) -> None:
    classifier, features, side = ON_META[name]
    with torch.device("meta"):
        encoder = built(name, channels=channels, side=side)
        theirs = torchvision.models.get_model(name, weights=None)
        assert count_features(encoder, channels=channels, side_pixels=side) == features
    wanted = {
        key
        for key in theirs.state_dict()
        if not key.startswith((f"{classifier}.", "aux", "AuxLogits"))
    }
    assert set(encoder.state_dict()) == wanted


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "googlenet"])
def test_no_dropout_is_left_in_front_of_the_classifier(name: str) -> None:
    with torch.device("meta"):
        encoder = built(name)
    assert not [module for module in encoder.modules() if isinstance(module, nn.Dropout)]


def test_the_small_stem_keeps_the_resolution() -> None:
    encoder = built("resnet18", channels=1, stem="small")
    assert encoder.get_submodule("conv1").weight.shape == (64, 1, 3, 3)
    shapes = []
    encoder.get_submodule("layer1").register_forward_hook(
        lambda _module, inputs, _output: shapes.append(inputs[0].shape)
    )
    encoder(torch.randn(2, 1, 32, 32))
    assert shapes == [(2, 64, 32, 32)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm:test_vit"])
@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_replace_the_first_convolution_only(name: str, channels: int) -> None:
    encoder, usual = built(name, channels=channels), built(name)
    assert encoder(torch.randn(2, channels, 32, 32)).shape == usual(torch.randn(2, 3, 32, 32)).shape
    pairs = zip(encoder.named_parameters(), usual.named_parameters(), strict=True)
    changed = [(new, old) for (_, new), (_, old) in pairs if new.shape != old.shape]
    assert len(changed) == 1
    ((new, old),) = changed
    assert (new.shape[1], old.shape[1]) == (channels, 3)
    if not name.startswith("timm"):
        assert float(new.detach().std() / old.detach().std()) == pytest.approx(1, abs=0.15)


# --- timm's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("vit_tiny_patch16_224", 192),  # made for 224 pixels
        ("resnet10t", 512),  # takes any size
        ("timm:resnet18", 512),
        ("timm:test_efficientnet.r160_in1k", 256),
    ],
)
def test_timms_networks_at_32_pixels(name: str, features: int) -> None:
    encoder = built(name, channels=1)
    assert encoder(torch.randn(2, 1, 32, 32)).shape == (2, features)


def test_timms_weights_load_without_the_classifier() -> None:
    ours = built("timm:test_vit", side=160)
    theirs = timm.create_model("test_vit", pretrained=False)
    weights = theirs.state_dict()
    assert weights.pop("head.weight").shape[0] == weights.pop("head.bias").shape[0] == 1000
    ours.load_state_dict(weights, strict=True)
    theirs.head = nn.Identity()
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(theirs.eval()(images), ours.eval()(images))


def test_the_prefix_chooses_timm() -> None:
    assert isinstance(built("resnext50_32x4d"), torchvision.models.ResNet)
    assert isinstance(built("timm:resnet18"), timm.models.ResNet)


# --- the seed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_resnet", "mobilenet_v3_small", "timm:test_vit"])
def test_weights_follow_from_the_seed_alone(name: str) -> None:
    stem = "small" if name == "small_resnet" else "imagenet"
    state = torch.get_rng_state()
    first = built(name, stem=stem, channels=2, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(5)
    again = built(name, stem=stem, channels=2, seed=3).state_dict()
    other = built(name, stem=stem, channels=2, seed=4).state_dict()
    assert all(torch.equal(again[key], value) for key, value in first.items())
    changed = [key for key, value in first.items() if not torch.equal(other[key], value)]
    assert sum(first[key].numel() for key in changed) > 0.9 * sum(v.numel() for v in first.values())


# --- frozen patches ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("vit_tiny_patch16_224", "patch_embed.proj"),
        ("vit_b_16", "conv_proj"),
    ],
)
def test_patches_are_frozen_and_nothing_else(name: str, place: str) -> None:
    device = "meta" if name == "vit_b_16" else "cpu"
    with torch.device(device):
        encoder = built(name, freeze_patches=True)
    frozen = [key for key, weight in encoder.named_parameters() if not weight.requires_grad]
    assert frozen == [f"{place}.weight", f"{place}.bias"]
    if device == "meta":
        return
    weight, bias = (encoder.get_parameter(key).detach() for key in frozen)
    bound = (6 / (3 * 16 * 16 + 192)) ** 0.5  # Xavier's, of a linear layer
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not bias.any()


# --- counting features ------------------------------------------------------------------------


def test_counting_leaves_every_part_in_its_mode() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten())
    network.double()
    network[1].eval()
    before = copy.deepcopy(network.state_dict())
    assert count_features(network, channels=2, side_pixels=8) == 3 * 6 * 6
    assert [module.training for module in network] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_network_that_gives_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a batch of one gave \(1, 4, 6, 6\)\. Pool or flatten"):
        count_features(nn.Conv2d(3, 4, 3), channels=3, side_pixels=8)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("small_resnt", "nearest are small_resnet"),
        ("resnet19", r"nearest are .*resnet18"),
        ("vit_tiny_patch16_222", r"nearest are vit_tiny_patch16_224"),
        ("timm:resnet19", r"nearest are .*timm:resnet18"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "is not known"),
        ("%", "nearest are resnet50"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        built(name)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"name": "mobilenet_v2", "width_multiplier": 2},
            "width_multiplier = 2 goes with resnet18",
        ),
        ({"name": "timm:resnet50", "width_multiplier": 2}, "got encoder.name = 'timm:resnet50'"),
        ({"name": "resnet34", "selective_kernels": True}, "goes with resnet50, resnet101"),
        ({"name": "wide_resnet50_2", "selective_kernels": True}, "Set it to false"),
        ({"name": "vit_b_16", "attention_heads": 6}, "attention_heads = 6 goes with timm's vision"),
        ({"name": "small_resnet", "attention_heads": 6}, "'small_resnet'. Leave it out"),
        ({"name": "timm:resnet18", "attention_heads": 6}, "'timm:resnet18'. Leave it out"),
        (
            {"name": "vit_tiny_patch16_224", "attention_heads": 5},
            "must divide the width of vit_tiny_patch16_224, 192; use one of 1, 2, 3, 4, 6, 8, 12,",
        ),
        ({"name": "mobilenet_v2", "stem": "small"}, "set encoder.stem = 'imagenet'"),
        ({"name": "timm:resnet18", "stem": "small"}, "set encoder.stem = 'imagenet'"),
        ({"name": "mobilenet_v2", "pool": 2}, r"pool = 2 goes with small_resnet .*pool = 1\."),
        ({"name": "resnet18", "freeze_patches": True}, "'resnet18' does not. Set it to false"),
        ({"name": "test_efficientnet", "freeze_patches": True}, "goes with vision transformers"),
    ],
)
def test_settings_of_another_network_are_refused(settings: dict[str, object], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        built(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "side", "wanted"),
    [
        ("vit_tiny_patch16_224", 24, "multiple of 16 and 32 or more; got 24"),
        ("vit_tiny_patch16_224", 16, "multiple of 16 and 32 or more; got 16"),
        ("vit_b_32", 32, "multiple of 32 and 64 or more; got 32"),
        ("inception_v3", 32, r"cannot take images of 32 x 32 pixels and 3 channels \(.*size"),
        ("maxvit_t", 32, r"cannot take images of 32 x 32 pixels .*not divisible"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(name: str, side: int, wanted: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=wanted):
        built(name, side=side)
