"""What to mend before training: sentences on images and views that do not go together."""

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ViewsConfig
from diptych.config.policies import Color, Crop, Gray, Policy
from diptych.images.collection import ImageSet, spread_indices
from diptych.images.pixels import PixelBatch
from diptych.views.preview.policy_in_words import percent

MOST_IMAGES: Final = 2000
_FEWEST_IMAGES: Final = 200
_MOST_PIXELS: Final = 1_000_000_000  # decoded in full: some ten seconds of a few threads
_TASK_IMAGES: Final = 16


@dataclass(frozen=True)
class Survey:
    """What was measured on a sample, pixels in 0 .. 1.

    Attributes:
        indices: (images,), which of the set.
        means: (images, channels).
        squares: (images, channels), means of the squared pixels.
        gray: (images,), whether there are three channels and they are equal everywhere.
        digests: a hash of each image's size and pixels.
    """

    indices: NDArray[np.int64]
    means: NDArray[np.float64]
    squares: NDArray[np.float64]
    gray: NDArray[np.bool_]
    digests: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def deviations(self) -> NDArray[np.float64]:
        """(images,), each image's standard deviation, of the channel that varies most."""
        # Of a constant image rounding can leave a difference just below 0.
        return np.sqrt(np.maximum(self.squares - self.means**2, 0.0)).max(axis=1)

    @property
    def pixel_mean(self) -> NDArray[np.float64]:
        """(channels,), over all images alike."""
        return self.means.mean(axis=0)

    @property
    def pixel_std(self) -> NDArray[np.float64]:
        """(channels,), over all images alike."""
        return np.sqrt(np.maximum(self.squares.mean(axis=0) - self.pixel_mean**2, 0.0))


def survey(images: ImageSet, executor: Executor) -> Survey:
    """Decodes a spread sample, small where the format allows, and measures it.

    Args:
        images: the set; at most 2,000 of it are decoded, fewer where they are large.
        executor: its threads share the work.
    """
    mean_pixels = float((images.heights * images.widths).mean())
    most = int(np.clip(_MOST_PIXELS / mean_pixels, _FEWEST_IMAGES, MOST_IMAGES))
    indices = spread_indices(len(images), most)
    parts = [indices[i : i + _TASK_IMAGES] for i in range(0, len(indices), _TASK_IMAGES)]
    looks = [
        look for part in executor.map(lambda some: _look(images, some), parts) for look in part
    ]
    means, squares, gray, digests = zip(*looks, strict=True)
    return Survey(indices, np.array(means), np.array(squares), np.array(gray), digests)


_Look = tuple[NDArray[np.float64], NDArray[np.float64], bool, bytes]


def _look(images: ImageSet, indices: NDArray[np.int64]) -> list[_Look]:
    """Means, squares, whether it is gray, and a digest, of each image."""
    heights, widths = images.heights[indices], images.widths[indices]
    pixels = images.pixels.gather(indices)
    sizes = np.stack([heights, widths], axis=1)
    return [_look_at(pixels, row, size.tobytes()) for row, size in enumerate(sizes)]


def _look_at(pixels: PixelBatch, row: int, size: bytes) -> _Look:
    image = pixels.image(row)
    flat = image.reshape(-1, image.shape[2]) / float(np.iinfo(image.dtype).max)
    gray = image.shape[2] == 3 and bool(
        (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all()
    )
    # Large images were decoded small: two of the same full size that agree there are taken for
    # copies of each other.
    digest = hashlib.blake2b(size + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
    return flat.mean(axis=0), np.square(flat).mean(axis=0), gray, digest


LEAST_IMAGES: Final = 1000
"""Below this a run sees each image so often that it learns these few by heart."""
LEAST_CROP_PIXELS: Final = 64
"""8 x 8. SimCLR's smallest crops of CIFAR-10, 8% of 32 x 32 pixels, are 82 and still serve."""
FLAT_DEVIATION: Final = 0.01
"""Of pixels in 0 .. 1, two or three shades of 255: less than what noise or JPEG leave."""
DARK_MEAN: Final = 0.08
"""Photographs of a night have more; 12 bits stored as 16 have less. Bright is 1 less this."""
MEAN_OFF: Final = 0.15
"""Of pixels in 0 .. 1; about what sets of photographs differ by from ImageNet's mean."""
STD_OFF: Final = 1.75
"""As a factor either way: beyond it the first layer's weights are not of the wanted size."""
SHARE: Final = 0.02
"""Of the images. Fewer odd ones, as small, gray or flat, are no reason to change a run."""
_FEW: Final = 0.1
"""Of the images. So many may be too small for what suits the rest."""
_USUAL_SHARE: Final = 0.5  # at which it is the set that is so, and not some images


def advise(images: ImageSet, config: ViewsConfig, executor: Executor) -> list[str]:
    """Sentences that say what does not fit, in how many images, and what to change.

    Args:
        images: to learn from. Sizes are judged of all, pixels of a sample of at most 2,000.
        config: what views are to be made.
        executor: its threads decode the sample.
    """
    looked = survey(images, executor)
    found = [*_too_few(images), *_sizes(images, config)]
    for check in (_gray, _flat, _copies, _light, _normalisation):
        found += check(images, config, looked)
    return found


def _too_few(images: ImageSet) -> list[str]:
    if len(images) >= LEAST_IMAGES:
        return []
    return [
        f"There are only {len(images):,} images. Below about {LEAST_IMAGES:,} an encoder learns "
        "these few by heart: add more of the same kind, they need no labels."
    ]


def _sizes(images: ImageSet, config: ViewsConfig) -> list[str]:
    shorter = np.minimum(images.heights, images.widths)
    found = []
    small = shorter < config.side_pixels
    # A size that nine in ten images have, in steps that strided layers like. Where they have that
    # of the views already, the few that are smaller are no reason to change it for all.
    fitting = max(8, int(np.quantile(shorter, _FEW)) // 8 * 8)
    if small.mean() > _FEW and fitting < config.side_pixels:
        found.append(
            f"{_some(small, images)} {_are(small)} smaller than the views' {config.side_pixels} "
            f"pixels and blurred by being enlarged: --views.side-pixels {fitting} would fit."
        )
    first, second = config.branches
    policies = [("policy", first)] if first == second else [("policy", first), ("second", second)]
    if config.small_views:
        policies.append(("small-policy", config.small_branch))
    for flag, policy in policies:
        found += _crops(images, policy, flag)
    return found


def _crops(images: ImageSet, policy: Policy, flag: str) -> list[str]:
    crop, pixels = policy[0], images.heights * images.widths
    if not isinstance(crop, Crop) or crop.probability == 0.0:
        return []
    small = pixels * crop.area[0] < LEAST_CROP_PIXELS
    fitting = min(1.0, np.ceil(100.0 * LEAST_CROP_PIXELS / np.quantile(pixels, _FEW)) / 100.0)
    if small.mean() <= _FEW or fitting <= crop.area[0]:
        return []
    high = max(crop.area[1], fitting)
    return [
        f"Of {_some(small, images)} the smallest crops, {percent(crop.area[0])} of the area, have "
        f"fewer than {LEAST_CROP_PIXELS} pixels, in which there is little to recognise: begin "
        f'--views.{flag} with "crop(area={fitting:g}..{high:g})".'
    ]


def _gray(images: ImageSet, config: ViewsConfig, looked: Survey) -> list[str]:
    colored = any(
        isinstance(one, Gray)
        or (isinstance(one, Color) and config.strength * (one.saturation + one.hue) > 0.0)
        for policy in config.branches
        for one in policy
        if getattr(one, "probability", 1.0) > 0.0
    )
    share = looked.gray.mean()
    if not colored or share < SHARE:
        return []
    some = f"{_some(looked.gray, images, looked)} {_are(looked.gray)} gray in three equal channels"
    if share > 1.0 - SHARE:
        return [
            f"{some}, on which saturation, hue and dropped colour do nothing: --images.color gray "
            "saves two thirds of the work on pixels; stronger brightness and contrast in `color` "
            "make up for the rest."
        ]
    return [
        f"{some}, and others are not: an encoder can separate them by that alone, whatever they "
        "show. --images.color gray makes all alike, if colour is not what matters."
    ]


def _flat(images: ImageSet, config: ViewsConfig, looked: Survey) -> list[str]:
    del config
    flat = looked.deviations < FLAT_DEVIATION
    if flat.mean() < SHARE:
        return []
    if flat.mean() >= _USUAL_SHARE:  # then there may be something to see, in a few of the shades
        return [
            f"{_some(flat, images, looked)} {_are(flat)} all but constant: stretch the files to "
            "their full range, or keep deep ones deep (--images.bits 16) and put auto_contrast(1) "
            "behind the crop of --views.policy."
        ]
    return [
        f"{_some(flat, images, looked)} {_are(flat)} all but constant: they hold nothing to be "
        "recognised by but their colour, which the views change. Leave them out."
    ]


def _copies(images: ImageSet, config: ViewsConfig, looked: Survey) -> list[str]:
    del config
    first: dict[bytes, int] = {}
    pairs = []
    for index, digest in zip(looked.indices.tolist(), looked.digests, strict=True):
        if digest in first:
            pairs.append((first[digest], index))
        first.setdefault(digest, index)
    if not pairs:
        return []
    one, other = (_named(images, index) for index in pairs[0])
    are = "is a copy" if len(pairs) == 1 else "are copies"
    return [
        f"{len(pairs):,} of {_looked_at(images, looked)} {are} of an earlier one ({other} of "
        f"{one}). Copies are each other's negatives, though they are the same: keep one of each."
    ]


def _light(images: ImageSet, config: ViewsConfig, looked: Survey) -> list[str]:
    del config
    means = looked.means.mean(axis=1)
    found = []
    for words, odd in (("dark", means < DARK_MEAN), ("bright", means > 1.0 - DARK_MEAN)):
        if odd.mean() >= _USUAL_SHARE:
            found.append(
                f"{_some(odd, images, looked)} {_are(odd)} very {words} (mean "
                f"{means[odd].mean():.2g} of 0 .. 1), so that changes of brightness and contrast "
                "do little or cut off what there is: stretch the files to their full range, or "
                "put auto_contrast(1) behind the crop of --views.policy."
            )
    return found


def _normalisation(images: ImageSet, config: ViewsConfig, looked: Survey) -> list[str]:
    mean, std = looked.pixel_mean, np.maximum(looked.pixel_std, 1e-3)
    wanted_mean, wanted_std = np.array(config.pixel_mean), np.array(config.pixel_std)
    if images.channels != 3:  # of which the views take the mean of the three, for every channel
        mean, std = np.full(3, mean.mean()), np.full(3, std.mean())
        wanted_mean, wanted_std = np.full(3, wanted_mean.mean()), np.full(3, wanted_std.mean())
    factor = np.exp(np.abs(np.log(std / wanted_std)).max())
    if np.abs(mean - wanted_mean).max() <= MEAN_OFF and factor <= STD_OFF:
        return []
    return [
        f"Over {_looked_at(images, looked)} pixels have mean {_numbers(mean, ', ')} and standard "
        f"deviation {_numbers(std, ', ')}, far from what they are normalised with "
        f"({_numbers(wanted_mean, ', ')}; {_numbers(wanted_std, ', ')}): --views.pixel-mean "
        f"{_numbers(mean, ' ')} --views.pixel-std {_numbers(std, ' ')} would fit."
    ]


def _some(which: NDArray[np.bool_], images: ImageSet, looked: Survey | None = None) -> str:
    """How many of how many, and the name of the first of them."""
    row = int(np.argmax(which))
    name = _named(images, row if looked is None else int(looked.indices[row]))
    of = f"{len(images):,} images" if looked is None else _looked_at(images, looked)
    return f"{int(which.sum()):,} of {of} (such as {name})"


def _named(images: ImageSet, index: int) -> str:
    """An image's name; those from arrays are but numbers."""
    name = images.names[index]
    return f"image {name}" if name.isdigit() else name


def _looked_at(images: ImageSet, looked: Survey) -> str:
    sampled = " looked at" if len(looked) < len(images) else ""
    return f"{len(looked):,} images{sampled}"


def _are(which: NDArray[np.bool_]) -> str:
    return "is" if which.sum() == 1 else "are"


def _numbers(values: NDArray[np.float64], between: str) -> str:
    return between.join(f"{value:.3g}" for value in values.tolist())
