"""A run folder to one page that opens offline: the verdict first, then what it rests on."""

import csv
import json
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diptych.config_file import flatten, load_run_config
from diptych.configs import RunConfig
from diptych.errors import ImagesError, RunFolderError
from diptych.evaluation.features import encode
from diptych.evaluation.knn import nearest
from diptych.evaluation.verdict import Verdict, judge
from diptych.images.collection import ImageSet
from diptych.images.sources import open_images
from diptych.model.saved import load_encoder, untrained_encoder
from diptych.report import figures
from diptych.run_folder import RunFolder, write_aside
from diptych.threads import use_threads
from diptych.training.run_log import read_metrics
from diptych.views.cpu import make_views, to_pixels
from diptych.views.draw import centre_views
from diptych.views.preview import contact_sheet, policy_in_words, to_picture

_BANK_IMAGES: Final = 2000  # among which neighbours are looked for
_MAP_IMAGES: Final = 500
_SAMPLES: Final = 8
_NEIGHBOURS: Final = 6
_NEIGHBOUR_PIXELS: Final = 64


@dataclass(frozen=True)
class Thumbnail:
    """A picture on the page, with its class if it has one."""

    uri: str
    label: str
    agrees: bool | None = None


@dataclass(frozen=True)
class Neighbours:
    """A sample image and its nearest others before and after training."""

    sample: Thumbnail
    before: Sequence[Thumbnail]
    after: Sequence[Thumbnail]


def write_report(run: str | Path, *, threads: int | None = None) -> Path:
    """Writes ``report.html`` into a run folder and returns its path.

    Raises:
        RunFolderError: the folder holds no run whose training has ended.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise RunFolderError(f"{folder.path} holds no run: it has no config.toml.")
    config = load_run_config(folder.config)
    metrics, evaluation = read_metrics(folder.metrics), _evaluation(folder)
    with ThreadPoolExecutor(use_threads(threads)) as executor:
        pictures = _pictures(folder, config, executor)
    page = _template().render(
        name=folder.path.resolve().name,
        verdict=verdict_of(run),
        config=config,
        settings=flatten(config),
        last=metrics[-1] if metrics else None,
        evaluation=evaluation,
        loss_curve=Markup(figures.loss_curve(metrics)) if metrics else None,
        health_curve=Markup(figures.health_curve(metrics) or ""),
        bars=Markup(figures.accuracy_bars(evaluation)) if evaluation else None,
        policy=policy_in_words(config.views),
        skipped=_skipped(folder),
        **pictures,
    )
    write_aside(folder.report, page.encode())
    return folder.report


def verdict_of(run: str | Path) -> Verdict:
    """What the metrics and the evaluation of a run mean, in words."""
    folder = RunFolder(Path(run))
    dictionary = load_run_config(folder.config).method.dictionary
    queue_size = dictionary.queue_size if dictionary.kind == "queue" else None
    return judge(read_metrics(folder.metrics), _evaluation(folder), queue_size=queue_size)


def _evaluation(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.evaluation.exists():
        return None
    found: dict[str, Any] = json.loads(folder.evaluation.read_bytes())
    return found


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diptych.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


def _skipped(folder: RunFolder) -> list[dict[str, str]]:
    if not folder.skipped.exists():
        return []
    with open(folder.skipped, newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(file))


def _pictures(folder: RunFolder, config: RunConfig, executor: Executor) -> dict[str, Any]:
    """All that needs the images; without them the page says so."""
    encoder = load_encoder(folder)
    try:
        collection = open_images(config.images, executor)
    except ImagesError as error:
        return {"missing_images": str(error), "sheet": None, "neighbours": [], "map": None}
    shown = _spread(collection.train, _BANK_IMAGES)
    trained = encode(encoder, shown, config.views, executor)
    untrained = encode(untrained_encoder(config), shown, config.views, executor)
    few = _spread(shown, _MAP_IMAGES)
    thumbnails = _thumbnails(few, config, executor)
    rows = _spread_indices(len(shown), _MAP_IMAGES)
    sheet = contact_sheet(collection.train, config.views, executor, seed=config.seed)
    plane = figures.feature_map(trained[rows].numpy(), thumbnails, few.labels)
    return {
        "missing_images": None,
        "sheet": figures.data_uri(sheet, lossless=True),
        "neighbours": _neighbours(shown, untrained, trained, config, executor),
        "map": figures.data_uri(plane),
    }


def _neighbours(
    images: ImageSet, untrained: Tensor, trained: Tensor, config: RunConfig, executor: Executor
) -> list[Neighbours]:
    samples = _spread_indices(len(images), _SAMPLES + 2)[1:-1]
    rows = torch.from_numpy(samples)
    found = [
        nearest(features[rows], features, _NEIGHBOURS + 1)[1].tolist()
        for features in (untrained, trained)
    ]

    def show(index: int, sample: int | None) -> Thumbnail:
        picture = _thumbnails(images.select(np.array([index])), config, executor)[0]
        enlarged = picture.resize((_NEIGHBOUR_PIXELS, _NEIGHBOUR_PIXELS), Image.Resampling.NEAREST)
        if images.labels is None:
            return Thumbnail(figures.data_uri(enlarged), images.names[index])
        label = images.classes[images.labels[index]]
        agrees = None if sample is None else bool(images.labels[index] == images.labels[sample])
        return Thumbnail(figures.data_uri(enlarged), label, agrees)

    result = []
    for sample, before, after in zip(samples.tolist(), *found, strict=True):
        others = [[i for i in some if i != sample][:_NEIGHBOURS] for some in (before, after)]
        sides = [[show(i, sample) for i in some] for some in others]
        result.append(Neighbours(show(sample, None), *sides))
    return result


def _thumbnails(images: ImageSet, config: RunConfig, executor: Executor) -> list[Image.Image]:
    pixels = images.pixels.gather(np.arange(len(images)), executor)
    centred = centre_views(pixels.heights, pixels.widths)
    views = to_pixels(make_views(pixels, centred, config.views, executor)[0], config.views)
    side = min(_NEIGHBOUR_PIXELS, config.views.side_pixels)
    return [to_picture(view, side) for view in views]


def _spread(images: ImageSet, most: int) -> ImageSet:
    return images.select(_spread_indices(len(images), most))


def _spread_indices(count: int, most: int) -> NDArray[np.int64]:
    chosen: NDArray[np.int64] = np.unique(
        np.linspace(0, count - 1, min(count, most)).astype(np.int64)
    )
    return chosen
