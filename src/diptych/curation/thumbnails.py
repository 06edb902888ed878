"""Small pictures of the images that vectors are of, read from where they were embedded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import OF_SOURCE, ImagesConfig
from diptych.embeddings.shards import ImageRows, find_rows
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError, ImagesError, UnreadableImage
from diptych.images.codecs.channels import Pixels
from diptych.images.codecs.decode import decode_file
from diptych.report.figures import data_uri

SIDE: Final = 128  # of a picture, at most
_LOSSLESS_SIDE: Final = 64  # JPEG's blocks would show where so small an image is enlarged


@dataclass(frozen=True)
class Thumbnails:
    """Gives pictures of some rows of a set of vectors.

    A name is looked for among those that the source lists, and never opened as a path: vectors may
    come from anybody.

    Attributes:
        rows: the images of the source; None where there is none.
        places: of a name among them.
        names: of the vectors.
        missing: why there are no pictures, in a sentence; empty where there are.
        flag: of the verb, that says where the images are.
    """

    rows: ImageRows | None
    places: dict[str, int]
    names: Sequence[str]
    missing: str = ""
    flag: str = "--images"

    @classmethod
    def of(cls, vectors: VectorSet, images: str | None = None, *, side: int = SIDE) -> "Thumbnails":
        """Of what ``diptych embed`` read, or of ``images``; JPEG files no larger than needed."""
        path = images or vectors.path
        if path is None:
            return cls._none(vectors, f"{vectors.source} does not say where its images are.")
        try:
            rows = find_rows(_config(path, vectors, side))
        except (ImagesError, ConfigError) as error:
            # Somebody who names a place wants to know; a list without pictures is of use otherwise.
            if images is not None:
                raise
            return cls._none(vectors, str(error))
        places = {name: index for index, name in enumerate(rows.names)}
        if not any(name in places for name in vectors.names):
            return cls._none(vectors, f"No image of {vectors.source} is in {path}.")
        return cls(rows, places, vectors.names)

    @classmethod
    def _none(cls, vectors: VectorSet, why: str) -> "Thumbnails":
        return cls(None, {}, vectors.names, why)

    @property
    def remarks(self) -> list[str]:
        """What is to be said of missing pictures."""
        return [f"{self.missing} Give {self.flag} to see pictures."] if self.missing else []

    def picture(self, row: int) -> str | None:
        """A picture as a data URI; None where the image is not there or cannot be read."""
        found = self.image(row)
        return None if found is None else _as_uri(found)

    def image(self, row: int) -> Image.Image | None:
        """The image in RGB, of any size; None where it is not there or cannot be read."""
        place = self.places.get(self.names[row])
        if self.rows is None or place is None:
            return None
        try:
            return _shown(self.rows.reader(range(place, place + 1)).pixels(place))
        except (ImagesError, UnreadableImage):
            return None

    def file(self, row: int) -> str | None:
        """The path of the file of an image; None where it is not there, or is no file."""
        place = self.places.get(self.names[row])
        if self.rows is None or self.rows.file is None or place is None:
            return None
        return self.rows.file(place)

    def file_bytes(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(all images,): bytes of the encoded image of some rows; 0 of others."""
        sizes = np.zeros(len(self.names))
        for row in rows.tolist():
            place = self.places.get(self.names[row])
            if self.rows is not None and place is not None:
                try:
                    data, _ = self.rows.reader(range(place, place + 1)).fetch(place)
                except UnreadableImage:
                    continue
                sizes[row] = len(data)
        return sizes


def file_picture(file: str) -> str | None:
    """A picture of an image file that the user named, as a data URI; None if it cannot be read."""
    try:
        return _as_uri(_shown(decode_file(file, ImagesConfig(decoded_side=SIDE))))
    except UnreadableImage:
        return None


def _config(path: str, vectors: VectorSet, side: int) -> ImagesConfig:
    """As the images were embedded, but no larger than a picture needs."""
    made: dict[str, Any] = dict((vectors.settings or {}).get("views", {}))
    known = {name: made[name] for name in ("color", "bits", "max_megapixels") if name in made}
    source = dict((vectors.settings or {}).get("source", {}))
    chosen = {name: source[name] for name in OF_SOURCE if name in source}
    if "exclude" in chosen:
        chosen["exclude"] = tuple(chosen["exclude"])
    config = ImagesConfig(path=path, decoded_side=side, **known, **chosen)
    if config.color == "raw":
        return replace(config, raw_channels=made.get("channels"))
    return config


def _shown(pixels: Pixels) -> Image.Image:
    shown = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    channels = shown.shape[2]
    return Image.fromarray(shown[..., 0] if channels < 3 else shown[..., :3]).convert("RGB")


def _as_uri(picture: Image.Image) -> str:
    lossless = max(picture.size) <= _LOSSLESS_SIDE
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return data_uri(picture, lossless=lossless)
