"""Formats that hold weights under a library's names, without a program: how each is written.

A writer puts files into a folder and says what of the encoder the format cannot hold. A reader
builds the library's own network from these files, by its public functions only, so that the check
does what a user will do.
"""

import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import timm
import torch
import torchvision.models
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.export.source import ExportSource, contiguous_state, require
from diptych.models.parts import without_memory
from diptych.models.resnets import STAGE_BLOCKS
from diptych.models.weights import PretrainedEncoder, difference, load_encoder, save_encoder

Reader = Callable[[Path], Callable[[Tensor], Tensor]]
"""From the folder to a function of normalised images (batch, channels, side, side) to features."""

WHITENING: Final = "whitening.safetensors"


@dataclass(frozen=True)
class Written:
    """What was written, and how it is read.

    Attributes:
        source: the encoder as the format holds it; its ``encode`` is what the reader must give.
        usage: Python that reads it, for the model card.
        read: the same, for the check.
        left_out: sentences on what the format cannot hold.
        library: that reads it, as the Hugging Face hub calls it.
        takes_pixels: whether pixels in 0 .. 1 go in, which the program normalises by itself.
    """

    source: ExportSource
    usage: str
    read: Reader
    left_out: list[str] = field(default_factory=list)
    library: str = "pytorch"
    takes_pixels: bool = False


# --- diptych's own, and torchvision ----------------------------------------------------------


def write_safetensors(source: ExportSource, folder: Path) -> Written:
    """An encoder file of diptych, whose header says nothing of the run."""
    texts = {"licence": source.licence} if source.licence else {}
    save_encoder(
        folder / "encoder.safetensors",
        source.network,
        source.images_config,
        whitening=source.whitening,
        layer=source.layer,
        texts=texts,
    )
    usage = """\
import diptych, torch

encoder = diptych.load_encoder("encoder.safetensors")
features = encoder(images)  # whitened, where the file has a whitening
# The tensors alone: safetensors.torch.load_file("encoder.safetensors")
"""

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        own = None if source.config.encoder.name != "own" else source.network
        encoder: PretrainedEncoder = load_encoder(where / "encoder.safetensors", encoder=own)
        return encoder

    return Written(source, usage, read)


def write_torchvision(source: ExportSource, folder: Path) -> Written:
    """A state dict by torchvision's names, as its own weights are distributed."""
    whole, source = source, source.last_layer_only()
    encoder = source.config.encoder
    names = torchvision.models.list_models(module=torchvision.models)
    wide = encoder.width_multiplier > 1 or encoder.selective_kernels
    require(
        encoder.name in names and not wide and not source.config.norm.is_per_image,
        *(source, "torchvision", f"{described(source)} is none of its networks"),
    )
    torch.save(contiguous_state(source.network), folder / "weights.pth")
    _, lines = _torchvision_network(source)
    usage = f"""\
import torch, torchvision

{lines}
model.load_state_dict(torch.load("weights.pth", weights_only=True))
features = model.eval()(images)
"""

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        network, _ = _torchvision_network(source)
        network.load_state_dict(torch.load(where / "weights.pth", weights_only=True))
        return network.eval()

    written = Written(replace(source, whitening=None), usage, read, layer_sentence(whole))
    return with_whitening(source, written, folder)


def _torchvision_network(source: ExportSource) -> tuple[nn.Module, str]:
    """The network as torchvision builds it, with the source's layers in places, and as code."""
    name, side = source.config.encoder.name, source.side
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": side}
    elif name.startswith("maxvit_"):
        options = {"input_size": (side, side)}
    elif name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    given = "".join(f", {option}={value!r}" for option, value in options.items())
    lines = [f'model = torchvision.models.get_model("{name}", weights=None{given})']
    # The classifier, and where diptych builds the first or the last layers in another way.
    ours = dict(source.network.named_modules())
    for position, theirs in list(network.named_modules()):
        if not list(theirs.children()) and repr(ours[position]) != repr(theirs):
            place = re.sub(r"\.(\d+)", r"[\1]", f"model.{position}")
            lines.append(f"{place} = torch.nn.{ours[position]!r}")
            parent, _, child = position.rpartition(".")
            setattr(network.get_submodule(parent), child, copy.deepcopy(ours[position]))
    return network, "\n".join(lines)


def with_whitening(source: ExportSource, written: Written, folder: Path) -> Written:
    """The same with the whitening beside it, in a file of its own."""
    if source.whitening is None:
        return written
    save_file(contiguous_state(source.whitening), folder / WHITENING)
    usage = f"""{written.usage}
from safetensors.torch import load_file

whitening = load_file("{WHITENING}")
features = (features - whitening["mean"]) @ whitening["weight"]
"""

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        network, whitening = written.read(where), load_file(where / WHITENING)
        return lambda images: (network(images) - whitening["mean"]) @ whitening["weight"]

    sentence = (
        f"The network gives features before their whitening, which lies beside it in {WHITENING}."
    )
    return replace(
        written, source=source, usage=usage, read=read, left_out=[*written.left_out, sentence]
    )


# --- timm -------------------------------------------------------------------------------------


def write_timm(source: ExportSource, folder: Path) -> Written:
    """A folder that timm opens as ``local-dir:FOLDER``, and transformers by its timm_wrapper."""
    whole, source = source, source.average_pooled()
    name = source.config.encoder.name.removeprefix("timm:")
    settings = _timm_settings(name, source)
    save_file(
        contiguous_state(source.network), folder / "model.safetensors", metadata={"format": "pt"}
    )
    write_json(folder / "config.json", settings)
    usage = """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image)[None])
# To fine-tune: timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=10)
# By transformers: AutoModel.from_pretrained("FOLDER")(pixel_values=images).pooler_output
"""

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        network: nn.Module = timm.create_model(f"local-dir:{where}", pretrained=True)
        return network.eval()

    bare = replace(source, whitening=None)
    written = Written(bare, usage, read, features_left_out(whole), library="timm")
    return with_whitening(source, written, folder)


def _timm_settings(name: str, source: ExportSource) -> dict[str, Any]:
    """What config.json says, once timm is found to have this network.

    Raises:
        ConfigError: it has none with these tensors.
    """
    require(timm.is_model(name), source, "timm", f"timm has no {name}")
    known: Any = timm.get_pretrained_cfg(name)
    about = {} if known is None else known.to_dict()
    arguments: dict[str, Any] = {"in_chans": source.channels} if source.channels != 3 else {}
    heads = source.config.encoder.attention_heads
    if heads is not None:
        arguments["num_heads"] = heads
    built, with_side = _built_by_timm(name, source, arguments)
    found = difference(source.network.state_dict(), built.state_dict())
    why = f"timm's {name} is another network ({found})"
    require(found is None, source, "timm", why)
    size = [source.channels, source.side, source.side]
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": source.features,
        "model_args": arguments | ({"img_size": source.side} if with_side else {}),
        "pretrained_cfg": {
            "tag": "diptych",
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": with_side,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": source.mean,
            "std": source.std,
            "num_classes": 0,
            "first_conv": about.get("first_conv"),
            "classifier": about.get("classifier"),
            **({"license": source.licence} if source.licence else {}),
        },
    }


def _built_by_timm(
    name: str, source: ExportSource, arguments: Mapping[str, Any]
) -> tuple[nn.Module, bool]:
    """The network of timm on the meta device, and whether it is built for a side of the images."""
    options: dict[str, Any] = {"num_classes": 0, **arguments}
    with without_memory():
        try:
            return timm.create_model(name, img_size=source.side, **options), True
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        return timm.create_model(name, **options), False


# --- what the formats share ---------------------------------------------------------------------


def is_plain_resnet(source: ExportSource) -> bool:
    """Whether it is torchvision's ResNet-18 to -152 with its usual first layers and norms."""
    config = source.config.encoder
    plain = config.name in STAGE_BLOCKS and config.stem == "imagenet"
    wide = config.width_multiplier > 1 or config.selective_kernels
    return plain and not wide and not source.config.norm.is_per_image


def described(source: ExportSource) -> str:
    """The network with what sets it apart."""
    config = source.config.encoder
    words = [config.name]
    if config.name in STAGE_BLOCKS and config.stem != "imagenet":
        words.append(f"with the stem {config.stem}")
    if config.width_multiplier > 1:
        words.append(f"{config.width_multiplier} times as wide")
    if config.selective_kernels:
        words.append("with selective kernels")
    if config.attention_heads is not None:
        words.append(f"with {config.attention_heads} attention heads")
    if source.config.norm.is_per_image:
        words.append(f"with {source.config.norm.kind} norm")
    return " ".join(words)


def features_left_out(source: ExportSource) -> list[str]:
    """Says that features of cells or an intermediate layer are left out, where there are some."""
    cells = source.config.encoder.pool
    if cells == 1:
        return layer_sentence(source)
    lost = " and their whitening" if source.whitening is not None else ""
    return [
        f"Features are averages of the whole image: the format cannot hold those of the "
        f"{cells} x {cells} cells{lost}.",
        *layer_sentence(source),
    ]


def layer_sentence(source: ExportSource) -> list[str]:
    """Says that features of an intermediate layer are left out, where the encoder has them."""
    if source.layer is None:
        return []
    return [
        f"Features are those of the last layer alone: the format cannot hold those of the layer "
        f"{source.layer.name}, which the encoder was found to be better with. torch-export, onnx "
        "and safetensors hold both."
    ]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object for people too."""
    path.write_text(json.dumps(content, indent=2) + "\n")
