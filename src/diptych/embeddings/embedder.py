"""Images in a batch to vectors, for engines that hand out batches: Ray Data, Spark and others."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, Literal

import numpy as np

from diptych.config.downstream import EmbedSettings
from diptych.embeddings.encode_views import Vectors, ViewEncoder, ViewMaker
from diptych.embeddings.shards import CHECKSUM_BYTES
from diptych.embeddings.vectors import CHECKSUM, FEATURE
from diptych.errors import ConfigError, ImagesError, UnreadableImage
from diptych.images.codecs.channels import Pixels
from diptych.images.codecs.decode import decode_bytes
from diptych.images.open import from_array
from diptych.models.start import open_encoder
from diptych.runtime.devices import Runtime

_BYTES: Final = "bytes"
"""Entry of a column of images as Hugging Face datasets write them: a struct of bytes and a path."""


class Embedder:
    """Gives the vectors of batches of images; the same as ``diptych.embed`` to rounding.

    An object holds settings until it is first called, and only those are sent to another process:
    each loads the encoder by itself, so its file must be found there under the same name.

    >>> embedder = Embedder("runs/photos", normalize=True)
    >>> embedder({"name": names, "image": encoded})  # doctest: +SKIP

    Args:
        source: as in ``diptych.embed``.
        column: of a batch by columns, the one with the images.
        encoder: as in ``diptych.embed``.
        side_pixels: as in ``diptych.embed``.
        device: where the network runs, as in ``Runtime``.
        threads: CPU threads of this process; all cores when not given.
        unreadable: ``refuse`` ends the work at an image that cannot be read; ``nan`` gives it a
            vector of NaN, to be filtered out.
        settings: see ``EmbedSettings``; ``batch_size`` is what the network sees at once, whatever
            the size of the batches that come.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        column: str = "image",
        encoder: str | None = None,
        side_pixels: int | None = None,
        device: str = "auto",
        threads: int | None = None,
        unreadable: Literal["refuse", "nan"] = "refuse",
        **settings: Any,
    ) -> None:
        if unreadable not in ("refuse", "nan"):
            raise ConfigError(f"unreadable= is refuse or nan; got {unreadable!r}.")
        self.column, self._unreadable = column, unreadable
        self._source: dict[str, Any] = {
            "text": os.fspath(source),
            "encoder": encoder,
            "side_pixels": side_pixels,
        }
        self._settings = EmbedSettings(**settings)
        self._device, self._threads = device, threads

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}

    def __call__(self, batch: Any) -> Any:
        """Vectors of a batch.

        Args:
            batch: images, each the bytes of a file, a uint8 or uint16 array (height, width[,
                channels]), a mapping with ``bytes``, or None, which cannot be read; or columns by
                name (as Ray's NumPy batches), of which ``column`` holds the images.

        Returns:
            (images, dim) for images; for columns the same columns with ``feature`` (images, dim)
            and ``checksum`` (images,), 16 bytes each as ``diptych.embed`` writes them, in the place
            of the images.

        Raises:
            ConfigError: there is no such column.
            UnreadableImage: an image cannot be read; says which of the batch.
        """
        if not isinstance(batch, Mapping):
            return self._vectors(_contents(batch))
        if self.column not in batch:
            raise ConfigError(
                f"column= is {self.column!r}; the batch has {', '.join(map(str, batch))}."
            )
        contents = _contents(batch[self.column])
        found = {name: values for name, values in batch.items() if name != self.column}
        checksums = np.array([_checksum(one) for one in contents], dtype=object)
        return {**found, CHECKSUM: checksums, FEATURE: self._vectors(contents)}

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._loaded.encoder.dim()

    def _vectors(self, contents: Sequence[bytes | Pixels]) -> Vectors:
        size = self._settings.batch_size
        parts = [self._few(contents, start) for start in range(0, len(contents), size)]
        if parts:
            return np.concatenate(parts)
        return np.empty((0, self.dim), self._settings.precision)

    def _few(self, contents: Sequence[bytes | Pixels], start: int) -> Vectors:
        loaded, few = self._loaded, contents[start : start + self._settings.batch_size]
        seen = loaded.views.make(range(len(few)), lambda place: self._pixels(few[place]))
        if seen.unreadable and self._unreadable == "refuse":
            place, why = min(seen.unreadable.items())
            raise UnreadableImage(
                f"image {start + place} of the batch cannot be read: {why}. Leave it out, or give "
                "unreadable='nan'"
            )
        vectors = loaded.encoder.vectors(tuple(view[: len(few)] for view in seen.views))
        vectors[list(seen.unreadable)] = np.nan
        return vectors

    def _pixels(self, content: bytes | Pixels) -> Pixels:
        images = self._loaded.encoder.config.images
        if isinstance(content, bytes):
            return decode_bytes(content, images)
        try:
            return from_array(content[None], None, images).pixels.gather(np.array([0])).image(0)
        except ImagesError as error:
            raise UnreadableImage(str(error)) from error

    @cached_property
    def _loaded(self) -> "_Loaded":
        runtime = Runtime(self._device, self._threads, self._settings.batch_size)
        encoder = ViewEncoder(open_encoder(**self._source), self._settings, runtime.torch_device)
        config = encoder.config
        views = ViewMaker(
            self._settings.crops,
            config.views,
            config.images.channels,
            self._settings.batch_size,
            runtime.executor,
        )
        return _Loaded(encoder, views, runtime.executor)


@dataclass(frozen=True)
class _Loaded:
    """What a process has of its own."""

    encoder: ViewEncoder
    views: ViewMaker
    executor: ThreadPoolExecutor


def _contents(images: Any) -> list[bytes | Pixels]:
    return [_content(place, image) for place, image in enumerate(images)]


def _content(place: int, image: Any) -> bytes | Pixels:
    if isinstance(image, Mapping):
        image = image.get(_BYTES)
    if image is None:  # null in a column: no bytes, which cannot be read
        return b""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return image
    raise ConfigError(
        f"image {place} of the batch is a {type(image).__name__}. Wanted the bytes of a file, an "
        "array, or a mapping with bytes."
    )


def _checksum(content: bytes | Pixels) -> bytes:
    data = content if isinstance(content, bytes) else _of_array(content)
    return blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def _of_array(pixels: Pixels) -> bytes:
    return repr(pixels.shape).encode() + pixels.tobytes()
