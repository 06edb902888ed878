"""A small gallery, its server in a thread, and requests to it."""

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diptych.embeddings.vectors import VectorSet
from diptych.gallery import contents
from diptych.gallery.contents import Gallery, open_gallery
from diptych.gallery.server.serve import listen, make_server

COUNT = 70
CLASSES = ("blue", "red")
POST = {"X-Diptych": "gallery"}


class QuickMap:
    """Stands for the process that draws the map, which takes long to start."""

    def draw(self, features: NDArray[np.float32], found: Any, progress: Any) -> Any:
        return np.clip(features[:, :2], -1, 1)

    def close(self) -> None:
        pass


def two_groups(seed: int = 0) -> NDArray[np.float32]:
    """(70, 8): the even rows near one direction, the odd ones near another."""
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(COUNT, 8))
    noise[np.arange(COUNT), np.arange(COUNT) % 2] += 1
    return noise.astype(np.float32)


def write_images(folder: Path) -> list[str]:
    """Images of two colours in class folders; their names in the order of rows."""
    names = []
    for row in range(COUNT):
        name = f"{CLASSES[row % 2]}/{row:03}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = (200, row, 0) if row % 2 else (0, row, 200)
        Image.new("RGB", (24, 16), colour).save(folder / name)
        names.append(name)
    return names


def small_set(folder: Path) -> VectorSet:
    names = write_images(folder / "images")
    labels = [name.split("/")[0] for name in names]
    return VectorSet(folder / "vectors", two_groups(), names, labels, path=str(folder / "images"))


def gallery_again(folder: Path) -> Gallery:
    """The same opened again, with the labels that were given; nothing else is made."""
    names = [f"{CLASSES[row % 2]}/{row:03}.png" for row in range(COUNT)]
    images = str(folder / "images")
    return open_gallery(VectorSet(folder / "vectors", two_groups(), names, path=images))


def small_gallery(folder: Path, **options: Any) -> Gallery:
    """Of 70 images; all of it is made, but the map is no UMAP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "MapProcess", QuickMap)
        gallery = open_gallery(small_set(folder), **options)
        for piece in (*gallery.maps.values(), gallery.findings, gallery.thumbnails):
            piece.make()  # type: ignore[attr-defined]
    return gallery


@dataclass(frozen=True)
class Served:
    """A gallery with its server.

    Attributes:
        gallery: what is served.
        port: of 127.0.0.1.
    """

    gallery: Gallery
    port: int

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Message, bytes]:
        """Status, headers and body of an answer; a POST where there is a body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            sent = (POST if body is not None else {}) | dict(headers or {})
            chosen = method or ("GET" if body is None else "POST")
            connection.request(chosen, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


@contextmanager
def served(gallery: Gallery, token: str | None = None) -> Iterator[Served]:
    with listen("127.0.0.1", 0) as listening:
        begun = threading.Event()
        server = make_server(gallery, listening, token=token, on_start=begun.set)
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        try:
            assert begun.wait(20)
            yield Served(gallery, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
            gallery.close()
