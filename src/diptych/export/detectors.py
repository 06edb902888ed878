"""A ResNet as the backbone of detectors: detectron2's, and torchvision's that are trained on COCO.

Detectors take the maps after each stage, so that pooling and whitening of features are left out.
Compared is the last map, averaged over the image.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from diptych.export.layouts import Written, described, is_plain_resnet, layer_sentence
from diptych.export.source import ExportSource, contiguous_state, require
from diptych.models.resnets import STAGE_BLOCKS

_FILE: Final = "weights.pth"
_DETECTRON2_FORMATS: Final = {1: "L", 3: "RGB"}
"""What its ``read_image`` calls images of so many channels."""


def write_coco_features(source: ExportSource, folder: Path) -> Written:
    """The state of ``backbone.body`` of torchvision's detectors."""
    maps = _maps_of(source, "coco-features")
    torch.save(contiguous_state(maps.network), folder / _FILE)
    name = source.config.encoder.name
    stem = ""
    if source.channels != 3:
        stem = f"\nmodel.backbone.body.conv1 = torch.nn.{maps.network.conv1!r}"
    usage = f"""\
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

backbone = resnet_fpn_backbone(
    backbone_name="{name}", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
)
model = FasterRCNN(
    backbone, num_classes=91, image_mean={source.mean}, image_std={source.std}
){stem}
model.backbone.body.load_state_dict(torch.load("{_FILE}", weights_only=True))
"""

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        backbone = resnet_fpn_backbone(
            backbone_name=name, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
        )
        if source.channels != 3:
            backbone.body.conv1 = torch.nn.Conv2d(source.channels, 64, 7, 2, 3, bias=False)
        backbone.body.load_state_dict(torch.load(where / _FILE, weights_only=True))
        body = backbone.eval().body
        return lambda images: body(images)["3"].mean(dim=(2, 3))

    return Written(maps, usage, read, _left_out(source))


def write_detectron2(source: ExportSource, folder: Path) -> Written:
    """The bottom-up ResNet of detectron2's detectors, and the settings that go with it.

    A file of torch and not of pickle: detectron2 reads both, and this one can be read without
    running what is in it.
    """
    maps = _maps_of(source, "detectron2")
    why = f"it sees {source.channels} channels, and detectron2 reads images of one or three"
    require(source.channels in _DETECTRON2_FORMATS, source, "detectron2", why)
    state = {
        detectron2_name(name): one
        for name, one in contiguous_state(maps.network).items()
        if not name.endswith("num_batches_tracked")
    }
    content = {"model": state, "__author__": "diptych", "matching_heuristics": True}
    torch.save(content, folder / _FILE)
    (folder / "detectron2.yaml").write_text(_detectron2_settings(source))
    usage = f"""\
from detectron2.config import get_cfg
from detectron2 import model_zoo

cfg = get_cfg()
cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
cfg.merge_from_file("detectron2.yaml")
cfg.MODEL.WEIGHTS = "{_FILE}"
"""
    blocks = STAGE_BLOCKS[source.config.encoder.name]

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        found = torch.load(where / _FILE, weights_only=True)["model"]
        return lambda images: encode_by_names(found, blocks, images)

    return Written(maps, usage, read, _left_out(source), library="detectron2")


def detectron2_name(name: str) -> str:
    """A tensor's name in torchvision's ResNet to that in detectron2's.

    >>> detectron2_name("layer1.0.bn2.weight"), detectron2_name("bn1.bias")
    ('res2.0.conv2.norm.weight', 'stem.conv1.norm.bias')
    """
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    if not name.startswith("layer"):
        return f"stem.{name}"
    return re.sub(r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}.", name)


def encode_by_names(state: Mapping[str, Tensor], blocks: tuple[int, ...], images: Tensor) -> Tensor:
    """The last map of detectron2's ResNet, averaged, computed from the names of its tensors.

    Args:
        state: by detectron2's names.
        blocks: in each of the four stages.
        images: (batch, channels, side, side), normalised.
    """

    def convolve(name: str, maps: Tensor, stride: int) -> Tensor:
        weight = state[f"{name}.weight"]
        maps = functional.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, scale, shift = (
            state[f"{name}.norm.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(maps, mean, variance, scale, shift)

    maps = functional.relu(convolve("stem.conv1", images, 2))
    maps = functional.max_pool2d(maps, 3, stride=2, padding=1)
    for stage, count in enumerate(blocks, start=2):
        for block in range(count):
            name, stride = f"res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            inner = maps
            depth = 3 if f"{name}.conv3.weight" in state else 2
            # STRIDE_IN_1X1 is false: the 3x3 convolution takes the stride.
            strided = 2 if depth == 3 else 1
            for number in range(1, depth + 1):
                step = stride if number == strided else 1
                inner = convolve(f"{name}.conv{number}", inner, step)
                inner = functional.relu(inner) if number < depth else inner
            if f"{name}.shortcut.weight" in state:
                maps = convolve(f"{name}.shortcut", maps, stride)
            maps = functional.relu(inner + maps)
    return maps.mean(dim=(2, 3))


def _detectron2_settings(source: ExportSource) -> str:
    """Of pixels in 0 .. 255, in the order of colours that the encoder was trained with."""
    shallow = source.config.encoder.name in ("resnet18", "resnet34")
    narrow = "    RES2_OUT_CHANNELS: 64\n" if shallow else ""
    mean, std = ([round(255 * one, 4) for one in values] for values in (source.mean, source.std))
    return f"""\
MODEL:
  PIXEL_MEAN: {mean}
  PIXEL_STD: {std}
  RESNETS:
    DEPTH: {source.config.encoder.name.removeprefix("resnet")}
    STRIDE_IN_1X1: False
    NORM: "SyncBN"
{narrow}  BACKBONE:
    FREEZE_AT: 0
INPUT:
  FORMAT: "{_DETECTRON2_FORMATS[source.channels]}"
"""


def _maps_of(source: ExportSource, form: str) -> Any:
    why = f"{described(source)} is no ResNet with the usual first layers"
    require(is_plain_resnet(source), source, form, why)
    return replace(source.average_pooled(), whitening=None)


def _left_out(source: ExportSource) -> list[str]:
    lost = ["pooling"] + ["the whitening of features"] * (source.whitening is not None)
    left_out = f"Detectors take the maps after each stage: {' and '.join(lost)} is left out."
    return [left_out, *layer_sentence(source)]
