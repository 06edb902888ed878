"""Where decoded images are kept while a set is opened: in memory, in a file, or nowhere."""

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from diptych.configs import ImagesConfig
from diptych.images.cache_file import CacheWriter, Decoded
from diptych.images.form import Pixels, pixel_type

SMALL_BYTES: Final = 96 * 96 * 3
"""Decoded images up to this size are read from a file faster than they are decoded."""


class Keeper:
    """Keeps decoded images as they are found, as long as there is room.

    Attributes:
        remark: a sentence on why they are not kept, where something else was asked for.
    """

    def __init__(self, config: ImagesConfig, file: Path | None) -> None:
        self.remark: str | None = None
        self._config, self._path = config, file
        self._sizes = array("q")
        self._memory: bytearray | None = None
        self._writer: CacheWriter | None = None
        if config.cache in ("auto", "memory"):
            self._memory = bytearray()
        elif config.cache == "file":
            self._begin_file()

    def add(self, pixels: Pixels) -> None:
        """Keeps one more image, or gives all of them up."""
        self._sizes.append(pixels.nbytes)
        if self._memory is not None:
            self._memory += pixels.data.cast("B")
            if len(self._memory) > self._config.cache_megabytes * 2**20:
                self._leave_memory(self._memory)
        elif self._writer is not None:
            self._write(pixels.data.cast("B"))

    def in_memory(self) -> Pixels | None:
        """The pixels of all images if they fit in memory."""
        held = self._memory
        return None if not held else np.frombuffer(held, dtype=pixel_type(self._config))

    def finish_file(self, decoded: Decoded, key: str) -> bool:
        """Ends the file, if there is one; whether it can be opened now."""
        if self._writer is None or not len(decoded.places):
            self.abandon()
            return False
        try:
            self._writer.finish(decoded, key)
        except OSError as error:
            self._give_up(error)
            return False
        return True

    def abandon(self) -> None:
        """Removes an unfinished file."""
        if self._writer is not None:
            self._writer.abandon()
        self._writer = None

    def _leave_memory(self, held: bytearray) -> None:
        self._memory = None
        if self._config.cache == "memory":
            self.remark = (
                "The decoded images need more memory than images.cache_megabytes = "
                f"{self._config.cache_megabytes}; they are decoded at every use."
            )
        elif self._path is not None and np.median(np.array(self._sizes)) <= SMALL_BYTES:
            self._begin_file()
            if self._writer is not None:
                self._write(held)

    def _begin_file(self) -> None:
        if self._path is None:
            self.remark = (
                "These images can be kept in no file, as nothing tells when they change; they "
                "are decoded at every use."
            )
            return
        try:
            self._writer = CacheWriter(self._path)
            free = shutil.disk_usage(self._path.parent).free
        except OSError as error:
            self._give_up(error)
            return
        self._room = min(self._config.cache_file_megabytes * 2**20, free // 2)

    def _write(self, pixels: bytearray | memoryview) -> None:
        assert self._writer is not None
        try:
            self._writer.add(pixels)
        except OSError as error:
            self._give_up(error)
            return
        if self._writer.pixel_bytes > self._room:
            self.abandon()
            self.remark = (
                f"The decoded images need more than {self._room // 2**20} megabytes on disk "
                "(images.cache_file_megabytes, or half of what is free); they are decoded at "
                "every use."
            )

    def _give_up(self, error: OSError) -> None:
        self.abandon()
        self.remark = (
            f"The decoded images could not be written to {self._path} "
            f"({error.strerror or error}); they are decoded at every use. "
            "images.cache_folder names another place."
        )


def cache_folder(config: ImagesConfig) -> Path:
    """Where files of decoded images lie."""
    if config.cache_folder is not None:
        return Path(config.cache_folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "diptych"


def cache_path(origin: str, config: ImagesConfig) -> Path:
    """The file for images of one origin, decoded in one form: a changed set replaces its own."""
    asked = "\0".join([os.path.abspath(origin), str(config.limit), *_form(config)])
    name = hashlib.sha256(asked.encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_folder(config) / f"{name}.pixels"


def cache_key(
    names: Sequence[str], stamp: Callable[[int], tuple[int, int]], config: ImagesConfig
) -> str:
    """A hash of all that decoded pixels follow from: names, stamps of the bytes, form."""
    digest = hashlib.sha256("\0".join(_form(config)).encode())
    for index, name in enumerate(names):
        try:
            size, changed = stamp(index)
        except OSError:  # missing: it will be listed as unreadable
            size, changed = -1, 0
        digest.update(f"{name}\0{size} {changed}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _form(config: ImagesConfig) -> list[str]:
    form = (config.color, config.raw_channels, config.bits, config.max_megapixels)
    return [str(one) for one in form]
