"""A ResNet or a vision transformer as transformers has it: files under the names that it writes."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from diptych.export.layouts import (
    Written,
    described,
    features_left_out,
    is_plain_resnet,
    with_whitening,
    write_json,
)
from diptych.export.source import ExportSource, contiguous_state, require
from diptych.models.resnets import BOTTLENECKS, STAGE_BLOCKS

_BILINEAR: Final = 2  # of Pillow
_VIT_NAMES: Final = (
    (r"cls_token", r"embeddings.cls_token"),
    (r"pos_embed", r"embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(weight|bias)", r"layernorm.\1"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"encoder.layer.\1.layernorm_after.\2"),
    (
        r"blocks\.(\d+)\.attn\.proj\.(weight|bias)",
        r"encoder.layer.\1.attention.output.dense.\2",
    ),
    (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"encoder.layer.\1.output.dense.\2"),
)
"""All tensors of timm's plain vision transformer but queries, keys and values, which are one."""

_VIT_PARTS: Final = ("query", "key", "value")
_RESNET_USE: Final = """\
model = AutoModel.from_pretrained("FOLDER").eval()
features = model(**processor(image, return_tensors="pt")).pooler_output.flatten(1)
"""
_VIT_USE: Final = """\
model = AutoModel.from_pretrained("FOLDER", add_pooling_layer=False).eval()
features = model(**processor(image, return_tensors="pt")).last_hidden_state[:, 0]
"""


def write_hf(source: ExportSource, folder: Path) -> Written:
    """A folder that ``transformers.AutoModel`` opens."""
    whole, source = source, source.average_pooled()
    if is_plain_resnet(source):
        settings, use = _resnet_settings(source), _RESNET_USE
        state = contiguous_state(source.network)
        named = {_resnet_name(name): one for name, one in state.items()}
    else:
        named = _vit_state(source.network)
        why = f"{described(source)} is no ResNet and no plain vision transformer of it"
        require(bool(named), source, "hf", f"{why} (but it opens --format timm too)")
        settings, use = _vit_settings(source), _VIT_USE
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", settings)
    write_json(folder / "preprocessor_config.json", _preprocessing(source))
    usage = f"""\
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("FOLDER")  # resizes; cut a square out first
{use}"""
    bare = replace(source, whitening=None)
    written = Written(bare, usage, _read, features_left_out(whole), library="transformers")
    return with_whitening(source, written, folder)


def _read(where: Path) -> Callable[[Tensor], Tensor]:
    from transformers import AutoConfig, AutoModel

    is_vit = AutoConfig.from_pretrained(str(where)).model_type == "vit"
    options = {"add_pooling_layer": False} if is_vit else {}
    network: Any = AutoModel.from_pretrained(str(where), **options).eval()
    if is_vit:
        return lambda images: network(pixel_values=images).last_hidden_state[:, 0]
    return lambda images: network(pixel_values=images).pooler_output.flatten(1)


def _preprocessing(source: ExportSource) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": source.side, "width": source.side},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": source.mean,
        "image_std": source.std,
    }


# --- ResNets ------------------------------------------------------------------------------------


def _resnet_settings(source: ExportSource) -> dict[str, Any]:
    name = source.config.encoder.name
    bottleneck = name in BOTTLENECKS
    return {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": source.channels,
        "embedding_size": 64,
        "hidden_sizes": [64 * 2**stage * (4 if bottleneck else 1) for stage in range(4)],
        "depths": list(STAGE_BLOCKS[name]),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def _resnet_name(name: str) -> str:
    """A tensor's name in torchvision's ResNet to that in transformers'.

    >>> _resnet_name("layer2.0.downsample.1.bias")
    'encoder.stages.1.layers.0.shortcut.normalization.bias'
    """
    stem = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    stem = re.sub(r"^bn1\.", "embedder.embedder.normalization.", stem)
    if stem != name:
        return stem
    name = name.replace("downsample.0.", "shortcut.convolution.")
    name = name.replace("downsample.1.", "shortcut.normalization.")
    for number in (1, 2, 3):
        name = name.replace(f".conv{number}.", f".layer.{number - 1}.convolution.")
        name = name.replace(f".bn{number}.", f".layer.{number - 1}.normalization.")
    return re.sub(
        r"^layer(\d)\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.", name
    )


# --- vision transformers ------------------------------------------------------------------------


def _is_plain_vit(network: Any) -> bool:
    """Whether it computes what transformers' does, as far as the names of its tensors do not say.

    Other blocks, gated layers and other ways to pool go by the same names.
    """
    return (
        type(network) is VisionTransformer
        and network.global_pool == "token"
        and not network.no_embed_class
        and all(
            type(block) is Block
            and type(block.mlp) is Mlp
            and isinstance(block.mlp.act, nn.GELU)
            and block.mlp.act.approximate == "none"
            for block in network.blocks
        )
    )


def _vit_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of timm's plain vision transformer by transformers' names; else none."""
    if not _is_plain_vit(network):
        return {}
    found = dict[str, Tensor]()
    state = contiguous_state(network)
    for name, tensor in state.items():
        if joined := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            place = f"encoder.layer.{joined[1]}.attention.attention"
            for part, piece in zip(_VIT_PARTS, tensor.chunk(3), strict=True):
                found[f"{place}.{part}.{joined[2]}"] = torch.clone(piece)
            continue
        for pattern, theirs in _VIT_NAMES:
            if matched := re.fullmatch(pattern, name):
                found[matched.expand(theirs)] = tensor
                break
        else:  # a tensor that transformers' has not
            return {}
    # Six outside of the blocks and twelve in each; transformers would fill in what is missing.
    blocks = sum(name.endswith(".norm1.weight") for name in state)
    return found if len(state) == 6 + 12 * blocks else {}


def _vit_settings(source: ExportSource) -> dict[str, Any]:
    network: Any = source.network
    state = network.state_dict()
    norm: nn.LayerNorm = network.norm
    return {
        "model_type": "vit",
        "architectures": ["ViTModel"],
        "hidden_size": network.embed_dim,
        "num_hidden_layers": len(network.blocks),
        "num_attention_heads": network.blocks[0].attn.num_heads,
        "intermediate_size": len(state["blocks.0.mlp.fc1.bias"]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": norm.eps,
        "image_size": source.side,
        "patch_size": state["patch_embed.proj.weight"].shape[-1],
        "num_channels": source.channels,
        "qkv_bias": True,
    }
