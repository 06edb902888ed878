"""The page of views shows the images that a run learns from; the report of a run does too."""

import base64
import io
import re
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.run import RunConfig
from diptych.images.collection import Collection, ImageSet
from diptych.images.open import from_array
from diptych.pretraining import pretrain
from diptych.report import page
from diptych.report.preview_page import write_preview
from diptych.views.preview.contact_sheet import contact_sheet

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


def shown(pixels: NDArray[np.uint8], out: Path, executor: Executor, **images: Any) -> str:
    """The page of two images, each with two views that are its centred square."""
    given = ImagesConfig(path="x", **images)
    config = RunConfig(images=given, views=ViewsConfig(side_pixels=16, policy="identity"))
    collection = Collection(from_array(pixels, None, given), None, "")
    write_preview(out, collection, config, [], executor, image_count=2, view_count=2)
    return out.read_text()


def levels(text: str) -> list[list[int]]:
    """The shades of each picture on a page."""
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(one)))
        for one in re.findall(r"data:image/png;base64,([^\"]+)", text)
    ]
    return [np.unique(np.asarray(one)).tolist() for one in pictures]


def test_of_photographs_in_windows_these_are_shown(tmp_path: Path, executor: Executor) -> None:
    pixels = np.zeros((4, 48, 48, 3), dtype=np.uint8)
    pixels[0, :32, :32] = 40  # the first of all windows
    pixels[3, 16:, 16:] = 200  # the last one
    text = shown(pixels, tmp_path / "views.html", executor, windows=2)
    assert levels(text) == [[40]] * 3 + [[200]] * 3
    assert "Each image is one of the 2 x 2 windows of a photograph" in text
    whole = shown(pixels, tmp_path / "views.html", executor)
    assert levels(whole)[0] != [40]
    assert "windows" not in whole


def test_the_second_view_shows_another_image_of_the_group(
    tmp_path: Path, executor: Executor
) -> None:
    shades = np.array([10, 20, 30, 40], dtype=np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(shades[:, None, None, None], (4, 20, 20, 3)))
    table = tmp_path / "pairs.csv"
    table.write_text("name,pair\n0,a\n1,a\n2,b\n3,b\n")
    text = shown(pixels, tmp_path / "views.html", executor, group_by=f"{table}:pair")
    assert levels(text) == [[10], [10], [20], [40], [40], [30]]
    assert "from the second on are of other images of the same group" in text


def test_the_report_shows_what_a_run_learned_from(
    tmp_path: Path, stripes: Stripes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = stripes(20)
    np.savez(tmp_path / "images.npz", images=pixels)
    table = tmp_path / "pairs.csv"
    table.write_text("name,pair\n" + "".join(f"{one},{one // 2}\n" for one in range(20)))
    settings: dict[str, Any] = {
        "scale": "tiny",
        "encoder.width": 4,
        "encoder.stage_blocks": (1, 1),
        "views.side_pixels": 16,
        "training.batch_size": 32,
        "training.threads": 1,
        "images.windows": 2,
        "images.group_by": f"{table}:pair",
    }
    run = pretrain(tmp_path / "images.npz", out=tmp_path / "run", quiet=True, epochs=1, **settings)
    given: list[tuple[int, int | None]] = []

    def noted(images: ImageSet, *args: Any, **options: Any) -> Image.Image:
        groups = options.get("groups")
        given.append((len(images), None if groups is None else len(groups)))
        return contact_sheet(images, *args, **options)

    monkeypatch.setattr(page, "contact_sheet", noted)
    text = page.write_report(run, threads=1).read_text()
    assert given == [(80, 10)]
    assert "one of the 2 x 2 windows of a photograph" in text
    table.unlink()
    assert (
        "The pictures of this page are missing: " in page.write_report(run, threads=1).read_text()
    )
