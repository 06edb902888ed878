"""Every setting of a run, as frozen dataclasses with units in the names. Imports no torch.

A config is never changed after it is made. What follows from it (a peak learning rate, a number of
steps) is a function elsewhere. The docstrings under the fields are the help texts of the flags.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from diptych.errors import ConfigError


def _require(holds: bool, wanted: str, came: object) -> None:
    if not holds:
        raise ConfigError(f"{wanted}; got {came!r}.")


def _require_range(name: str, bounds: tuple[float, float], lowest: float) -> None:
    ordered = lowest < bounds[0] <= bounds[1] and math.isfinite(bounds[1])
    _require(ordered, f"{name} must be (low, high) with {lowest} < low <= high", bounds)


def _require_probability(name: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, f"{name} must lie between 0 and 1", value)


@dataclass(frozen=True)
class ImagesConfig:
    """Where images come from and which of them may be used."""

    path: str = ""
    """A folder of images, a .npz, .npy or IDX file, or the name `photographs`."""
    limit: int | None = None
    """Use a random subset of this many images. All of them when not given."""
    color: Literal["rgb", "gray"] = "rgb"
    """The channels that the encoder sees; every image is converted."""
    max_megapixels: float = 80.0
    """A larger image is skipped and listed before it is decoded."""
    max_unreadable_share: float = 0.1
    """Stop before training when more than this share of the images is unreadable."""
    cache_megabytes: int = 2048
    """Keep the decoded images in memory when they fit in this much; else decode at every use."""

    def __post_init__(self) -> None:
        _require(self.limit is None or self.limit > 0, "images.limit must be positive", self.limit)
        _require(
            self.max_megapixels > 0, "images.max_megapixels must be positive", self.max_megapixels
        )
        _require_probability("images.max_unreadable_share", self.max_unreadable_share)
        _require(
            self.cache_megabytes >= 0,
            "images.cache_megabytes must not be negative",
            self.cache_megabytes,
        )

    @property
    def channels(self) -> int:
        """Number of channels of a view."""
        return 3 if self.color == "rgb" else 1


@dataclass(frozen=True)
class ViewsConfig:
    """What may be done to an image to make a view (SimCLR, appendix A; MoCo v2, section 3)."""

    side_pixels: int = 32
    """Height and width of a view."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a crop may cover."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop."""
    flip_probability: float = 0.5
    """Chance of a left-right flip."""
    jitter_probability: float = 0.8
    """Chance that brightness, contrast, saturation and hue change, in random order."""
    brightness: float = 0.4
    """Largest change of brightness: the factor lies in 1 - x .. 1 + x."""
    contrast: float = 0.4
    """Largest change of contrast."""
    saturation: float = 0.4
    """Largest change of saturation."""
    hue: float = 0.1
    """Largest shift of hue, as a share of the colour circle (at most 0.5)."""
    gray_probability: float = 0.2
    """Chance that all colour is dropped."""
    blur_probability: float = 0.5
    """Chance of a Gaussian blur."""
    blur_kernel_share: float = 0.1
    """Width of the blur's kernel as a share of the side, made odd."""
    blur_sigma_pixels: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each channel of pixels in 0 .. 1; gray uses the mean of the three."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Each channel is divided by this; gray uses the mean of the three."""

    def __post_init__(self) -> None:
        _require(self.side_pixels >= 8, "views.side_pixels must be 8 or more", self.side_pixels)
        _require_range("views.crop_area", self.crop_area, 0.0)
        _require(self.crop_area[1] <= 1.0, "views.crop_area ends at 1 at most", self.crop_area)
        _require_range("views.crop_aspect", self.crop_aspect, 0.0)
        _require_range("views.blur_sigma_pixels", self.blur_sigma_pixels, 0.0)
        for name in ("flip", "jitter", "gray", "blur"):
            _require_probability(f"views.{name}_probability", getattr(self, f"{name}_probability"))
        for name in ("brightness", "contrast", "saturation"):
            _require(
                0.0 <= getattr(self, name) <= 10.0,
                f"views.{name} must lie between 0 and 10",
                getattr(self, name),
            )
        _require(0.0 <= self.hue <= 0.5, "views.hue must lie between 0 and 0.5", self.hue)
        _require(
            0.0 < self.blur_kernel_share <= 0.5,
            "views.blur_kernel_share must lie between 0 and 0.5",
            self.blur_kernel_share,
        )
        _require(min(self.pixel_std) > 0.0, "views.pixel_std must be positive", self.pixel_std)

    @property
    def blur_kernel_pixels(self) -> int:
        """Width of the blur's kernel in pixels; odd."""
        return int(self.blur_kernel_share * self.side_pixels) // 2 * 2 + 1


@dataclass(frozen=True)
class EncoderConfig:
    """The backbone whose features are kept."""

    name: str = "small_resnet"
    """`small_resnet` (diptych's own, for tiny images) or a ResNet of torchvision, as `resnet18`."""
    width: int = 32
    """Channels of the first stage of `small_resnet`; each later stage doubles them."""
    stem_stride: int = 2
    """Stride of the stem of `small_resnet`: 2 is four times cheaper, 1 keeps the finest detail."""
    stage_blocks: tuple[int, ...] = (1, 1, 1)
    """Residual blocks in each stage of `small_resnet`."""
    stem: Literal["small", "imagenet"] = "small"
    """First layers: `small` is one 3x3 convolution, `imagenet` a strided 7x7 and a max-pool."""

    def __post_init__(self) -> None:
        _require(self.width > 0, "encoder.width must be positive", self.width)
        _require(self.stem_stride in (1, 2), "encoder.stem_stride must be 1 or 2", self.stem_stride)
        _require(
            len(self.stage_blocks) > 0 and min(self.stage_blocks) > 0,
            "encoder.stage_blocks must list one positive number per stage",
            self.stage_blocks,
        )
        _require(
            self.name != "small_resnet" or self.stem == "small",
            "small_resnet has the small stem only; set encoder.stem = 'small'",
            self.stem,
        )


@dataclass(frozen=True)
class HeadConfig:
    """The projection head g: an MLP with one hidden layer, used in training only."""

    hidden_features: int = 128
    """Width of the hidden layer."""
    output_features: int = 128
    """Width of the projection that the loss sees."""
    batch_norm: bool = False
    """Normalise the hidden layer (SimCLR's published code does, MoCo v2 does not)."""

    def __post_init__(self) -> None:
        _require(
            self.hidden_features > 0, "head.hidden_features must be positive", self.hidden_features
        )
        _require(
            self.output_features > 1,
            "head.output_features must be 2 or more",
            self.output_features,
        )


@dataclass(frozen=True)
class DictionaryConfig:
    """The encoded keys that a query is compared with."""

    kind: Literal["batch", "queue"] = "batch"
    """`batch`: the other images of the batch, with gradients to the keys. `queue`: past keys."""
    queue_size: int = 4096
    """Keys that the queue holds. Not used by `batch`."""

    def __post_init__(self) -> None:
        _require(self.queue_size > 0, "method.dictionary.queue_size must be positive", self)


@dataclass(frozen=True)
class KeyEncoderConfig:
    """The network that encodes the keys."""

    kind: Literal["shared", "twin"] = "shared"
    """`shared`: the query encoder itself. `twin`: a copy that follows it slowly (MoCo, eq. 2)."""
    momentum: float = 0.999
    """Share of itself that the twin keeps at each step. Not used by `shared`."""

    def __post_init__(self) -> None:
        _require_probability("method.key_encoder.momentum", self.momentum)


@dataclass(frozen=True)
class LossConfig:
    """How a match is scored: cross-entropy over cosines divided by the temperature."""

    temperature: float = 0.2
    """Cosines are divided by this before the softmax."""

    def __post_init__(self) -> None:
        _require(self.temperature > 0, "method.loss.temperature must be positive", self.temperature)


@dataclass(frozen=True)
class MethodConfig:
    """Which dictionary, which key encoder, which loss: all that tells the methods apart."""

    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    key_encoder: KeyEncoderConfig = field(default_factory=KeyEncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        pair = (self.dictionary.kind, self.key_encoder.kind)
        _require(
            pair in {("batch", "shared"), ("queue", "twin")},
            "method.dictionary.kind and method.key_encoder.kind must be 'batch' with 'shared' "
            "(SimCLR) or 'queue' with 'twin' (MoCo)",
            pair,
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    kind: Literal["sgd", "lars"] = "sgd"
    """`sgd` with momentum, or `lars`, which scales each layer's step to its weights."""
    learning_rate: float = 0.03
    """Before scaling by the batch size; see `scaling`."""
    scaling: Literal["linear", "square_root", "none"] = "linear"
    """Peak rate: learning_rate x batch / 256, or learning_rate x sqrt(batch), or as given."""
    momentum: float = 0.9
    """Share of the last step that is kept."""
    weight_decay: float = 1e-4
    """Pull of each weight towards zero; never on norms and biases."""
    lars_trust: float = 0.001
    """LARS: length of a layer's step as a share of the length of its weights."""
    clip_norm: float | None = None
    """Longest gradient over all weights; longer ones are shortened to it. No bound if not given."""

    def __post_init__(self) -> None:
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
            self.clip_norm is None or self.clip_norm > 0,
            "optimizer.clip_norm must be positive, or left out for no bound",
            self.clip_norm,
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes: a linear warm-up, then half a cosine down to zero."""

    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from zero to its peak; never more than half the run."""

    def __post_init__(self) -> None:
        _require(
            self.warmup_epochs >= 0,
            "schedule.warmup_epochs must not be negative",
            self.warmup_epochs,
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how many at a time, and on what."""

    epochs: int = 10
    """Passes over the images."""
    batch_size: int = 256
    """Images in a batch; each gives two views."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks run. `auto` takes an accelerator when there is one."""
    threads: int | None = None
    """CPU threads; all cores when not given. The same bits need the same number."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` runs the networks under autocast; the loss stays in fp32."""
    channels_last: bool = True
    """Lay tensors out with channels innermost, which is faster on most processors."""
    compile: bool = False
    """Run the networks through torch.compile."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "training.epochs must be positive", self.epochs)
        _require(self.batch_size > 1, "training.batch_size must be 2 or more", self.batch_size)
        _require(
            self.threads is None or self.threads > 0,
            "training.threads must be positive",
            self.threads,
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved."""

    every_seconds: float = 120.0
    """Save at the first step that ends this long after the last save."""
    keep: int = 2
    """Checkpoints kept; the oldest is deleted after a newer one is complete."""

    def __post_init__(self) -> None:
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
    head: HeadConfig = field(default_factory=HeadConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed must lie between 0 and 2^63 - 1", self.seed)
