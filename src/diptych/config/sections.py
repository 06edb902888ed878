"""Every setting of a run, as frozen dataclasses with units in the names. Imports no torch.

A config is never changed after it is made. What follows from it (a peak learning rate, a number of
steps) is a function elsewhere. The docstrings under the fields are the help texts of the flags.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Final, Literal

from diptych.config.operations import Center, Crop
from diptych.config.policies import Policy, branches, parse_policy
from diptych.errors import ConfigError

SMALL_AREA = (0.05, 0.14)  # of multi-crop's small views (SwAV, 2006.09882)

MOST_CHANNELS: Final = 64
"""Of an image, with images.color = "raw"."""

MOST_SIDE_PIXELS: Final = 4096
"""Of a view."""

OWN: Final = "own"
"""Stands for what was given in Python: as encoder.name, method.kind or method.loss.kind."""

_NO_STORES: Final = ("http:", "https:", "file:", "local:")  # of URLs that checkpoints may have


def _require(holds: bool, wanted: str, came: object) -> None:
    if not holds:
        raise ConfigError(f"{wanted}; got {came!r}.")


def _require_finite(section: str, config: object, *, but: tuple[str, ...] = ()) -> None:
    """Refuses what is no number, and infinity except where it means something."""
    for one in fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, one.name), f"{section}.{one.name}"
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                endless = one.name in but and number > 0
                _require(endless, f"{name} must be a finite number", value)


def _require_range(name: str, bounds: tuple[float, float], lowest: float) -> None:
    ordered = lowest < bounds[0] <= bounds[1] and math.isfinite(bounds[1])
    _require(ordered, f"{name} must be (low, high) with {lowest} < low <= high", bounds)


def _require_probability(name: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, f"{name} must lie between 0 and 1", value)


@dataclass(frozen=True)
class ImagesConfig:
    """Where images come from and which of them may be used."""

    path: str = ""
    """A folder of images, a .txt list of their paths, .tar shards (a file, a folder of them or a
    pattern as `shards/{000..012}.tar`), .parquet files, a folder saved by Hugging Face's datasets,
    a .npz, .npy or IDX file, a URL of one of these, `torchvision:NAME`, or the name
    `photographs`."""
    limit: int | None = None
    """Use a random subset of this many images. All of them when not given."""
    column: str | None = None
    """Of Parquet files and Hugging Face data sets: the column with the images. `image`, `img`,
    `jpg`, `png` or the only one that could be when not given."""
    group_by: str | None = None
    """Take the second view from another image of the same group: `folder` (the folder that an
    image lies in), `folder:2` (its second folder level), `name:PATTERN` (the first parenthesis of a
    regular expression in the file's name) or `FILE.csv:COLUMN` (a table with a `name` column)."""
    color: Literal["rgb", "gray", "raw"] = "rgb"
    """The channels that the encoder sees. `rgb` and `gray` convert every image; `raw` keeps the
    channels of the files, which must agree: that most of the first 64 images have."""
    raw_channels: int | None = None
    """Of `raw`: channels of the images; found when they are opened."""
    bits: Literal[8, 16] = 8
    """Depth of the pixels in memory: 8 reduces deeper files, 16 keeps them and widens the rest."""
    max_megapixels: float = 80.0
    """A larger image is skipped and listed before it is decoded."""
    jpeg_side: int | None = None
    """Decode a JPEG at a half, a quarter or an eighth of its size where its shorter side keeps at
    least this many pixels. A new run takes what its smallest crops need; in full when not given."""
    max_unreadable_share: float = 0.1
    """Stop before training when more than this share of the images is unreadable."""
    cache: Literal["auto", "memory", "file", "none"] = "auto"
    """Where decoded images are kept: in `memory`, in one `file` on disk, or nowhere (`none`), that
    is, decoded at every use. `auto`: in memory if they fit, else small ones in a file."""
    cache_megabytes: int = 2048
    """Most memory that decoded images may take; where they need more they are not kept in it."""
    cache_file_megabytes: int = 20_000
    """Most disk that a file of decoded images may take; it never takes more than half of what is
    free."""
    cache_folder: str | None = None
    """Where files of decoded images lie: `$XDG_CACHE_HOME/diptych` or `~/.cache/diptych` when not
    given. They may be deleted at any time that no run uses them."""

    def __post_init__(self) -> None:
        _require_finite("images", self, but=("max_megapixels",))
        _require(self.limit is None or self.limit > 0, "images.limit must be positive", self.limit)
        _require(
            self.max_megapixels > 0, "images.max_megapixels must be positive", self.max_megapixels
        )
        _require(
            "://" not in (self.cache_folder or ""),
            "images.cache_folder must be a path on this machine",
            self.cache_folder,
        )
        _require(
            self.jpeg_side is None or self.jpeg_side > 0,
            "images.jpeg_side must be positive",
            self.jpeg_side,
        )
        _require_probability("images.max_unreadable_share", self.max_unreadable_share)
        _require(
            self.cache_megabytes >= 0,
            "images.cache_megabytes must not be negative",
            self.cache_megabytes,
        )
        _require(
            self.cache_file_megabytes >= 0,
            "images.cache_file_megabytes must not be negative",
            self.cache_file_megabytes,
        )
        _require(
            self.raw_channels is None or 1 <= self.raw_channels <= MOST_CHANNELS,
            f"images.raw_channels must lie between 1 and {MOST_CHANNELS}",
            self.raw_channels,
        )

    @property
    def channels(self) -> int:
        """Number of channels of a view.

        Raises:
            ConfigError: they are the files' own, and nobody has looked into the files yet.
        """
        if self.color == "raw":
            if self.raw_channels is None:
                raise ConfigError(
                    "images.color = 'raw' has as many channels as the images, which are not open "
                    "yet; open them first, or set images.raw_channels."
                )
            return self.raw_channels
        return 3 if self.color == "rgb" else 1


@dataclass(frozen=True)
class ViewsConfig:
    """What may be done to an image to make a view (SimCLR, appendix A; MoCo v2, section 3)."""

    side_pixels: int = 32
    """Height and width of a view."""
    policy: str = "moco_v2"
    """What a view goes through: a preset (moco_v1, moco_v2, moco_v3, simclr, simclr_cifar,
    simclr_v2, identity) or operations in order, as `crop(area=0.2..1) + flip + color(0.8)`; the
    first number is the probability. docs/views.md lists them."""
    second: str | None = None
    """The same for the other branch, every second view of an image. As `policy` when not given."""
    strength: float = 1.0
    """Multiplies the four changes of every `color` (SimCLR, section 3.2)."""
    small_views: int = 0
    """More views of each image, smaller ones of small parts, that are queries only (multi-crop)."""
    small_side_pixels: int | None = None
    """Height and width of a small view. Three sevenths of `side_pixels` when not given."""
    small_policy: str | None = None
    """Of the small views. `policy` with crops of 5 to 14% of the area when not given."""
    applier: Literal["auto", "cpu", "device"] = "auto"
    """Who makes the pixels: compiled loops on the `cpu`, or tensor operations on the training
    `device`. `auto` takes the device where it is a CUDA one."""
    threads: int | None = None
    """Threads that decode images and make views, any number with the same result. As
    `training.threads` when not given."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each channel of pixels in 0 .. 1; other numbers of channels than three use
    the mean of the three."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Each channel is divided by this; other numbers of channels use the mean of the three."""

    def __post_init__(self) -> None:
        _require_finite("views", self)
        _require(
            8 <= self.side_pixels <= MOST_SIDE_PIXELS,
            f"views.side_pixels must lie between 8 and {MOST_SIDE_PIXELS:,}",
            self.side_pixels,
        )
        _require(
            self.threads is None or self.threads > 0, "views.threads must be positive", self.threads
        )
        _require(
            0.0 <= self.strength <= 10.0,
            "views.strength must lie between 0 and 10",
            self.strength,
        )
        _require(
            0 <= self.small_views <= 16,
            "views.small_views must lie between 0 and 16",
            self.small_views,
        )
        _require(
            self.small_side_pixels is None or 8 <= self.small_side_pixels <= MOST_SIDE_PIXELS,
            f"views.small_side_pixels must lie between 8 and {MOST_SIDE_PIXELS:,}",
            self.small_side_pixels,
        )
        _require(min(self.pixel_std) > 0.0, "views.pixel_std must be positive", self.pixel_std)
        for name in ("policy", "second", "small_policy"):
            text = getattr(self, name)
            if text is not None:
                try:
                    parse_policy(text)
                except ConfigError as error:
                    raise ConfigError(f"views.{name}: {error}") from error

    @property
    def branches(self) -> tuple[Policy, Policy]:
        """What the views of either branch go through."""
        return branches(self.policy, self.second)

    @property
    def small_branch(self) -> Policy:
        """What the small views go through."""
        if self.small_policy is not None:
            return parse_policy(self.small_policy)
        first, *others = self.branches[0]
        assert isinstance(first, Crop | Center)  # as parse_policy sees to
        return (Crop(area=SMALL_AREA, interpolation=first.interpolation), *others)

    @property
    def image_side(self) -> int:
        """Shorter side, in pixels, of the smallest images of which no crop has to be enlarged.

        A crop of share a and aspect r of a square has sides of sqrt(a r) and sqrt(a / r) of it.
        """
        policies = [(self.side_pixels, policy) for policy in self.branches]
        if self.small_views:
            policies.append((self.small_side, self.small_branch))
        sides = [self.side_pixels * 8 / 7]  # of the five squares that images are evaluated by
        for side, policy in policies:
            for crop in (step for step in policy if isinstance(step, Crop)):
                low, high = crop.aspect
                sides.append(side / min(1.0, math.sqrt(crop.area[0] * min(low, 1 / high))))
        return math.ceil(max(sides))

    @property
    def small_side(self) -> int:
        """Height and width of a small view, in pixels."""
        return self.small_side_pixels or max(8, round(self.side_pixels * 3 / 7))


@dataclass(frozen=True)
class EncoderConfig:
    """The backbone whose features are kept."""

    name: str = "small_resnet"
    """`small_resnet` (diptych's own, for tiny images), or any network of torchvision or timm by its
    name there, as `resnet50` or `vit_small_patch16_224`; `timm:NAME` asks for timm's. `own` is a
    module that was given in Python."""
    width: int = 32
    """Channels of the first stage of `small_resnet`; each later stage doubles them."""
    stem_stride: int = 2
    """Stride of the stem of `small_resnet`: 2 is four times cheaper, 1 keeps the finest detail."""
    stage_blocks: tuple[int, ...] = (1, 1, 1)
    """Residual blocks in each stage of `small_resnet`."""
    stem: Literal["small", "imagenet"] = "small"
    """First layers of a ResNet: `small` is one 3x3 convolution, `imagenet` a strided 7x7 and a
    max-pool. Other networks have only their own, `imagenet`."""
    width_multiplier: int = 1
    """Of resnet18 to resnet152: all channels times this (SimCLR's 2x and 4x)."""
    selective_kernels: bool = False
    """Of resnet50 to resnet152: 3x3 convolutions that choose their kernel (SimCLR v2's SK)."""
    freeze_patches: bool = False
    """Of a vision transformer: the patch projection stays random (MoCo v3, section 4)."""

    def __post_init__(self) -> None:
        _require(self.width > 0, "encoder.width must be positive", self.width)
        _require(self.stem_stride in (1, 2), "encoder.stem_stride must be 1 or 2", self.stem_stride)
        _require(
            len(self.stage_blocks) > 0 and min(self.stage_blocks) > 0,
            "encoder.stage_blocks must list one positive number per stage",
            self.stage_blocks,
        )
        _require(
            1 <= self.width_multiplier <= 16,
            "encoder.width_multiplier must lie between 1 and 16",
            self.width_multiplier,
        )


@dataclass(frozen=True)
class NormConfig:
    """What the normalisation layers of encoder and head share statistics over."""

    kind: Literal["batch", "split", "shuffle", "sync", "layer", "group"] = "batch"
    """`batch`: the batch of this process. `split`: groups of images, as one group per device.
    `shuffle`: the same, the keys in other groups than their queries (MoCo, section 3.3). `sync`:
    the batches of all processes. `layer`, `group`: each image alone, over its channels."""
    images_per_group: int = 32
    """Of `split` and `shuffle`: consecutive images that share statistics; a smaller batch is one
    group."""
    channel_groups: int = 8
    """Of `group`: groups of channels, fewer where the channels do not divide by it."""

    def __post_init__(self) -> None:
        _require(
            self.images_per_group > 1,
            "norm.images_per_group must be 2 or more",
            self.images_per_group,
        )
        _require(
            self.channel_groups > 0, "norm.channel_groups must be positive", self.channel_groups
        )

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
    """Layers of a predictor on the queries' side only (MoCo v3 has 2); 0 is none."""

    def __post_init__(self) -> None:
        _require(0 <= self.layers <= 8, "head.layers must lie between 0 and 8", self.layers)
        _require(
            0 <= self.predictor_layers <= 8,
            "head.predictor_layers must lie between 0 and 8",
            self.predictor_layers,
        )
        _require(
            self.hidden_features is None or self.hidden_features > 0,
            "head.hidden_features must be positive",
            self.hidden_features,
        )
        _require(
            self.output_features > 1,
            "head.output_features must be 2 or more",
            self.output_features,
        )


@dataclass(frozen=True)
class DictionaryConfig:
    """The encoded keys that a query is compared with."""

    kind: Literal["batch", "queue", "bank"] = "batch"
    """`batch`: the other images of the batch, with gradients to the keys. `queue`: past keys.
    `bank`: one remembered key for each image."""
    both_views: bool = True
    """Of `batch`: a query meets all other views of the batch (SimCLR), not only the keys (MoCo's
    end-to-end mechanism)."""
    queue_size: int = 4096
    """Of `queue`: keys that it holds."""
    bank_negatives: int = 4096
    """Of `bank`: keys of other images drawn for each query at each step."""
    bank_momentum: float = 0.5
    """Of `bank`: share of its key that an image keeps when it is seen again."""
    bank_precision: Literal["fp32", "fp16"] = "fp32"
    """Of `bank`: numbers that its keys are kept in."""
    bank_placement: Literal["replicated", "sharded"] = "replicated"
    """Of `bank` where several processes train together: each holds all keys, or each holds those of
    its share of the images and asks the others for theirs, for a bank too large for one."""

    def __post_init__(self) -> None:
        _require_finite("method.dictionary", self)
        _require(
            self.queue_size > 0, "method.dictionary.queue_size must be positive", self.queue_size
        )
        _require(
            self.bank_negatives > 0,
            "method.dictionary.bank_negatives must be positive",
            self.bank_negatives,
        )
        _require_probability("method.dictionary.bank_momentum", self.bank_momentum)


@dataclass(frozen=True)
class KeyEncoderConfig:
    """The network that encodes the keys."""

    kind: Literal["shared", "momentum"] = "shared"
    """`shared`: the query encoder itself. `momentum`: a copy that follows it slowly (MoCo, eq.
    2)."""
    momentum: float = 0.999
    """Of `momentum`: share of itself that it keeps at each step; 0 is a plain copy of each step."""
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    """Of `momentum`: the momentum stays, or rises to 1 along half a cosine (MoCo v3, section 4)."""

    def __post_init__(self) -> None:
        _require_finite("method.key_encoder", self)
        _require_probability("method.key_encoder.momentum", self.momentum)


@dataclass(frozen=True)
class LossConfig:
    """How a match is scored."""

    kind: str = "info_nce"
    """`info_nce`: cross-entropy at the positive key (over all views of a batch it is NT-Xent).
    `decoupled`: the same without the positive in the denominator (DCL). `nt_logistic`, `triplet`:
    SimCLR's table 2. `supervised`: all images of the same class are keys (SupCon).
    `own`: a loss that was given in Python."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Compare directions only, or lengths too."""
    temperature: float = 0.2
    """Scores are divided by this."""
    learn_temperature: bool = False
    """Begin at `temperature` and learn it with the weights; never below 0.01."""
    margin: float = 0.8
    """Of `triplet`: how much higher than a negative's score the own key's must be; scores are
    cosines divided by the temperature."""
    semi_hard: bool = False
    """Of `nt_logistic` and `triplet`: each query learns from one negative only, the closest of
    those that are farther than its own key."""
    weight: float = 1.0
    """The gradient is multiplied by this; metrics show the plain loss."""

    def __post_init__(self) -> None:
        _require_finite("method.loss", self)
        _require(
            self.temperature >= 0.01,
            "method.loss.temperature must be 0.01 or more",
            self.temperature,
        )
        _require(self.margin > 0, "method.loss.margin must be positive", self.margin)
        _require(self.weight > 0, "method.loss.weight must be positive", self.weight)


@dataclass(frozen=True)
class MethodConfig:
    """Which dictionary, which key encoder, which loss: all that tells the methods apart."""

    kind: str = "contrastive"
    """`contrastive`, whose settings are the others of this section. `distillation` is chosen by
    `distillation.teacher`. `own` is a method that was given in Python."""
    views: int = 2
    """Views of each image. More than 2 go with the `batch` dictionary's both_views only."""
    symmetric: bool = False
    """Each view is the query once and the key once (MoCo v3). A batch's both_views always is."""
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    key_encoder: KeyEncoderConfig = field(default_factory=KeyEncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        _require(2 <= self.views <= 16, "method.views must lie between 2 and 16", self.views)


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    kind: Literal["sgd", "lars", "adamw"] = "sgd"
    """`sgd` with momentum, `lars`, which scales each layer's step to its weights, or `adamw`."""
    learning_rate: float = 0.03
    """Before scaling by the batch size; see `scaling`."""
    scaling: Literal["linear", "square_root", "none"] = "linear"
    """Peak rate: learning_rate x batch / 256, or learning_rate x sqrt(batch), or as given."""
    momentum: float = 0.9
    """Share of the last step that is kept; AdamW's first beta."""
    weight_decay: float = 1e-4
    """Pull of each weight towards zero: of matrices and kernels, never of norms, biases, tokens,
    position embeddings and layer scales (MoCo's published code pulls at all of them)."""
    lars_trust: float = 0.001
    """LARS: length of a layer's step as a share of the length of its weights."""
    adamw_beta: float = 0.999
    """AdamW's second beta: share of the mean squared gradient that is kept."""
    clip_norm: float | None = None
    """Longest gradient over all weights; longer ones are shortened to it. No bound if not given;
    `inf` bounds nothing and shows the length."""

    def __post_init__(self) -> None:
        _require_finite("optimizer", self, but=("clip_norm",))
        _require(
            self.learning_rate > 0, "optimizer.learning_rate must be positive", self.learning_rate
        )
        _require(
            0.0 <= self.momentum < 1.0,
            "optimizer.momentum must be at least 0 and below 1",
            self.momentum,
        )
        _require(
            self.weight_decay >= 0,
            "optimizer.weight_decay must not be negative",
            self.weight_decay,
        )
        _require(self.lars_trust > 0, "optimizer.lars_trust must be positive", self.lars_trust)
        _require(
            0.0 <= self.adamw_beta < 1.0,
            "optimizer.adamw_beta must be at least 0 and below 1",
            self.adamw_beta,
        )
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            "optimizer.clip_norm must be positive, or left out for no bound",
            self.clip_norm,
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes: a linear warm-up, then down in one way or another."""

    kind: Literal["cosine", "step", "constant"] = "cosine"
    """`cosine`: half a cosine down to zero. `step`: a drop at each of `drops`. `constant`."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from zero to its peak; never more than half the run."""
    drops: tuple[float, ...] = (0.6, 0.8)
    """Of `step`: shares of the run at which the rate drops (MoCo: epochs 120 and 160 of 200)."""
    drop_factor: float = 0.1
    """Of `step`: what is left of the rate after each drop."""

    def __post_init__(self) -> None:
        _require_finite("schedule", self)
        _require(
            self.warmup_epochs >= 0,
            "schedule.warmup_epochs must not be negative",
            self.warmup_epochs,
        )
        _require(
            all(0.0 < drop < 1.0 for drop in self.drops),
            "schedule.drops must lie between 0 and 1",
            self.drops,
        )
        _require(
            0.0 < self.drop_factor <= 1.0,
            "schedule.drop_factor must be above 0 and at most 1",
            self.drop_factor,
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how many at a time, and on what."""

    epochs: int = 10
    """Passes over the images."""
    batch_size: int = 256
    """Images in a batch, over all processes; each gives two views."""
    chunk_size: int | None = None
    """Images encoded at once in a process, if fewer than its part of the batch: the loss and
    gradients of the whole in the memory of a chunk, for about a third more time (cached gradients).
    Norms `batch` and `sync` see one chunk at a time. The whole batch when not given."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks run. `auto` takes an accelerator when there is one."""
    threads: int | None = None
    """CPU threads; all cores when not given. The same bits need the same number. The processes of
    one machine divide them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`bf16` and `fp16` run the networks under autocast; the loss stays in fp32. With `fp16` it is
    scaled, and steps whose gradients overflow are skipped."""
    recompute: Literal["none", "stages"] = "none"
    """What to compute again in the backward pass instead of keeping it: the inside of each of the
    encoder's `stages` (blocks, of a transformer). Less memory, for up to a third more time."""
    offload_activations: bool = False
    """Keep what the encoder's backward pass needs in the CPU's memory. Of accelerators only."""
    channels_last: bool = True
    """Lay tensors out with channels innermost, which is faster on most processors."""
    compile: bool = False
    """Run the networks through torch.compile."""
    peer_timeout_seconds: float = 600.0
    """Of several processes: how long one may keep the others waiting before they stop."""
    check_every_steps: int = 200
    """Of several processes: steps between two checks that all hold the same weights and keys."""
    begin_from: str | None = None
    """RUN or RUN@STEP: begin a new run with the settings of that run and the state of its newest
    checkpoint, or of the one after that step. What moves the weights may be set otherwise, as
    `optimizer.learning_rate`, `optimizer.clip_norm` and `schedule`."""

    def __post_init__(self) -> None:
        _require_finite("training", self)
        _require(self.epochs > 0, "training.epochs must be positive", self.epochs)
        _require(self.batch_size > 1, "training.batch_size must be 2 or more", self.batch_size)
        _require(
            self.chunk_size is None or self.chunk_size > 1,
            "training.chunk_size must be 2 or more, or left out for the whole batch",
            self.chunk_size,
        )
        _require(
            self.threads is None or self.threads > 0,
            "training.threads must be positive",
            self.threads,
        )
        _require(
            0 < self.peer_timeout_seconds <= 1e7,
            "training.peer_timeout_seconds must be positive, and at most 10 million",
            self.peer_timeout_seconds,
        )
        _require(
            self.check_every_steps > 0,
            "training.check_every_steps must be positive",
            self.check_every_steps,
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When and where a run is saved."""

    every_seconds: float = 120.0
    """Save at the first step that ends this long after the last save, once that is written; `inf`
    saves at the end and at a signal only."""
    keep: int = 2
    """Checkpoints kept; the oldest is deleted after a newer one is complete."""
    asynchronous: bool = True
    """Train on while a checkpoint is written. Holds a second copy of the state in memory."""
    folder: str | None = None
    """Where checkpoints lie, of this run alone: a path, or a URL as s3://bucket/run. By default the
    run folder's own checkpoints."""

    def __post_init__(self) -> None:
        _require_finite("checkpoint", self, but=("every_seconds",))
        _require(
            self.folder is None
            or (
                self.folder != ""
                and "::" not in self.folder
                and not self.folder.startswith(_NO_STORES)
            ),
            "checkpoint.folder must be a path, or a URL that can be written to, as s3://bucket/run",
            self.folder,
        )
        _require(
            self.every_seconds >= 0,
            "checkpoint.every_seconds must not be negative",
            self.every_seconds,
        )
        _require(self.keep > 0, "checkpoint.keep must be positive", self.keep)


@dataclass(frozen=True)
class ProbeConfig:
    """What is measured while training goes on."""

    log_every_steps: int = 10
    """Steps between two lines of metrics."""
    health_every_epochs: int = 1
    """Epochs between two measurements of health, and of kNN accuracy where labels exist."""
    images: int = 1024
    """Images used for each of these measurements, at most."""
    profile_steps: int | None = None
    """Trace so many steps with torch's profiler, after the first few of a sitting, and write
    `traces/rank-K.json` into the run folder. No trace when not given."""

    def __post_init__(self) -> None:
        _require(
            self.log_every_steps > 0,
            "probe.log_every_steps must be positive",
            self.log_every_steps,
        )
        _require(
            self.health_every_epochs > 0,
            "probe.health_every_epochs must be positive",
            self.health_every_epochs,
        )
        _require(self.images >= 16, "probe.images must be 16 or more", self.images)
        _require(
            self.profile_steps is None or self.profile_steps > 0,
            "probe.profile_steps must be positive, or left out for no trace",
            self.profile_steps,
        )


@dataclass(frozen=True)
class DistillationConfig:
    """Learning from a teacher's predictions instead of by contrast (SimCLR v2, section 2)."""

    teacher: str | None = None
    """A run folder: its encoder, with a linear classifier, is the teacher. No distillation when
    not given."""
    labelled: str | None = None
    """Labelled images to fit the teacher's classifier on. Those of the run when not given."""
    labelled_share: float = 1.0
    """Share of the labelled images used, the same of each class."""
    temperature: float = 1.0
    """The teacher's and the student's logits are divided by this."""

    def __post_init__(self) -> None:
        _require_finite("distillation", self)
        _require(
            0.0 < self.labelled_share <= 1.0,
            "distillation.labelled_share must be above 0 and at most 1",
            self.labelled_share,
        )
        _require(
            self.temperature > 0, "distillation.temperature must be positive", self.temperature
        )


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Written to `config.toml`, from which alone the run can be repeated."""

    recipe: str = "simclr"
    """The recipe that the settings started from."""
    scale: str = "tiny"
    """The scale that the settings started from."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed must lie between 0 and 2^63 - 1", self.seed)

    @property
    def method_name(self) -> str:
        """Which of ``methods.build.METHODS`` trains the network."""
        return self.method.kind if self.distillation.teacher is None else "distillation"

    @property
    def has_projection_head(self) -> bool:
        """Whether the head projects what is contrasted; other methods have heads of their own."""
        return self.method_name == "contrastive"


def norm_of_batch(config: RunConfig) -> NormConfig:
    """The norm of a run; a batch that is smaller than a group of images is one group."""
    group = min(config.norm.images_per_group, config.training.batch_size)
    return replace(config.norm, images_per_group=group)


def require_consistent(config: RunConfig) -> None:
    """Refuses settings that are right by themselves and do not go together.

    Not part of the configs themselves: while a file and flags are laid over a recipe one by one,
    some of them do not fit yet. What the loss needs, ``methods.losses`` knows.

    Raises:
        ConfigError: names the settings, and says which would go together.
    """
    _require(
        config.encoder.name != "small_resnet" or config.encoder.stem == "small",
        "small_resnet has the small stem only; set encoder.stem = 'small'",
        config.encoder.stem,
    )
    _require_consistent_method(config)
    _require_consistent_batch(config)
    _require_consistent_memory(config.training)
    if config.method_name == "distillation":
        _require(
            config.method.kind in ("contrastive", "distillation"),
            "distillation.teacher makes the method 'distillation': leave out method.kind",
            config.method.kind,
        )
        _require(
            config.distillation.teacher is not None,
            "method.kind = 'distillation' needs distillation.teacher, a run folder",
            config.distillation.teacher,
        )
        _require(
            config.training.chunk_size is None,
            "distillation has no cached gradients, as it compares no images: leave out "
            "training.chunk_size and take a smaller training.batch_size",
            config.training.chunk_size,
        )
        _require(
            config.views.small_views == 0,
            "distillation takes views of one size: leave out views.small_views",
            config.views.small_views,
        )


def require_equal_parts(batch: int, processes: int) -> None:
    """Refuses a batch that several processes cannot share equally, two images each at least.

    Raises:
        ConfigError: says which sizes would do.
    """
    lower, upper = batch // processes * processes, -(-batch // processes) * processes
    sizes = sorted({size for size in (lower, upper) if size >= 2 * processes})
    fitting = " or ".join(map(str, sizes or [2 * processes]))
    _require(
        batch % processes == 0 and batch >= 2 * processes,
        f"training.batch_size is the batch of all {processes} processes, which share it equally, "
        f"two images each at least; use {fitting}, or another number of processes",
        batch,
    )


def require_divisible(config: RunConfig, processes: int) -> None:
    """Refuses a batch of which several processes cannot have equal parts, or parts of another kind.

    Raises:
        ConfigError: says which sizes would do.
    """
    batch = config.training.batch_size
    require_equal_parts(batch, processes)
    share, group = batch // processes, min(config.norm.images_per_group, batch)
    _require(
        not config.norm.is_grouped or share % group == 0,
        f"norm.kind = {config.norm.kind!r} needs the {share} images of each of {processes} "
        "processes to be whole groups of norm.images_per_group; use a divisor of that, or fewer "
        "processes",
        group,
    )
    chunk = config.training.chunk_size
    _require(
        chunk is None or chunk >= share or share % chunk == 0,
        f"training.chunk_size must divide the {share} images of each of {processes} processes",
        chunk,
    )


def _require_consistent_method(config: RunConfig) -> None:
    method, dictionary = config.method, config.method.dictionary
    end_to_end = dictionary.kind == "batch" and method.key_encoder.kind == "shared"
    queries_are_keys = end_to_end and dictionary.both_views
    grouped = config.images.group_by is not None
    _require(
        method.views == 2 or queries_are_keys,
        "method.views above 2 go with the dictionary 'batch', both_views and a shared encoder",
        method.views,
    )
    _require(
        dictionary.kind != "bank" or method.key_encoder.kind == "shared",
        "a bank remembers keys and encodes none: set method.key_encoder.kind = 'shared'",
        method.key_encoder.kind,
    )
    _require(
        dictionary.kind != "batch" or not dictionary.both_views or end_to_end,
        "method.dictionary.both_views lets every view be a key, which needs the key encoder "
        "'shared'; with a momentum encoder, set method.dictionary.both_views = false",
        method.key_encoder.kind,
    )
    _require(
        not queries_are_keys or config.head.predictor_layers == 0,
        "head.predictor_layers stands on the queries' side only, and here every query is a key; "
        "set it to 0, or method.dictionary.both_views = false",
        config.head.predictor_layers,
    )
    _require(
        not grouped or dictionary.kind != "bank" or method.symmetric,
        "images.group_by pairs a query with another image, and a bank with its own key: set "
        "method.symmetric = true, so that both images are queries, or choose another dictionary",
        config.images.group_by,
    )


def _require_consistent_batch(config: RunConfig) -> None:
    batch, chunk = config.training.batch_size, config.training.chunk_size
    group = config.norm.images_per_group
    if config.norm.is_grouped:
        # A batch smaller than a group is one group; a chunk has to hold whole ones.
        wanted = f"norm.kind = {config.norm.kind!r} needs {{}} to be a multiple of "
        wanted += f"norm.images_per_group = {group}"
        _require(batch <= group or batch % group == 0, wanted.format("training.batch_size"), batch)
        _require(
            chunk is None or chunk >= batch or chunk % min(group, batch) == 0,
            wanted.format("training.chunk_size"),
            chunk,
        )
    if chunk is not None and chunk < batch:
        _require(
            batch % chunk == 0,
            f"training.chunk_size must divide training.batch_size = {batch}",
            chunk,
        )
        _require(
            not config.training.compile,
            "training.compile and training.chunk_size do not go together, as each chunk would be "
            "compiled anew; leave one of them out",
            chunk,
        )


def _require_consistent_memory(training: TrainingConfig) -> None:
    _require(
        not training.compile or training.recompute == "none",
        "training.compile decides by itself what to compute again; leave out training.recompute",
        training.recompute,
    )
    _require(
        not training.compile or not training.offload_activations,
        "training.compile and training.offload_activations do not go together; leave one out",
        training.offload_activations,
    )
