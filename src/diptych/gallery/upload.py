"""Search by a picture that is uploaded: it is embedded as the images of the set were."""

import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.embeddings.embedder import Embedder
from diptych.embeddings.shard_files import MANIFEST, read_set_manifest
from diptych.embeddings.vectors import VectorSet, made_alike
from diptych.errors import DiptychError, EmbeddingsError, UnreadableImage
from diptych.models.start import open_encoder


@dataclass(eq=False)
class Search:
    """Embeds uploaded images, one at a time.

    Attributes:
        settings: of the vectors of the set.
        source: the encoder that made them; None where that is not known or not there.
        why: no image can be embedded; empty where one can.
    """

    settings: dict[str, Any]
    source: str | None
    why: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @classmethod
    def of(cls, vectors: VectorSet) -> "Search":
        """Finds the encoder of a set."""
        source = _source(vectors)
        if not vectors.settings or source is None:
            return cls({}, None, "The vectors do not say which encoder made them.")
        if not Path(source).exists():
            return cls({}, None, "The encoder that made the vectors is not there any more.")
        return cls(dict(vectors.settings), source)

    def embed(self, image: bytes) -> NDArray[np.float32]:
        """The vector (dim,) of an image file's bytes.

        Raises:
            EmbeddingsError: the encoder is not known.
            UnreadableImage: the bytes are no image.
        """
        if self.source is None:
            raise EmbeddingsError(self.why)
        with self._lock:
            try:
                found: NDArray[np.float32] = self._embedder([image])[0].astype(np.float32)
            except UnreadableImage as error:
                raise UnreadableImage(f"This is no image that can be read here: {error}") from error
        return found

    @cached_property
    def _embedder(self) -> Embedder:
        views = self.settings.get("views", {})
        opened = open_encoder(str(self.source))
        if opened.sha256 != self.settings.get("encoder"):
            raise EmbeddingsError(
                "The encoder is another one than when the vectors were made: embed the images "
                "again."
            )
        return Embedder(
            str(self.source),
            # What foreign weights see was chosen for the set.
            side_pixels=views.get("side_pixels") if opened.run is None else None,
            batch_size=1,
            **made_alike(self.settings),
        )


def _source(vectors: VectorSet) -> str | None:
    if not vectors.source.is_dir() or not (vectors.source / MANIFEST).exists():
        return None
    try:
        found = read_set_manifest(vectors.source).made.get("run")
    except (DiptychError, OSError):
        return None
    return found if isinstance(found, str) else None
