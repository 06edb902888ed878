"""Thumbnails of all images in pages of an atlas, and one image at a time, always encoded anew."""

import hashlib
import io
import os
import shutil
import threading
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from diptych.curation.thumbnails import Thumbnails
from diptych.embeddings.vectors import VectorSet
from diptych.gallery.pieces import Progress
from diptych.runs.atomic import atomic_write

PAGE_PIXELS: Final = 512  # side of a page
PICTURE_PIXELS: Final = 1024
_LARGE: Final = 100_000  # images, from which on thumbnails are smaller
_MISSING: Final = (128, 128, 128)
_QUALITY: Final = 80
_STRIPES: Final = 16  # of locks


class Atlas:
    """Pages of thumbnails, kept as WebP files; page p has the images p * per_page and following.

    Args:
        vectors: of the images.
        images: where they are, if not where they were embedded.
        folder: for the pages.
        digest: of the vectors.
    """

    def __init__(self, vectors: VectorSet, images: str | None, folder: Path, digest: str) -> None:
        self._count = len(vectors)
        self.side = 64 if self._count < _LARGE else 32
        self.columns = PAGE_PIXELS // self.side
        self.per_page = self.columns**2
        self.pages = -(-self._count // self.per_page)
        self.made = 0
        self._small = Thumbnails.of(vectors, images)
        self._large = Thumbnails.of(vectors, images, side=PICTURE_PIXELS)
        source = images or vectors.path or ""
        where = hashlib.sha256(os.path.abspath(source).encode(errors="surrogateescape"))
        self._folder = folder / f"thumbnails-{digest}-{where.hexdigest()[:8]}"
        self._remove_others()
        place = Path(images) if images is not None else vectors.root
        self.root = place if place is not None and place.is_dir() else None
        """Folder of the images, where they are files of one."""
        self._locks = [threading.Lock() for _ in range(_STRIPES)]

    @property
    def missing(self) -> str:
        """Why there are no pictures at all; empty where there are."""
        return "".join(self._small.remarks)

    def lists(self, name: str) -> bool:
        """Whether an image of this name was found where the images are."""
        return name in self._small.places

    def page(self, number: int) -> bytes:
        """A page, which is made where it is not there yet."""
        file = self._folder / f"{number:06d}.webp"
        with self._locks[number % _STRIPES]:
            try:
                return file.read_bytes()
            except FileNotFoundError:
                data, is_whole = self._draw(number)
                # Not kept where a picture is missing, which may be there at another time.
                if is_whole:
                    atomic_write(file, data)
                return data

    def make_all(self, progress: Progress) -> bool:
        """Makes all pages in their order, where there are pictures."""
        if self.missing:
            return True
        for number in range(self.pages):
            self.page(number)
            self.made = number + 1
            progress(self.made / self.pages)
        return True

    def picture(self, row: int) -> bytes | None:
        """An image as WebP, no side longer than 1024 pixels; None where it cannot be read."""
        found = self._large.image(row)
        if found is None:
            return None
        found.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
        return _webp(found)

    def _remove_others(self) -> None:
        for old in self._folder.parent.glob("thumbnails-*"):
            if old != self._folder:
                shutil.rmtree(old, ignore_errors=True)

    def _draw(self, number: int) -> tuple[bytes, bool]:
        """A page, and whether all its pictures could be read."""
        page, is_whole = Image.new("RGB", (PAGE_PIXELS, PAGE_PIXELS), _MISSING), True
        first = number * self.per_page
        for place, row in enumerate(range(first, min(first + self.per_page, self._count))):
            found = self._small.image(row)
            if found is None:
                is_whole = False
                continue
            # The whole image, as large as fits, in the middle of its square.
            found = ImageOps.contain(found, (self.side, self.side), Image.Resampling.LANCZOS)
            down, right = divmod(place, self.columns)
            left = right * self.side + (self.side - found.width) // 2
            top = down * self.side + (self.side - found.height) // 2
            page.paste(found, (left, top))
        return _webp(page), is_whole


def _webp(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=_QUALITY, method=2)
    return out.getvalue()
