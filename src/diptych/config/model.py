"""The network: encoder, normalisation, projection head."""

from dataclasses import dataclass, field
from typing import Literal

from diptych.config.checks import Checks


@dataclass(frozen=True)
class EncoderConfig:
    """The backbone whose features are kept."""

    name: str = "small_resnet"
    """`small_resnet`, or any network of torchvision or timm; diptych's own is for tiny images, the
    others have their names there, as `resnet50` or `vit_small_patch16_224`, and `timm:NAME` asks
    for timm's. `own` is a module that was given in Python."""
    width: int = 32
    """Channels of the first stage of `small_resnet`; each later stage doubles them."""
    stem_stride: int = 2
    """Stride of the stem of `small_resnet`: 2 is four times cheaper, 1 keeps the finest detail."""
    stage_blocks: tuple[int, ...] = (1, 1, 1)
    """Residual blocks in each stage of `small_resnet`."""
    stem: Literal["small", "small_padded", "imagenet"] = "small"
    """First layers of a ResNet: `small` is one 3x3 convolution, `small_padded` the same with a
    border of two pixels, as solo-learn has it, `imagenet` a strided 7x7 and a max-pool. Other
    networks have only their own, `imagenet`."""
    pool: int = 1
    """Of `small_resnet` and torchvision's ResNets: the last maps are averaged in this many cells
    along each side, and the features of all cells are kept. 1 is one average of the whole image; 2
    tells in which quarter something is, with four times the features. A run without a scale gives
    `small_resnet` 4, or fewer where they would be more than 2,048 features."""
    width_multiplier: int = 1
    """Of resnet18 to resnet152: all channels times this (SimCLR's 2x and 4x)."""
    selective_kernels: bool = False
    """Of resnet50 to resnet152: 3x3 convolutions that choose their kernel (SimCLR v2's SK)."""
    attention_heads: int | None = None
    """Of timm's vision transformers: heads of each attention, where there are others than the
    network's own. MoCo v3's `vit_small_patch16_224` has 12, timm's 6."""
    freeze_patches: bool = False
    """Of a vision transformer: the patch projection stays random (MoCo v3, section 4)."""
    weights: str | None = None
    """Weights to begin from: a file of another library or of diptych, a run folder,
    `local-dir:FOLDER` (timm's layout), `hf-hub:NAME`, or `pretrained` or `pretrained:TAG`, which
    torchvision or timm fetch. Random ones when not given; docs/weights.md says more."""
    frozen_parts: int = 0
    """Parts of the encoder, from the input on, that do not train: the stem is the first, then come
    stages, of a transformer blocks. Their batch norms keep their statistics and use them."""
    frozen_epochs: float | None = None
    """Epochs for which `frozen_parts` holds, from the start of the run; all when not given."""
    batch_statistics: Literal["batch", "start"] = "batch"
    """What the encoder's batch norms normalise by in training: the statistics of the batch, as
    `norm` says, or those that came with `weights`, which then never change."""

    def __post_init__(self) -> None:
        check = Checks("encoder", self)
        check.positive("width")
        check.must("stem_stride", lambda stride: stride in (1, 2), "be 1 or 2")
        check.must(
            "stage_blocks",
            lambda blocks: len(blocks) > 0 and min(blocks) > 0,
            "list one positive number per stage",
        )
        check.between(1, 8, "pool")
        check.between(1, 16, "width_multiplier")
        check.positive("attention_heads")
        check.finite()
        check.not_negative("frozen_parts")
        check.positive("frozen_epochs")
        check.must("weights", lambda text: text != "", "name a file, a run folder or `pretrained`")


@dataclass(frozen=True)
class GroupNormConfig:
    """Of the norm `group`."""

    channel_groups: int = 8
    """Groups of channels, fewer where the channels do not divide by it."""

    def __post_init__(self) -> None:
        Checks("norm.group", self).positive("channel_groups")


@dataclass(frozen=True)
class NormConfig:
    """What the normalisation layers of encoder and head share statistics over."""

    kind: Literal["batch", "split", "shuffle", "sync", "layer", "group"] = "batch"
    """The images over which norms share statistics. `batch`: the batch of this process. `split`:
    groups of images, as one group per device. `shuffle`: the same, the keys in other groups than
    their queries (MoCo, section 3.3). `sync`: the batches of all processes. `layer`, `group`: each
    image alone, over its channels."""
    images_per_group: int = 32
    """Of `split` and `shuffle`: consecutive images that share statistics; a smaller batch is one
    group."""
    group: GroupNormConfig = field(default_factory=GroupNormConfig)

    def __post_init__(self) -> None:
        Checks("norm", self).at_least(2, "images_per_group")

    @property
    def is_grouped(self) -> bool:
        """Whether groups of images inside one batch share statistics."""
        return self.kind in ("split", "shuffle")

    @property
    def is_per_image(self) -> bool:
        """Whether an image's output depends on that image alone."""
        return self.kind in ("layer", "group")


@dataclass(frozen=True)
class HeadConfig:
    """The projection head g, used in training only, and the predictor behind it."""

    layers: int = 2
    """Linear layers: 0 is no head, 1 a linear one, 2 and more an MLP (SimCLR v2 has 3)."""
    hidden_features: int | None = None
    """Width of the hidden layers; if not given that of what goes in, so of a head the encoder's
    features, as in the published code of SimCLR and MoCo v2."""
    output_features: int = 128
    """Width of the projection that the loss sees."""
    batch_norm: bool = False
    """Normalise the hidden layers (SimCLR's published code does, MoCo v2 does not)."""
    output_norm: bool = False
    """Normalise the projection as well, without scale and shift (MoCo v3)."""
    predictor_layers: int = 0
    """Layers of a predictor on the queries' side only (MoCo v3, BYOL and SimSiam have 2); 0 is
    none."""
    predictor_hidden_features: int | None = None
    """Width of the predictor's hidden layers; if not given `hidden_features`. SimSiam's is a
    quarter of the projection."""
    predictor_output_norm: bool | None = None
    """Normalise the prediction as well; if not given as `output_norm` says (BYOL and SimSiam do
    not)."""

    def __post_init__(self) -> None:
        check = Checks("head", self)
        check.between(0, 8, "layers", "predictor_layers")
        check.positive("hidden_features", "predictor_hidden_features")
        check.at_least(2, "output_features")
