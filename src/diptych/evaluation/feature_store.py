"""Features kept in a run folder, so that no command extracts what another one has extracted.

A file holds the features of one set of images by one network: float32, as the network gave them,
with the checksum of each image's content. The file's header has a hash of all else that a feature
depends on: the network's weights and structure, the views, how images were decoded, and the
versions of the decoders. Files that are damaged or foreign are ignored. Nothing in them is ever
unpickled.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.evaluation.features import encode
from diptych.images.collection import ImageSet
from diptych.images.groups import number_contents
from diptych.images.index import decoders
from diptych.models.encoders import count_features
from diptych.models.final_features import WithIntermediate
from diptych.models.weights import PretrainedEncoder
from diptych.runs.atomic import atomic_write
from diptych.runs.tensor_files import (
    UnreadableTensors,
    hash_network,
    read_tensors_and_text,
    tensor_bytes,
)
from diptych.runtime.devices import Runtime
from diptych.views.cpu import EvaluationCrops

MOST_BYTES: Final = 512 * 2**20
"""Of all files in a folder together; the least recently used are deleted first."""

_FORMAT: Final = "1"


class _Rows(NamedTuple):
    """What a file holds: checksums, uint64 (images, 2), and features, (images, dim)."""

    checksums: NDArray[np.uint64]
    features: Tensor


class FeatureStore:
    """Features of images by networks, each extracted once.

    Args:
        folder: where they are kept; it is made when the first are.
        runtime: to extract them with.
        most_bytes: of all files together.
    """

    def __init__(self, folder: Path, runtime: Runtime, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._runtime, self._most_bytes = folder, runtime, most_bytes
        self._has_complained = False

    def features(
        self,
        network: nn.Module,
        images: ImageSet,
        opened: ImagesConfig,
        views: ViewsConfig,
        *,
        crops: EvaluationCrops = "center",
        of: str = "the encoder",
    ) -> Tensor:
        """Features before the head, read where they are kept and extracted where they are not.

        They are kept by image: of a set that was extracted, any part can be read. What is read has
        the bits that were extracted. Sets that are only partly kept are extracted as a whole.

        Args:
            network: an encoder that diptych built, on the runtime's device.
            images: to show it.
            opened: how these were decoded.
            views: give the side and the normalisation.
            crops: features of several views are averaged.
            of: names the network in an error.

        Returns:
            (images, dim), float32, on the CPU.

        Raises:
            FeaturesError: features are not finite numbers.
        """
        if isinstance(network, PretrainedEncoder):
            # Kept as the backbone gives them: its features are the same with any whitening.
            bare = self.features(network.unwhitened, images, opened, views, crops=crops, of=of)
            return bare if network.whitening is None else network.whitening(bare)
        key = _key(network, images.channels, opened, views, crops)
        found = None if images.checksums is None else self._find(key, images.checksums)
        if found is not None:
            return found
        features = encode(
            network,
            images,
            views,
            self._runtime.executor,
            crops=crops,
            of=of,
            batch_size=self._runtime.batch_size,
            on_images=self._runtime.counting(f"Features of {of}"),
        )
        if images.checksums is not None:
            self._keep(key, _Rows(images.checksums, features))
            if isinstance(network, WithIntermediate):
                # The network alone is often compared as well: its features are the first ones.
                alone, channels = network.network, images.channels
                own = count_features(alone, channels=channels, side_pixels=views.side_pixels)
                key = _key(alone, channels, opened, views, crops)
                self._keep(key, _Rows(images.checksums, features[:, :own]))
        return features

    def _find(self, key: str, checksums: NDArray[np.uint64]) -> Tensor | None:
        """The features of images, from one file or several; None where one image is in none."""
        features: Tensor | None = None
        missing = np.ones(len(checksums), dtype=np.bool_)
        for file in self._files(key, first=_name(key, checksums)):
            kept = _read(file, key)
            if kept is None:
                continue
            rows = np.where(missing, _rows_of(checksums, kept.checksums), -1)
            new = rows >= 0
            if not new.any():
                continue
            if features is None:
                features = kept.features.new_empty(len(checksums), kept.features.shape[1])
            features[torch.from_numpy(new)] = kept.features[torch.from_numpy(rows[new])]
            missing &= ~new
            with suppress(OSError):  # a folder that cannot be written can still be read
                os.utime(file)  # marks it as used: the least recently used files are deleted
            if not missing.any():
                return features
        # Not the missing ones alone: bits would then depend on what was kept before.
        return None

    def _files(self, key: str, *, first: str) -> Iterator[Path]:
        # First the file of just these images: others were made in other batches, and may differ in
        # the last place.
        own = self._folder / first
        if own.is_file():
            yield own
        yield from (file for file in _by_use(self._folder, f"{key[:16]}-*") if file != own)

    def _keep(self, key: str, rows: _Rows) -> None:
        if rows.features.nbytes > self._most_bytes:
            return
        # The same bits as int64, since torch can do little with uint64.
        contents = torch.from_numpy(np.ascontiguousarray(rows.checksums).view(np.int64))
        header = {"format": _FORMAT, "key": key, "sum": _sum(contents, rows.features)}
        tensors = {"checksums": contents, "features": rows.features.contiguous()}
        try:
            atomic_write(self._folder / _name(key, rows.checksums), save(tensors, metadata=header))
            self._make_room()
        except OSError as error:  # the features are there all the same, so this ends nothing
            if not self._has_complained:
                self._has_complained = True
                self._runtime.progress.say(
                    f"Features could not be kept in {self._folder} ({error.strerror or error}); "
                    "they will be extracted anew when they are needed again."
                )

    def _make_room(self) -> None:
        total = 0
        for file in _by_use(self._folder, "*"):
            total += file.stat().st_size
            if total > self._most_bytes:
                file.unlink(missing_ok=True)


def _by_use(folder: Path, pattern: str) -> list[Path]:
    """Files of features, the latest used first."""
    used = dict[Path, int]()
    for file in folder.glob(f"{pattern}.safetensors"):
        with suppress(FileNotFoundError):  # another process has made room
            used[file] = file.stat().st_mtime_ns
    return sorted(used, key=lambda file: (-used[file], file.name))


def _key(
    network: nn.Module,
    channels: int,
    opened: ImagesConfig,
    views: ViewsConfig,
    crops: EvaluationCrops,
) -> str:
    """A hash of all that a feature depends on but its image: 64 hexadecimal digits."""
    settings: dict[str, Any] = {
        "format": _FORMAT,
        "versions": decoders(),
        "crops": crops,
        "side_pixels": views.side_pixels,
        "pixel_mean": views.pixel_mean,
        "pixel_std": views.pixel_std,
        "channels": channels,
        "color": opened.color,
        "bits": opened.bits,
        "decoded_side": opened.decoded_side,
    }
    digest = hash_network(network)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _name(key: str, checksums: NDArray[np.uint64]) -> str:
    images = hashlib.sha256(np.ascontiguousarray(checksums).data).hexdigest()
    return f"{key[:16]}-{images[:16]}.safetensors"


def _rows_of(checksums: NDArray[np.uint64], kept: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each checksum a row with the same among those that are kept; -1 where there is none."""
    numbers = number_contents(np.concatenate([checksums, kept]))
    place = np.full(int(numbers.max(initial=0)) + 1, -1, dtype=np.int64)
    place[numbers[len(checksums) :]] = np.arange(len(kept))
    rows: NDArray[np.int64] = place[numbers[: len(checksums)]]
    return rows


def _read(file: Path, key: str) -> _Rows | None:
    """What a file holds; None where it is damaged, foreign or gone."""
    try:
        tensors, header = read_tensors_and_text(file)
    except UnreadableTensors:
        return None
    if set(tensors) != {"checksums", "features"} or header.get("key") != key:
        return None
    contents, features = tensors["checksums"], tensors["features"]
    if (contents.dtype, features.dtype) != (torch.int64, torch.float32) or features.ndim != 2:
        return None
    if contents.shape != (len(features), 2) or header.get("sum") != _sum(contents, features):
        return None
    return _Rows(contents.numpy().view(np.uint64), features)


def _sum(contents: Tensor, features: Tensor) -> str:
    digest = hashlib.blake2b(tensor_bytes(contents), digest_size=32)
    digest.update(tensor_bytes(features))
    return digest.hexdigest()
