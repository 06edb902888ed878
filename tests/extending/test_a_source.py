"""A source of images from outside: one function, and one line in the table."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.images import open as sources


def find_stacked(path: str, config: Any) -> diptych.LocatedImages:
    """A ``.stack`` file: images of 32 x 32 RGB pixels one after the other, without a header."""
    stacked = np.memmap(path, np.uint8).reshape(-1, 32, 32, 3)

    def read(index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.asarray(stacked[index])).save(file, "PPM")
        return file.getvalue()

    names = [f"image {index:03}" for index in range(len(stacked))]
    return diptych.LocatedImages(diptych.Listing(path, names, read))


STACKED = diptych.Source("a .stack file", lambda path: path.endswith(".stack"), find_stacked)


def test_a_source_of_images(
    images: Path, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.load(images)["images"]
    stack, plain = images.with_suffix(".stack"), images.with_name("plain.npy")
    pixels.tofile(stack)
    np.save(plain, pixels)
    with pytest.raises(diptych.DiptychError, match="a file of another kind"):
        train(stack, "unknown")
    monkeypatch.setattr(sources, "SOURCES", [STACKED, *sources.SOURCES])
    ours, theirs = train(stack, "ours"), train(plain, "theirs")
    assert losses(ours) == losses(theirs)
    encoder = diptych.load_encoder(ours)
    features = diptych.extract_features(encoder, stack, threads=1)
    assert np.array_equal(features, diptych.extract_features(encoder, pixels, threads=1))
    with pytest.raises(diptych.DiptychError, match=r"Wanted a \.stack file, 'photographs'"):
        train(images.with_name("nothing"), "nothing")


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]
