"""Encoders in the formats of other libraries, read back there and by ``--weights``."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision.models
from safetensors.torch import load_file
from timm.layers.mlp import SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from diptych.cli.main import main
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig, NormConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, ExportError
from diptych.export import write
from diptych.export.detectors import encode_by_names
from diptych.export.layouts import Written
from diptych.export.source import ExportSource
from diptych.export.write import FORMATS, export_encoder
from diptych.models.final_features import IntermediateLayer, Whitening, WithIntermediate
from diptych.models.norms import use_norm
from diptych.models.start import import_encoder
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from foreign_networks import randomised

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(one) is None for one in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed",
)


def config_of(
    name: str = "resnet18", *, side: int = 32, gray: bool = False, norm: Any = "batch", **more: Any
) -> RunConfig:
    more = {"stem": "imagenet"} | more
    return RunConfig(
        encoder=EncoderConfig(name=name, **more),
        images=ImagesConfig(path="secret/place", color="gray" if gray else "rgb"),
        views=ViewsConfig(side_pixels=side, pixel_mean=(0.3, 0.4, 0.5), pixel_std=(0.2, 0.3, 0.25)),
        norm=NormConfig(kind=norm),
    )


def encoder_file(
    path: Path,
    config: RunConfig,
    *,
    whitened: bool = False,
    layer: IntermediateLayer | None = None,
) -> Path:
    """An encoder whose norms have statistics unlike their defaults."""
    network = randomised(untrained_encoder(config), seed=1)
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.2)
    whitening = None
    if whitened:
        side, channels = config.views.side_pixels, config.images.channels
        blank = torch.zeros(2, channels, side, side)
        own = size = network(blank).shape[1]
        if layer is not None:
            size = WithIntermediate(network, layer)(blank).shape[1]
        generator = torch.Generator().manual_seed(2)
        matrix = torch.randn(size, size, generator=generator) / size**0.5
        matrix[:own, own:] = matrix[own:, :own] = 0.0  # layers are whitened each by itself
        whitening = Whitening(torch.randn(size, generator=generator), matrix)
    save_encoder(path, network, config, whitening=whitening, layer=layer)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    config = config_of("small_resnet", width=4, stem="small")
    return encoder_file(tmp_path / "encoder.safetensors", config)


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    return encoder_file(tmp_path / "encoder.safetensors", config_of(norm="shuffle"))


def images_of(count: int = 3, *, channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(3))


def assert_close(came: Tensor, wanted: Tensor) -> None:
    assert came.shape == wanted.shape
    assert (came - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.slow
@torch.no_grad()
def test_torchvision_opens_its_state_dict(resnet: Path, tmp_path: Path) -> None:
    done = export_encoder(resnet, tmp_path / "out", form="torchvision")
    network = torchvision.models.resnet18()
    network.fc = torch.nn.Identity()
    network.load_state_dict(torch.load(tmp_path / "out" / "weights.pth", weights_only=True))
    images = images_of()
    assert_close(network.eval()(images), load_encoder(resnet)(images))
    assert done.difference is not None
    assert done.difference < 1e-5 * max(1, done.scale)
    assert done.features == 512


@pytest.mark.slow
@torch.no_grad()
def test_the_code_on_the_card_of_another_stem_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that is torchvision's but for its first layers, pooling, channels, whitening."""
    config = config_of(stem="small_padded", pool=2, gray=True)
    file = encoder_file(tmp_path / "encoder.safetensors", config, whitened=True)
    done = export_encoder(file, tmp_path / "out", form="torchvision")
    assert "whitening.safetensors" in done.left_out[0]
    card = (done.folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    images = images_of(channels=1)
    scope: dict[str, Any] = {"images": images}
    monkeypatch.chdir(done.folder)
    exec(code, scope)
    assert_close(scope["features"], load_encoder(file)(images))


@pytest.mark.slow
@torch.no_grad()
def test_timm_opens_the_folder(resnet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_encoder(resnet, out, form="timm", licence="cc-by-4.0")
    network: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = images_of()
    assert_close(network(images), load_encoder(resnet)(images))
    about = network.pretrained_cfg
    assert tuple(about["mean"]) == (0.3, 0.4, 0.5)
    assert tuple(about["std"]) == (0.2, 0.3, 0.25)
    assert tuple(about["input_size"]) == (3, 32, 32)
    assert network.pretrained_cfg["license"] == "cc-by-4.0"
    tuned = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=7)
    assert tuned(images).shape == (3, 7)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: timm\n")
    assert "secret" not in card


@pytest.mark.slow
@torch.no_grad()
def test_a_vision_transformer_and_gray_images_by_timm(tmp_path: Path) -> None:
    config = config_of("vit_tiny_patch16_224", side=48, gray=True, attention_heads=6)
    file = encoder_file(tmp_path / "encoder.safetensors", config)
    export_encoder(file, tmp_path / "out", form="timm")
    network: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert network.blocks[0].attn.num_heads == 6
    images = images_of(channels=1, side=48)
    assert_close(network(images), load_encoder(file)(images))


@pytest.mark.slow
@torch.no_grad()
def test_what_timm_cannot_hold_is_said(tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "a.safetensors", config_of(pool=2), whitened=True)
    done = export_encoder(file, tmp_path / "out", form="timm")
    assert "2 x 2 cells and their whitening" in done.left_out[0]
    assert not (tmp_path / "out" / "whitening.safetensors").exists()
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = images_of(side=64)
    cells = load_encoder(file).network(images).unflatten(1, (512, 4))
    assert_close(network(images), cells.mean(dim=2))


@pytest.mark.slow
@torch.no_grad()
def test_a_whitening_lies_beside(tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "a.safetensors", config_of(), whitened=True)
    export_encoder(file, tmp_path / "out", form="timm")
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    whitening = load_file(tmp_path / "out" / "whitening.safetensors")
    images = images_of()
    came = (network(images) - whitening["mean"]) @ whitening["weight"]
    assert_close(came, load_encoder(file)(images))


LAYER = IntermediateLayer("layer3", 2)


@torch.no_grad()
@pytest.mark.parametrize(
    "form",
    [
        "torchvision",
        pytest.param("timm", marks=pytest.mark.slow),
        pytest.param("hf", marks=[pytest.mark.slow, needs_transformers]),
    ],
)
def test_other_libraries_hold_the_last_layer_alone(form: Any, tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "a.safetensors", config_of(), whitened=True, layer=LAYER)
    done = export_encoder(file, tmp_path / "out", form=form)
    assert "cannot hold those of the layer layer3" in done.left_out[0]
    network, images = load_encoder(file).network, images_of()
    whitening = load_file(tmp_path / "out" / "whitening.safetensors")
    came = (network(images) - whitening["mean"]) @ whitening["weight"]
    assert_close(came, load_encoder(file)(images)[:, : came.shape[1]])
    assert json.loads((tmp_path / "out" / "export.json").read_text())["features"] == 512


@torch.no_grad()
@pytest.mark.parametrize(
    "form", ["torch-export", pytest.param("onnx", marks=[pytest.mark.slow, needs_onnx])]
)
def test_a_program_holds_both_layers(form: Any, tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "a.safetensors", config_of(), whitened=True, layer=LAYER)
    done = export_encoder(file, tmp_path / "out", form=form)
    assert done.difference is not None
    assert not done.left_out
    if form == "torch-export":
        program = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
        pixels = torch.rand(3, 3, 32, 32)
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in ([0.3, 0.4, 0.5], [0.2, 0.3, 0.25]))
        assert_close(program(pixels), load_encoder(file)((pixels - mean) / std))


@torch.no_grad()
def test_a_file_of_diptych_holds_both_layers(tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "a.safetensors", config_of(), whitened=True, layer=LAYER)
    export_encoder(file, tmp_path / "out", form="safetensors")
    images = images_of()
    written = load_encoder(tmp_path / "out" / "encoder.safetensors")
    assert torch.equal(written(images), load_encoder(file)(images))


@torch.no_grad()
def test_a_file_of_diptych_tells_nothing_of_the_run(tmp_path: Path) -> None:
    config = config_of("small_resnet", width=8, stem="small", norm="group")
    file = encoder_file(tmp_path / "a.safetensors", config, whitened=True)
    export_encoder(file, tmp_path / "out", form="safetensors")
    written = tmp_path / "out" / "encoder.safetensors"
    assert b"secret" in file.read_bytes()
    assert b"secret" not in written.read_bytes()
    images = images_of()
    assert_close(load_encoder(written)(images), load_encoder(file)(images))


@pytest.mark.slow
@torch.no_grad()
def test_detectron2_by_the_names_of_its_tensors(resnet: Path, tmp_path: Path) -> None:
    done = export_encoder(resnet, tmp_path / "out", form="detectron2")
    content = torch.load(tmp_path / "out" / "weights.pth", weights_only=True)
    assert content["matching_heuristics"] is True
    names = set(content["model"])
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var"} < names
    assert {"res2.0.conv1.weight", "res3.0.shortcut.norm.bias", "res5.1.conv2.norm.weight"} < names
    images = images_of()
    came = encode_by_names(content["model"], (2, 2, 2, 2), images)
    assert_close(came, load_encoder(resnet)(images))
    settings = (tmp_path / "out" / "detectron2.yaml").read_text()
    assert "DEPTH: 18" in settings
    assert f"PIXEL_MEAN: {[255 * 0.3, 255 * 0.4, 255 * 0.5]}" in settings
    assert "pooling is left out" in done.left_out[0]


@pytest.mark.parametrize(("gray", "form"), [(True, "L"), (False, "RGB")])
def test_detectron2_reads_images_of_as_many_channels(gray: bool, form: str, tmp_path: Path) -> None:
    config = config_of(gray=gray)
    source = ExportSource("resnet", None, config, untrained_encoder(config).eval(), None)
    FORMATS["detectron2"](source, tmp_path)
    settings = (tmp_path / "detectron2.yaml").read_text()
    assert f'FORMAT: "{form}"' in settings
    assert ("PIXEL_MEAN: [102.0]\n" in settings) == gray
    raw = replace(config, images=replace(config.images, color="raw", raw_channels=4))
    network = untrained_encoder(raw).eval()
    with pytest.raises(ConfigError, match="sees 4 channels, and detectron2 reads"):
        FORMATS["detectron2"](ExportSource("resnet", None, raw, network, None), tmp_path)


@pytest.mark.slow
@torch.no_grad()
def test_the_body_of_torchvisions_detectors(tmp_path: Path) -> None:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    file = encoder_file(tmp_path / "a.safetensors", config_of("resnet50", pool=2))
    export_encoder(file, tmp_path / "out", form="coco-features")
    backbone: Any = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=torch.nn.BatchNorm2d
    )
    state = torch.load(tmp_path / "out" / "weights.pth", weights_only=True)
    backbone.body.load_state_dict(state)
    images = images_of(side=64)
    maps = backbone.eval().body(images)
    assert list(maps) == ["0", "1", "2", "3"]
    network = load_encoder(file).network
    assert_close(maps["3"].flatten(1), network(images))


@pytest.mark.slow
@torch.no_grad()
def test_a_program_normalises_pixels_by_itself(tmp_path: Path) -> None:
    config = config_of("small_resnet", width=8, stem="small", norm="group", gray=True)
    file = encoder_file(tmp_path / "a.safetensors", config, whitened=True)
    export_encoder(file, tmp_path / "out", form="torch-export")
    program = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    for count in (1, 4):
        pixels = torch.rand(count, 1, 32, 32)
        images = (pixels - 0.4) / 0.25  # the means of three channels
        assert_close(program(pixels), load_encoder(file)(images))


class Own(nn.Module):
    """An encoder that only its owner can build."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
        return found


@torch.no_grad()
def test_an_encoder_given_in_python(tmp_path: Path) -> None:
    config = config_of("own")
    own = use_norm(randomised(Own()), config.norm)
    save_encoder(tmp_path / "a.safetensors", own, config)
    images = images_of()
    export_encoder(tmp_path / "a.safetensors", tmp_path / "a", form="safetensors", encoder=Own())
    came = load_encoder(tmp_path / "a" / "encoder.safetensors", encoder=Own())
    assert_close(came(images), own(images))
    config = replace(config, norm=NormConfig(kind="split", images_per_group=2))
    save_encoder(tmp_path / "b.safetensors", own, config)
    done = export_encoder(
        tmp_path / "b.safetensors", tmp_path / "b", form="torch-export", encoder=Own()
    )
    assert done.features == 6
    with pytest.raises(ConfigError, match="none of its networks"):
        export_encoder(
            tmp_path / "b.safetensors", tmp_path / "c", form="torchvision", encoder=Own()
        )
    with pytest.raises(ConfigError, match="Give it as encoder=MODULE"):
        export_encoder(tmp_path / "b.safetensors", tmp_path / "c", form="safetensors")


@pytest.mark.slow
@needs_onnx
@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_onnx_runs_any_number_of_images(name: str, tmp_path: Path) -> None:
    import onnxruntime

    file = encoder_file(tmp_path / "a.safetensors", config_of(name), whitened=True)
    done = export_encoder(file, tmp_path / "out", form="onnx")
    assert done.difference is not None
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "encoder.onnx"))
    assert session.get_modelmeta().custom_metadata_map["mean"] == "[0.3, 0.4, 0.5]"
    for count in (1, 7):
        pixels = torch.rand(count, 3, 32, 32)
        mean = torch.tensor([0.3, 0.4, 0.5]).view(3, 1, 1)
        images = (pixels - mean) / torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
        (came,) = session.run(None, {"pixels": pixels.numpy()})
        assert_close(torch.from_numpy(came), load_encoder(file)(images))


@pytest.mark.slow
@needs_transformers
@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny_patch16_224"])
@pytest.mark.filterwarnings("ignore")
def test_transformers_opens_both_folders(name: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    file = encoder_file(tmp_path / "a.safetensors", config_of(name))
    images = images_of()
    wanted = load_encoder(file)(images)
    done = export_encoder(file, tmp_path / "hf", form="hf")
    assert done.difference is not None
    export_encoder(file, tmp_path / "timm", form="timm")
    wrapped = AutoModel.from_pretrained(str(tmp_path / "timm")).eval()
    assert type(wrapped).__name__ == "TimmWrapperModel"
    assert_close(wrapped(pixel_values=images).pooler_output, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("form", ["torchvision", "timm", "safetensors", "hf", "detectron2"])
@torch.no_grad()
def test_out_and_in_again(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is exported is read by ``--weights`` to the same features."""
    if name.startswith("vit") and form in ("torchvision", "detectron2"):
        pytest.skip("not a network of theirs")
    monkeypatch.setattr(write, "_READ_BY", {"hf": "no_such_library"})
    file = encoder_file(tmp_path / "a.safetensors", config_of(name))
    export_encoder(file, tmp_path / "out", form=form)
    place = {
        "torchvision": "out/weights.pth",
        "detectron2": "out/weights.pth",
        "safetensors": "out/encoder.safetensors",
    }.get(form, "out")
    started, config = import_encoder(str(tmp_path / place), side_pixels=32)
    images = images_of()
    assert_close(started.network.eval()(images), load_encoder(file)(images))
    if form in ("timm", "safetensors", "hf"):
        assert config.views.pixel_mean == (0.3, 0.4, 0.5)


def test_a_difference_keeps_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(source: ExportSource, folder: Path) -> Written:
        written = FORMATS["safetensors"](source, folder)
        return replace(
            written, read=lambda where: lambda images: written.read(where)(images * 1.01)
        )

    monkeypatch.setitem(FORMATS, "timm", wrong)
    with pytest.raises(ExportError, match="differ by"):
        export_encoder(small, tmp_path / "out", form="timm")
    assert [one.name for one in tmp_path.iterdir()] == [small.name]


def test_other_folders_are_not_replaced(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds something else too, as a\.jpg"):
        export_encoder(small, folder, form="timm")
    with pytest.raises(ConfigError, match="is a file"):
        export_encoder(small, small, form="timm")
    export_encoder(small, tmp_path / "out", form="safetensors")
    old = tmp_path / "out" / "model_card.bak"
    old.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds something else too, as model_card\.bak"):
        export_encoder(small, tmp_path / "out", form="safetensors")
    old.unlink()
    export_encoder(small, tmp_path / "out", form="safetensors")


@pytest.mark.parametrize(
    ("form", "settings", "why"),
    [
        pytest.param(
            *("timm", {"norm": "group"}, "timm's resnet18 is another network"),
            marks=pytest.mark.slow,
        ),
        ("timm", {"name": "small_resnet"}, "timm has no small_resnet"),
        ("torchvision", {"name": "small_resnet"}, "none of its networks"),
        pytest.param(
            *("hf", {"stem": "small"}, r"with the stem small .* opens --format timm"),
            marks=pytest.mark.slow,
        ),
        ("detectron2", {"name": "timm:test_vit"}, "no ResNet"),
        pytest.param(
            *("coco-features", {"norm": "layer"}, "with layer norm"), marks=pytest.mark.slow
        ),
    ],
)
def test_networks_that_a_format_cannot_hold(
    form: str, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """A refusal says what does not fit, and which format does."""
    file = encoder_file(tmp_path / "a.safetensors", config_of(**settings))
    with pytest.raises(ConfigError, match=f"{why}.* Use --format safetensors"):
        export_encoder(file, tmp_path / "out", form=form)


def vit_source(**options: Any) -> ExportSource:
    options = {"qkv_bias": True} | options
    network = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=8, depth=2, num_heads=2, num_classes=0, **options
    )
    config = config_of("timm:vit_tiny_patch16_224")
    return ExportSource("vit", None, config, randomised(network).eval(), None)


@pytest.mark.parametrize(
    "options",
    [
        {"init_values": 0.1},
        {"qk_norm": True},
        {"mlp_layer": SwiGLU},
        {"mlp_layer": SwiGLUPacked},
        {"act_layer": "quick_gelu"},
        {"qkv_bias": False},
        {"reg_tokens": 2},
        {"no_embed_class": True},
        {"global_pool": "avg", "fc_norm": False},
        {"pre_norm": True},
        {"final_norm": False},
        {"norm_layer": "rmsnorm"},
        {"block_fn": ResPostBlock},
    ],
    ids=str,
)
def test_transformers_gets_plain_vision_transformers_only(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Its own network has no place for what else timm's may have, and would drop it unseen."""
    with pytest.raises(ConfigError, match="no plain vision transformer"):
        FORMATS["hf"](vit_source(**options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_plain_vision_transformer_goes_to_transformers_whole(tmp_path: Path) -> None:
    source = vit_source()
    FORMATS["hf"](source, tmp_path)
    named = load_file(tmp_path / "model.safetensors")
    assert sum(one.numel() for one in named.values()) == sum(
        one.numel() for one in source.network.state_dict().values()
    )
    assert len(named) == 6 + 2 * 16


def test_the_command_prints_the_difference(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(small), "--format", "safetensors", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "16 features: README.md, encoder.safetensors, export.json." in said
    assert "the largest difference of a feature is" in said
    note = json.loads((out / "export.json").read_text())
    assert note["input"]["mean"] == [0.3, 0.4, 0.5]
    assert note["largest_difference"] < 1e-4
    assert main(["export", str(tmp_path / "none"), "-o", str(out)]) == 2


def test_every_format_is_a_choice_of_the_command() -> None:
    import typing

    from diptych.cli.import_export import ExportFlags

    assert set(typing.get_args(typing.get_type_hints(ExportFlags)["format"])) == set(FORMATS)


def test_missing_libraries_are_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install \"diptych\[onnx\]\""):
        export_encoder(small, tmp_path / "out", form="onnx")


@pytest.mark.slow
def test_random_images_reach_every_part(small: Path) -> None:
    """The check would see two channels exchanged: features are no blank images'."""
    images = images_of()
    swapped = images[:, np.array([2, 1, 0])]
    encoder = load_encoder(small)
    assert (encoder(images) - encoder(swapped)).abs().max() > 1e-2


def test_an_exported_encoder_sees_images_of_the_same_depth(tmp_path: Path) -> None:
    config = config_of("small_resnet", width=4, stem="small")
    config = replace(config, images=replace(config.images, bits=16))
    save_encoder(tmp_path / "deep.safetensors", untrained_encoder(config), config)
    export_encoder(tmp_path / "deep.safetensors", tmp_path / "out", form="safetensors")
    again = load_encoder(tmp_path / "out" / "encoder.safetensors").config
    assert again.images.bits == 16
