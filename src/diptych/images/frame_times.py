"""When images were taken, as far as their names tell: frames of videos."""

import os
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError
from diptych.images.codecs.decode import VIDEOS

_LAST_NUMBER: Final = re.compile(r"(\d+)\D*$")


def times_of(names: Sequence[str], video_seconds: float | None) -> NDArray[np.float64]:
    """The time of each image, (images,).

    Args:
        names: of the images; ``walk.mp4#3`` is the third frame that was taken of a video.
        video_seconds: between two frames of a video. Their times are in seconds; those of other
            images are the last number in the name, without its extension: the number of a frame.

    Raises:
        ConfigError: a name has no number.
    """
    return np.array([_time(name, video_seconds) for name in names], dtype=np.float64)


def _time(name: str, video_seconds: float | None) -> float:
    file, _, frame = os.path.basename(name).partition("#")
    stem, end = os.path.splitext(file)
    if video_seconds is not None and end.lower() in VIDEOS:
        return (int(frame or 1) - 1) * video_seconds
    found = _LAST_NUMBER.search(frame or stem)
    if found is None:
        raise ConfigError(
            f"images.group_within needs the number of a frame in the name of every image, as "
            f"walk/000123.png; {name!r} has none. Rename it, leave it out by images.exclude, or "
            "leave out images.group_within."
        )
    return float(found[1])
