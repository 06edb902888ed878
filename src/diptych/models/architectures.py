"""Which network a state dict is of, as far as names and shapes of its tensors say."""

import re
from collections.abc import Mapping
from typing import Any, Final

from diptych.models.resnets import STAGE_BLOCKS

_Shapes = Mapping[str, tuple[int, ...]]

_WIDTHS: Final = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
_LETTERS: Final = {768: "b", 1024: "l", 1280: "h"}
_GROUPED: Final = {
    # Of the first 3x3 convolution of a bottleneck: channels out, channels in of a group.
    ("resnet50", 128, 4): "resnext50_32x4d",
    ("resnet101", 256, 8): "resnext101_32x8d",
    ("resnet101", 256, 4): "resnext101_64x4d",
    ("resnet50", 128, 128): "wide_resnet50_2",
    ("resnet101", 128, 128): "wide_resnet101_2",
}


def infer_encoder(shapes: _Shapes) -> dict[str, Any]:
    """Settings of the encoder; an empty table where the tensors are of no network that is known.

    Args:
        shapes: of the tensors, by torchvision's or timm's names.

    >>> infer_encoder({"conv_proj.weight": (768, 3, 16, 16)})
    {'name': 'vit_b_16', 'stem': 'imagenet'}
    """
    return _resnet(shapes) or _timm_vit(shapes) or _torchvision_vit(shapes)


def _resnet(shapes: _Shapes) -> dict[str, Any]:
    """A ResNet by the number of its blocks, its first convolution and its width."""
    stem = shapes.get("conv1.weight", ())
    if len(stem) != 4 or stem[2] not in (3, 7):
        return {}
    inner = shapes.get("layer1.0.conv2.weight", ())
    bottleneck = "layer1.0.conv3.weight" in shapes
    names = [name for name in STAGE_BLOCKS if _blocks(shapes) == STAGE_BLOCKS[name]]
    # ResNet-34 and ResNet-50 have as many blocks, of two kinds.
    fitting = [n for n in names if (n in ("resnet18", "resnet34")) != bottleneck]
    if not fitting or len(inner) != 4:
        return {}
    found: dict[str, Any] = {"name": fitting[0], "stem": "small" if stem[2] == 3 else "imagenet"}
    if stem[0] == 64:
        found["name"] = _GROUPED.get((fitting[0], inner[0], inner[1]), fitting[0])
    elif stem[0] % 64 == 0 and 1 < stem[0] // 64 <= 16:
        found["width_multiplier"] = stem[0] // 64
    return found


def _blocks(shapes: _Shapes) -> tuple[int, ...]:
    """Blocks of each of the four stages."""
    places = {m.groups() for n in shapes if (m := re.match(r"layer([1-4])\.(\d+)\.conv1\.", n))}
    return tuple(sum(stage == str(n) for stage, _ in places) for n in (1, 2, 3, 4))


def _timm_vit(shapes: _Shapes) -> dict[str, Any]:
    """A vision transformer by timm's names."""
    kernel = shapes.get("patch_embed.proj.weight", ())
    if len(kernel) != 4 or kernel[0] not in _WIDTHS or "blocks.0.attn.qkv.weight" not in shapes:
        return {}
    import timm

    name = f"vit_{_WIDTHS[kernel[0]]}_patch{kernel[2]}_224"
    return {"name": name, "stem": "imagenet"} if timm.is_model(name) else {}


def _torchvision_vit(shapes: _Shapes) -> dict[str, Any]:
    """A vision transformer by torchvision's names."""
    kernel = shapes.get("conv_proj.weight", ())
    if len(kernel) != 4 or kernel[0] not in _LETTERS:
        return {}
    return {"name": f"vit_{_LETTERS[kernel[0]]}_{kernel[2]}", "stem": "imagenet"}
