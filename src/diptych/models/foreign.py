"""How other libraries name an encoder's tensors in their files: one table, and how it is applied.

A file is a tree of mappings. Each layout of ``LAYOUTS`` says by which names it is recognised, which
prefix the encoder's tensors have, how they are renamed to torchvision's or timm's names, and what
else lies under the prefix and is left out. Layouts are tried in order, and one is taken only if the
whole encoder is found, every tensor by name and shape, and nothing of the network is left over.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from diptych.models.architectures import infer_encoder

_WRAPPERS: Final = r"^(?:module\.|_orig_mod\.)+"
_CONTAINERS: Final = (
    *("state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model"),
    *("online_network_state_dict", "network", "net", "backbone", "encoder", "resnet"),
    *("classy_state_dict", "base_model", "trunk", "student", "target_network_state_dict"),
)
"""Keys of mappings that hold a state dict, maybe in each other; what is averaged comes first."""

_CLASSIFIER: Final = r"^(?:fc|classifier|heads?|head_dist|linear|_fc|last_linear)\."
_QUEUE: Final = r"(?:^|\.)(?:queue|queue_ptr|queue_y|bank)\b"
_MOMENTUM: Final = r"(?:^|[._])(?:encoder_k|momentum\w*|target\w*|teacher|ema)\b|_momentum\b"
_HEAD: Final = (
    r"proj(?:ector|ection|etion)|prediction|predictor|prototypes|neck|^bn\.|(?:^|\.)heads?\.|"
    r"\.fc\.|classifier|contrastive|pooler|decoder|mask_token"
)
_WHITENING: Final = r"^whitening\."
_REASONS: Final = (
    (_QUEUE, "keys of earlier batches"),
    (_MOMENTUM, "the momentum copy"),
    (_CLASSIFIER, "a classifier or head"),
    (_HEAD, "heads of its training"),
    (_WHITENING, "the whitening of its features"),
)
"""Of tensors that are left out, why."""

_FLAT_SEQUENTIAL: Final = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{3 + stage}\.", f"layer{stage}.") for stage in (1, 2, 3, 4)),
)
"""``nn.Sequential(*resnet.children())``: children 2, 3 and 8 have no tensors."""

_MM_VIT: Final = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.ln(\d)\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.", "blocks."),
    (r"^(?:ln1|norm1)\.", "norm."),
)

_TRANSFORMERS_RESNET: Final = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    *((rf"\.layer\.{n}\.convolution\.", f".conv{n + 1}.") for n in range(3)),
    *((rf"\.layer\.{n}\.normalization\.", f".bn{n + 1}.") for n in range(3)),
    *((rf"^encoder\.stages\.{n}\.layers\.", f"layer{n + 1}.") for n in range(4)),
)

_DETECTRON2: Final = (
    (r"^stem\.", ""),
    *((rf"^res{n + 1}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
    (r"\bconv(\d)\.norm\.", r"bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)

_SIMCLR_V2: Final = (
    (r"^0\.0\.", "conv1."),
    (r"^0\.1\.0\.", "bn1."),
    (r"^([1-4])\.blocks\.", r"layer\1."),
    (r"\.projection\.shortcut\.", ".downsample.0."),
    (r"\.projection\.bn\.0\.", ".downsample.1."),
    *((rf"\.net\.{2 * n}\.", f".conv{n + 1}.") for n in range(3)),
    *((rf"\.net\.{2 * n + 1}\.0\.", f".bn{n + 1}.") for n in range(3)),
)
"""Of the ResNets without selective kernels."""

_TRANSFORMERS_VIT: Final = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    *(
        (rf"\.attention\.attention\.{name}\.(.*)", rf".attn.qkv.\1[{part}]")
        for part, name in enumerate(("query", "key", "value"))
    ),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    # Of version 5 in memory; what it saves has the names above.
    *(
        (rf"\.attention\.{name}_proj\.(.*)", rf".attn.qkv.\1[{part}]")
        for part, name in enumerate("qkv")
    ),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)

_LITE_BLOCKS: Final = (1, 2, 2, 3, 3, 4, 1)  # of EfficientNet-Lite0's stages


def _efficientnet_lite() -> Iterator[tuple[str, str]]:
    """Names of efficientnet_lite_pytorch to timm's, which counts blocks within stages."""
    yield from ((r"^_conv_(stem|head)\.", r"conv_\1."), (r"^_bn0\.", "bn1."), (r"^_bn1\.", "bn2."))
    places = [(stage, n) for stage, count in enumerate(_LITE_BLOCKS) for n in range(count)]
    for number, (stage, place) in enumerate(places):
        yield rf"^_blocks\.{number}\.", f"blocks.{stage}.{place}."
    # The first block does not expand: its layers count from one earlier.
    yield r"^blocks\.0\.0\._depthwise_conv\.", "blocks.0.0.conv_dw."
    yield r"^blocks\.0\.0\._project_conv\.", "blocks.0.0.conv_pw."
    yield r"^(blocks\.0\.0)\._bn([12])\.", r"\1.bn\2."
    yield r"\._expand_conv\.", ".conv_pw."
    yield r"\._depthwise_conv\.", ".conv_dw."
    yield r"\._project_conv\.", ".conv_pwl."
    yield from ((rf"\._bn{n}\.", f".bn{n + 1}.") for n in range(3))


@dataclass(frozen=True)
class Layout:
    """How one library names what is in its files.

    Attributes:
        name: of the library or method.
        prefix: regular expression; the encoder's tensors begin with it.
        marks: regular expressions, each of which fits some name of such a file.
        within: regular expression that fits the containers that the tensors lie in.
        renames: regular expressions and what they become, all in order, behind the prefix. A name
            that ends in ``[i]`` is the i-th part of one tensor.
        left_out: what may lie under the prefix and is not of the encoder.
        settings: of a run, that follow from the layout: nested tables.
        small_stem: what ``encoder.stem`` is where the first convolution is 3x3.
        small_vit_heads: of ViT-S, where it has others than timm's; shapes do not tell.
        note: a sentence on what tensors of such a file do not show.
    """

    name: str
    prefix: str = ""
    marks: tuple[str, ...] = ()
    within: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    left_out: str = _CLASSIFIER
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    small_stem: str = "small"
    small_vit_heads: int | None = None
    note: str = ""


_BACKBONE: Final = r"backbone\."
_VIT_MARK: Final = r"embeddings\.patch_embeddings\."
_VIT_LEFT_OUT: Final = rf"{_CLASSIFIER}|^pooler\.|^embeddings\.mask_token|^decoder\."


def _stable_pretraining() -> Iterator[Layout]:
    """The teacher first, where there is one; of each a transformers' ViT, or another network."""
    for part in (r"teacher\.", r"student\.", ""):
        vit = rf"{_BACKBONE}{part}(?:vit\.)?"
        marks = (rf"^{vit}{_VIT_MARK}",)
        yield Layout("stable-pretraining", vit, marks, "", _TRANSFORMERS_VIT, _VIT_LEFT_OUT)
        if part:
            yield Layout("stable-pretraining", _BACKBONE + part)


def _lightly_dino() -> Iterator[Layout]:
    """DINO and DINOv2 of lightly's examples: the teacher first; a ``Sequential``, or a network."""
    for part in ("teacher", "student"):
        prefix = rf"{part}_backbone\.(?:vit\.)?"
        flat = (rf"^{part}_backbone\.0\.weight$",)
        yield Layout("lightly", prefix, flat, renames=_FLAT_SEQUENTIAL)
        yield Layout("lightly", prefix, left_out=rf"{_CLASSIFIER}|^mask_token$")


LAYOUTS: Final = (
    # The files that the authors published hold the query encoder only.
    Layout("MoCo v1 and v2", r"encoder_q\."),
    Layout("MoCo v3", r"base_encoder\.", small_vit_heads=12),
    Layout(
        "BYOL",
        r"online_(?:network|encoder)\.(?:encoder\.|backbone\.|net\.)?",
        left_out=rf"{_CLASSIFIER}|{_HEAD}",
    ),
    Layout(
        "BYOL", r"encoder\.", (r"^projet?c?tion\.",), "online_network", renames=_FLAT_SEQUENTIAL
    ),
    # Trained on pixels from 0 to 1 that were not normalised.
    Layout(
        "SimCLR v2 converted",
        r"net\.",
        (r"^net\.1\.blocks\.0\.projection\.",),
        renames=_SIMCLR_V2,
        settings={"views": {"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}},
    ),
    Layout("SwAV", marks=(r"^prototypes\.",), left_out=rf"{_CLASSIFIER}|{_HEAD}"),
    # Its networks for CIFAR have a border of two pixels around the first convolution. All of its
    # methods have a classifier beside them, of DINO too.
    Layout(
        "solo-learn",
        r"(?:backbone|encoder)\.",
        (r"^classifier\.", r"^(?:momentum_)?(?:projector|head)\.|^queue"),
        small_stem="small_padded",
    ),
    Layout("DINO", _BACKBONE, (r"^head\.last_layer\.",)),
    Layout("Barlow Twins", _BACKBONE, (r"^projector\.", r"^bn\."), r"(?:^|\.)model$"),
    Layout("VICReg", _BACKBONE, (r"^projector\.",), r"(?:^|\.)model$"),
    Layout("VISSL", r"(?:trunk\.)?(?:base_model\.)?_feature_blocks\."),
    Layout(
        "mmselfsup",
        _BACKBONE,
        (r"^backbone\.layers\.0\.ffn\.",),
        renames=_MM_VIT,
        small_vit_heads=12,  # of its ViT-S, which is MoCo v3's
    ),
    Layout("mmselfsup", _BACKBONE, (r"^(?:neck|data_preprocessor|encoder_k)\.",)),
    *_lightly_dino(),
    Layout("lightly", _BACKBONE, (r"^backbone\.0\.weight$",), renames=_FLAT_SEQUENTIAL),
    Layout("lightly", _BACKBONE, (r"^(?:projection|prediction)_head|^backbone_momentum\.",)),
    *_stable_pretraining(),
    Layout("transformers", r"(?:resnet\.)?", (r"embedder\.embedder\.",), "", _TRANSFORMERS_RESNET),
    Layout("transformers", r"(?:vit\.)?", (_VIT_MARK,), "", _TRANSFORMERS_VIT, _VIT_LEFT_OUT),
    Layout(
        "detectron2",
        r"(?:backbone\.)?(?:bottom_up\.)?",
        (r"(?:^|\.)res2\.0\.conv1\.norm\.",),
        renames=_DETECTRON2,
        left_out=rf"{_CLASSIFIER}|^(?:fpn_|proposal_generator|roi_heads|pixel_)",
        note=(
            "Read as a network of torchvision's kind, which sees red-green-blue pixels and strides "
            "in its 3x3 convolutions, as `diptych export --format detectron2` writes it. One that "
            "was trained from detectron2's own MSRA weights sees blue-green-red pixels from 0 to "
            "255 and strides in its 1x1 convolutions: its features would be wrong here."
        ),
    ),
    Layout(
        "efficientnet_lite_pytorch",
        marks=(r"^_conv_stem\.",),
        renames=tuple(_efficientnet_lite()),
        settings={
            "encoder": {"name": "tf_efficientnet_lite0"},
            "views": {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.5, 0.5, 0.5)},
        },
    ),
    Layout("a backbone beside heads", r"(?:model\.)?(?:backbone|encoder|convnet|network|net|f)\."),
    Layout("a Sequential of a ResNet", marks=(r"^0\.weight$",), renames=_FLAT_SEQUENTIAL),
    # Also of diptych's own encoders, whose features may be whitened.
    Layout("torchvision or timm", left_out=rf"{_CLASSIFIER}|^fc_norm\.|^mask_token$|{_WHITENING}"),
)
"""In order: those that are recognised by more come first."""


@dataclass(frozen=True)
class Candidate:
    """The tensors of a file as one layout reads them.

    Attributes:
        layout: that it is read by.
        place: keys of the containers that they lie in.
        tensors: of the encoder, maybe with what is left out, by the encoder's names.
        others: names of what is not under the prefix.
    """

    layout: Layout
    place: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...]

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """What a run's settings must be for it, as far as its tensors show."""
        found = {name: dict(table) for name, table in self.layout.settings.items()}
        inferred = infer_encoder({name: one.shape for name, one in self.tensors.items()})
        if inferred.get("stem") == "small":
            inferred["stem"] = self.layout.small_stem
        if str(inferred.get("name", "")).startswith("vit_small_") and self.layout.small_vit_heads:
            inferred["attention_heads"] = self.layout.small_vit_heads
        return found | {"encoder": inferred | found.get("encoder", {})}

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor under the prefix is known not to be of the encoder."""
        return re.search(self.layout.left_out, name) is not None

    @property
    def words(self) -> str:
        """The layout, and the containers."""
        inside = f", in {'.'.join(self.place)}" if self.place else ""
        return f"the layout of {self.layout.name}{inside}"


def candidates(content: Mapping[str, Any]) -> Iterator[Candidate]:
    """The ways in which a file can be read, the likeliest first."""
    for place, state in _state_dicts(content):
        for layout in LAYOUTS:
            if (found := _read_as(layout, place, state)) is not None:
                yield found


def _state_dicts(
    content: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Mappings of names to tensors, below containers that are known, those inside first."""
    if len(place) < 6:
        for key in _CONTAINERS:
            if isinstance(inside := content.get(key), Mapping):
                yield from _state_dicts(inside, (*place, key))
    found = {
        re.sub(_WRAPPERS, "", name): one
        for name, one in content.items()
        if isinstance(name, str) and isinstance(one, Tensor)
    }
    if found:
        yield place, found


def _read_as(
    layout: Layout, place: tuple[str, ...], state: Mapping[str, Tensor]
) -> Candidate | None:
    """The state dict by a layout; None where it is not of that layout."""
    if not re.search(layout.within, ".".join(place)):
        return None
    if not all(any(re.search(mark, name) for name in state) for mark in layout.marks):
        return None
    prefix = re.compile(layout.prefix)
    tensors, others = dict[str, Tensor](), list[str]()
    for name, tensor in state.items():
        begin = prefix.match(name)
        if begin is None:
            others.append(name)
            continue
        inner = name[begin.end() :]
        for pattern, new in layout.renames:
            inner = re.sub(pattern, new, inner)
        tensors[inner] = tensor
    return Candidate(layout, place, _joined(tensors), tuple(others)) if tensors else None


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parts of a tensor, whose names end in ``[i]``, put together along the first axis."""
    whole = {n.rpartition("[")[0] for n in tensors if re.search(r"\[\d\]$", n)}
    for name in whole:
        parts = [tensors.pop(f"{name}[{i}]", None) for i in range(3)]
        dense = [p for p in parts if p is not None and p.layout == torch.strided and p.ndim]
        if len(dense) == 3 and len({(p.shape, p.dtype) for p in dense}) == 1:
            tensors[name] = torch.cat(dense)
    return tensors


def why_left_out(name: str) -> str:
    """Of a tensor beside the encoder.

    >>> why_left_out("encoder_k.conv1.weight"), why_left_out("fc.weight")
    ('the momentum copy', 'a classifier or head')
    """
    return next(
        (why for pattern, why in _REASONS if re.search(pattern, name)), "not of the encoder"
    )
