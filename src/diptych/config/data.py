"""What is learned from: images, and the views made of them.

Like every section of a run (in this folder, one file for those that belong together) they are
frozen dataclasses with units in their names, and import no torch. What follows from them (a peak
learning rate, a number of steps) is a function elsewhere. The docstrings under the fields are the
help texts of the flags, and docs/settings.md.
"""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from diptych.config.checks import Checks
from diptych.config.policies import Center, Crop, Policy, branches, parse_policy
from diptych.errors import ConfigError

SMALL_AREA: Final = (0.05, 0.14)  # of multi-crop's small views (SwAV, 2006.09882)

MOST_CHANNELS: Final = 64
"""Of an image, with images.color = "raw"."""

MOST_WINDOWS: Final = 8
"""Of a photograph, along each side."""

MOST_SIDE_PIXELS: Final = 4096
"""Of a view."""


OF_SOURCE: Final = ("column", "exclude", "pages", "video_seconds")
"""Settings of ``ImagesConfig`` by which the same path holds other images."""


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
    `jpg`, `png` or the only one that could be when not given. Of tar shards: which file of a sample
    is its image, by what follows the first dot of its name, as `jpg` or `left.png`."""
    exclude: tuple[str, ...] = ()
    """Leave out what these patterns match, as `*_mask.png`, `backup` or `raw/2019*`: names of files
    and folders, or their paths from the folder that is given."""
    pages: Literal["first", "all"] = "first"
    """Of a file with several pictures (TIFF, GIF, animated WebP and PNG, DICOM): use the `first`,
    or `all`, each as an image of its own with the file's label."""
    video_seconds: float | None = None
    """Take videos too: a frame every so many seconds, each an image of its own with the file's
    label. Needs the extra `video`."""
    labels: str | None = None
    """Labels, which evaluation needs: `none` for none, or `FILE.csv:COLUMN`, a table with a `name`
    column (paths from the folder). When not given, what the images come with: the folders that they
    lie in, or what a table or archive says."""
    group_by: str | None = None
    """Take the second view from another image of the same group: `folder` (the folder that an
    image lies in), `folder:2` (its second folder level), `name:PATTERN` (the first parenthesis of a
    regular expression in the file's name) or `FILE.csv:COLUMN` (a table with a `name` column)."""
    group_within: float | None = None
    """Of `group_by`: the second view comes from an image of the group that is at most so far away
    in time. In seconds for frames of videos (`video_seconds`); otherwise in frames, by the last
    number in a name. From anywhere in the group when not given."""
    color: Literal["rgb", "gray", "raw"] = "rgb"
    """The channels that the encoder sees. `rgb` and `gray` convert every image; `raw` keeps the
    channels of the files, which must agree: that most of the first 64 images have."""
    raw_channels: int | None = None
    """Of `raw`: channels of the images; found when they are opened."""
    bits: Literal[8, 16] = 8
    """Depth of the pixels in memory: 8 reduces deeper files, 16 keeps them and widens the rest."""
    max_megapixels: float = 80.0
    """A larger image is skipped and listed before it is decoded."""
    decoded_side: int | None = None
    """Reduce images as they are decoded to a half, a quarter and so on of their size, as long as
    the shorter side keeps at least this many pixels. A new run takes what its smallest crops need;
    in full when not given."""
    max_unreadable_share: float = 0.1
    """Stop before training when more than this share of the images is unreadable."""
    windows: int = 1
    """Learn from n x n half-overlapping windows of each photograph, each an image of its own with
    the photograph's label; evaluation sees photographs whole. 1 is the whole photograph; chosen
    for few, large photographs when neither this nor a scale is given."""
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
        check = Checks("images", self)
        check.finite(but=("max_megapixels",))
        check.positive("limit", "max_megapixels", "decoded_side", "video_seconds", "group_within")
        check.not_negative("cache_megabytes", "cache_file_megabytes")
        check.between(0, 1, "max_unreadable_share")
        check.must(
            "labels",
            lambda text: text == "none" or ".csv:" in text.lower(),
            "be `none` or FILE.csv:COLUMN",
        )
        check.between(1, MOST_WINDOWS, "windows")
        check.between(1, MOST_CHANNELS, "raw_channels")
        check.must("cache_folder", lambda path: "://" not in path, "be a path on this machine")

    def at(self, path: str) -> "ImagesConfig":
        """The same for other images: all of them, with labels of their own."""
        labels = self.labels if path == self.path else None
        return replace(self, path=path, limit=None, labels=labels)

    @property
    def selection(self) -> tuple[object, ...]:
        """What is said of which pictures are images; empty where every file is one."""
        chosen = (self.exclude, self.pages, self.video_seconds)
        return () if chosen == ((), "first", None) else chosen

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
    """The operations that make a view: a preset (moco_v1, moco_v2, moco_v3, byol, simclr,
    simclr_cifar, simclr_v2, identity) or operations in order, as `crop(area=0.2..1) + flip +
    color(0.8)`; the first number is the probability. docs/views.md lists them."""
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
    early_side: float = 1.0
    """Side of the full-sized views in the first part of a run, as a share of `side_pixels`, to the
    nearest multiple of 8 pixels (progressive resizing): steps on smaller ones take less time. 1 is
    no such part."""
    early_share: float = 0.75
    """Of `early_side` below 1: how much of the steps that part has."""
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
        check = Checks("views", self)
        check.finite()
        check.positive("threads")
        check.between(8, MOST_SIDE_PIXELS, "side_pixels", "small_side_pixels")
        check.between(0, 10, "strength")
        check.between(0, 16, "small_views")
        check.must("early_side", lambda share: 0 < share <= 1, "be above 0 and at most 1")
        check.between(0, 1, "early_share")
        check.must("pixel_std", lambda std: min(std) > 0, "be positive")
        for name in ("policy", "second", "small_policy"):
            text = getattr(self, name)
            if text is not None:
                try:
                    parse_policy(text)
                except ConfigError as error:
                    raise ConfigError(f"views.{name}: {error}") from error

    @property
    def branches(self) -> tuple[Policy, Policy]:
        """The operations of either branch."""
        return branches(self.policy, self.second)

    @property
    def small_branch(self) -> Policy:
        """The operations of the small views."""
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
    def early_side_pixels(self) -> int:
        """Height and width of the full-sized views in the first part of a run.

        >>> ViewsConfig(side_pixels=32, early_side=0.7).early_side_pixels
        24
        """
        if self.early_side == 1.0:
            return self.side_pixels
        return min(self.side_pixels, max(8, 8 * round(self.early_side * self.side_pixels / 8)))

    @property
    def has_early_part(self) -> bool:
        """Whether the first part of a run sees smaller views."""
        return self.early_side_pixels < self.side_pixels and self.early_share > 0

    def side_at(self, step: int, *, total_steps: int) -> int:
        """Height and width of the full-sized views of a step, counted from 0."""
        early = step < self.early_share * total_steps
        return self.early_side_pixels if early else self.side_pixels

    @property
    def smaller_sides(self) -> dict[str, int]:
        """Sides that an encoder has to take besides ``side_pixels``, by the setting of each."""
        sides = {"views.small_side_pixels": self.small_side} if self.small_views else {}
        if self.has_early_part:
            sides["views.early_side"] = self.early_side_pixels
        return sides

    @property
    def small_side(self) -> int:
        """Height and width of a small view, in pixels."""
        return self.small_side_pixels or max(8, round(self.side_pixels * 3 / 7))
