"""The report of a run: one HTML page that opens offline, the verdict first, then its evidence."""

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import nn

from diptych.config.files import flatten, load_run_config
from diptych.config.run import RunConfig
from diptych.diagnostics.candidates import read_choice, words_for_kept
from diptych.diagnostics.comparison import result_table
from diptych.diagnostics.time_symptoms import time_symptoms
from diptych.diagnostics.verdict import Verdict, judge, judge_encoder
from diptych.errors import ConfigError, ImagesError, RunFolderError
from diptych.escaping import HANDLER, quoted
from diptych.evaluation.feature_store import FeatureStore
from diptych.evaluation.knn import nearest
from diptych.evaluation.predictions import read_predictions
from diptych.evaluation.protocols import read_evaluation, results_folder
from diptych.evaluation.split import NOT_RECORDED
from diptych.images.collection import Collection, ImageSet
from diptych.images.inventory import Skipped
from diptych.images.open import open_images
from diptych.logging.metrics import read_metrics, task_accuracy
from diptych.logging.times import time_in_words, times_of
from diptych.models.weights import load_encoder, load_untrained
from diptych.report import figures
from diptych.report.answers import Answers, answers_of
from diptych.report.charts import (
    chart_groups,
    detection_group,
    geometry_images,
    geometry_rows,
    read_detection,
    tested_images,
)
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder, require_writable
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import BATCH_SIZE, Runtime
from diptych.views.batches import learned_images
from diptych.views.cpu import load_centred, to_pixels
from diptych.views.preview.contact_sheet import contact_sheet, to_picture
from diptych.views.preview.policy_in_words import branches_in_words, images_in_words

_SEARCHED_IMAGES: Final = 2000  # among which the nearest neighbours are looked for
_MAP_IMAGES: Final = 500
_SAMPLES: Final = 8
_SHEET_VIEWS: Final = 6  # as many as the page has room for without making them smaller
_NEIGHBOURS: Final = 6
_NEIGHBOUR_PIXELS: Final = 64
_MOST_IN_LEGEND: Final = 24
_TRAINED: Final = "the trained encoder"
_UNTRAINED: Final = "the untrained encoder"
_LEFT_OUT_ROWS: Final = 50


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


@dataclass(frozen=True)
class LeftOutTable:
    """What ``skipped.csv`` lists, by kinds.

    Attributes:
        rows: one for each part and reason with one name and the sum of the counts, the largest
            first.
        more: kinds that are not among the rows.
    """

    rows: tuple[Skipped, ...]
    more: int = 0


def write_report(
    run: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: ProgressReporter | None = None,
    encoder: nn.Module | None = None,
) -> Path:
    """Writes ``report.html`` into a run folder and returns its path.

    Args:
        run: a run folder whose training has ended.
        device: where the encoder runs, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        batch_size: images that it sees at once; changes features by rounding only.
        progress: told how far it is.
        encoder: of a run whose encoder was given in Python, a module of the same structure.

    Raises:
        RunFolderError: the folder holds no run whose training has ended, or a damaged result.
        OSError: it cannot be written.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise RunFolderError(f"{folder.path} holds no run: it has no config.toml.")
    require_writable(folder.path)
    config = load_run_config(folder.config)
    metrics, evaluation = read_metrics(folder.metrics), read_evaluation(folder)
    detection, choice = read_detection(folder.detection), read_choice(folder)
    kept = words_for_kept(choice, evaluation)
    with Runtime(device, threads, batch_size, progress or ProgressReporter()) as runtime:
        pictures = _pictures(folder, config, runtime, encoder)
    page = template("page.html.jinja").render(
        name=folder.path.resolve().name,
        shell_path=quoted(folder.path),
        verdict=verdict_of(run),
        results=result_table(evaluation, kept),
        config=config,
        settings=flatten(config),
        last=metrics[-1] if metrics else None,
        evaluation=evaluation,
        loss_curve=Markup(figures.loss_curve(metrics)) if metrics else None,
        health_curve=Markup(figures.health_curve(metrics) or ""),
        time=_time(metrics),
        kept=kept,
        groups=chart_groups(evaluation or {}, kept)
        + ([detection_group(detection)] if detection else []),
        knn_images=tested_images(evaluation or {}, "knn"),
        training=training_words(metrics),
        health_images=_health_images(metrics),
        geometry=geometry_rows(evaluation or {}),
        geometry_images=geometry_images(evaluation or {}),
        policy=branches_in_words(config.views, config.images.channels),
        about_images=images_in_words(config.images),
        left_out=left_out_table(folder.skipped),
        choice=choice,
        answers_title=(
            "What the linear classifier on the encoder of the run answers on its test images, all "
            f"of it in {folder.predictions.name}."
        ),
        answers_calibration="The probabilities are as the classifier gives them.",
        **pictures,
    )
    atomic_write(folder.report, page.encode(errors=HANDLER))
    return folder.report


def verdict_of(run: str | Path) -> Verdict:
    """What the metrics and the evaluation of a run show, or those of an encoder file, in words."""
    folder = results_folder(run)
    evaluation = read_evaluation(folder)
    if not folder.config.exists() and evaluation is not None:
        return judge_encoder(evaluation)
    return judge(read_metrics(folder.metrics), evaluation, read_choice(folder))


def training_words(metrics: Sequence[Mapping[str, Any]]) -> str:
    """What the curves of a run's loss and of its training task show, in sentences.

    Args:
        metrics: the lines of a run.
    """
    known = [line for line in metrics if "chance_loss" in line]
    sentences = ["This loss has no chance level: only its course says something."]
    if known:
        sentences = ["A loss below the dashed line is better than guessing."]
        if known[-1]["chance_loss"] > known[0]["chance_loss"]:
            sentences.append(
                "Loss and chance level rise together while the dictionary fills; that is normal."
            )
    task = next((one for one in map(task_accuracy, reversed(metrics)) if one is not None), None)
    if task is not None and task.share:
        sentences.append(f"The {task.name.replace('_', ' ')} is {task.share}.")
    return " ".join(sentences)


def left_out_table(skipped: Path) -> LeftOutTable | None:
    """Reads ``skipped.csv``; None where it is missing."""
    if not skipped.exists():
        return None
    kinds = dict[tuple[str, str], Skipped]()
    with open(skipped, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            one = Skipped(row["name"], row["reason"], row.get("part") or "", _count(row))
            same = kinds.get((one.part, one.reason))
            kinds[one.part, one.reason] = (
                one if same is None else replace(same, count=same.count + one.count)
            )
    rows = sorted(kinds.values(), key=lambda one: -one.count)
    return LeftOutTable(tuple(rows[:_LEFT_OUT_ROWS]), max(0, len(rows) - _LEFT_OUT_ROWS))


def template(name: str, package: str = "diptych.report") -> jinja2.Template:
    """A template by its file name, which escapes all text and refuses a missing name.

    Args:
        name: of the file.
        package: that has the file; what it includes may be in this package.
    """
    packages = dict.fromkeys((package, "diptych.report"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(one, ".") for one in packages]),
        # Names of files and classes may hold any markup.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _time(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Bars and sentences on where the time went; None where the metrics have no times."""
    times = times_of(metrics)
    if times is None:
        return None
    rows = {"process 0": times.own}
    if times.slowest is not None and times.usual is not None:
        rows = {
            "process 0": times.own,
            "median of all": times.usual,
            f"slowest ({times.slowest_process})": times.slowest,
        }
    sentences = [time_in_words(times), *(one.sentence for one in time_symptoms(metrics))]
    return {"bars": Markup(figures.time_bars(rows)), "sentences": sentences}


def _health_images(metrics: Sequence[Mapping[str, Any]]) -> str:
    """On which images kNN was measured in training; empty where it was not."""
    last = next((line for line in reversed(metrics) if "knn" in line), None)
    if last is None:
        return ""
    if "knn_images" not in last:
        return f"kNN: {NOT_RECORDED}"
    images, seen = last["knn_images"], last.get("knn_images_seen")
    if seen is None:
        return f"kNN is measured on {images:,.0f} images."
    return f"kNN is measured on {images:,.0f} images, {seen:,.0f} of which the run learns from."


def _pictures(
    folder: RunFolder, config: RunConfig, runtime: Runtime, own_encoder: nn.Module | None
) -> dict[str, Any]:
    """All that needs the images; without them the page says so."""
    executor, told = runtime.executor, runtime.counting("Reading the images")
    encoder = load_encoder(folder, encoder=own_encoder).to(runtime.torch_device)
    try:
        collection = open_images(config.images, executor, told)
        learned, groups = learned_images(collection.train, config)
    except (ImagesError, ConfigError) as error:  # a table of groups may be gone as well
        nothing: dict[str, Any] = {"sheet": None, "neighbours": [], "map": None, "legend": []}
        nothing["answers"] = _answers(folder, config, runtime, None)
        return {"missing_images": str(error), **nothing}
    shown = collection.train.spread(_SEARCHED_IMAGES)
    samples = (collection.test or collection.train).spread(_SAMPLES)
    untrained = load_untrained(folder, config, own_encoder).to(runtime.torch_device)
    store = FeatureStore(folder.features, runtime)
    few = shown.spread(_MAP_IMAGES)
    thumbnails = _thumbnails(few, config, executor)
    trained = store.features(encoder, few, config.images, config.views, of=_TRAINED)
    sheet = contact_sheet(
        learned,
        config.views,
        executor,
        seed=config.seed,
        view_count=_SHEET_VIEWS,
        run_views=config.method.views,
        groups=groups,
    )
    plane = figures.feature_map(trained.numpy(), thumbnails, few.labels)
    return {
        "missing_images": None,
        "answers": _answers(folder, config, runtime, collection),
        "sheet": figures.data_uri(sheet, lossless=True),
        "neighbours": _neighbours(
            samples,
            shown,
            {_UNTRAINED: untrained, _TRAINED: encoder},
            config,
            store,
            executor,
            held_out=collection.test is not None,
        ),
        "map": figures.data_uri(plane),
        "legend": _legend(few),
    }


def _answers(
    folder: RunFolder, config: RunConfig, runtime: Runtime, opened: Collection | None
) -> Answers | None:
    """What ``predictions.csv`` holds; without pictures where the images are gone.

    Args:
        folder: of the run.
        config: of the run.
        runtime: its threads make the pictures.
        opened: the images of the run.
    """
    found = read_predictions(folder.predictions)
    if found is None:
        return None
    details = (read_evaluation(folder) or {}).get("details", {})
    given = details.get("linear", {}).get("labelled", {})
    path = given.get("test") or given.get("train")
    if path is not None:  # the images that were measured on are others
        images, opened = config.images.at(path), None
        with suppress(ImagesError):
            opened = open_images(images, runtime.executor)
    sets = [] if opened is None else [opened.train]
    if opened is not None and opened.test is not None:
        sets.insert(0, opened.test)
    return answers_of(found.labelled(), sets, config.views, runtime.executor)


def _legend(images: ImageSet) -> list[tuple[str, str]]:
    """Name and frame colour of each class, where there are few enough to tell apart."""
    if images.labels is None or len(images.classes) > _MOST_IN_LEGEND:
        return []
    return [(name, figures.class_color(label)) for label, name in enumerate(images.classes)]


def _neighbours(
    samples: ImageSet,
    searched: ImageSet,
    encoders: Mapping[str, nn.Module],
    config: RunConfig,
    store: FeatureStore,
    executor: Executor,
    *,
    held_out: bool,
) -> list[Neighbours]:
    """The nearest of the searched images to each sample, by each encoder.

    Samples that are not held out may be among them; an image is no neighbour of itself.
    """
    found = []
    for name, encoder in encoders.items():
        queries, keys = (
            store.features(encoder, part, config.images, config.views, of=name)
            for part in (samples, searched)
        )
        found.append(nearest(queries, keys, _NEIGHBOURS + 1)[1].tolist())
    result = []
    for row, name in enumerate(samples.names):
        sample = samples.select(np.array([row]))
        class_name = _class_names(sample)[0]
        sides = []
        for rows in found:
            others = [i for i in rows[row] if held_out or searched.names[i] != name][:_NEIGHBOURS]
            sides.append(
                _strip(searched.select(np.array(others)), config, executor, class_name=class_name)
            )
        result.append(Neighbours(_strip(sample, config, executor)[0], *sides))
    return result


def _strip(
    images: ImageSet, config: RunConfig, executor: Executor, *, class_name: str | None = None
) -> list[Thumbnail]:
    """Pictures for the page; with a class, whether each picture has it too."""
    size = (_NEIGHBOUR_PIXELS, _NEIGHBOUR_PIXELS)
    result = []
    pictures = _thumbnails(images, config, executor)
    for picture, name, label in zip(pictures, images.names, _class_names(images), strict=True):
        enlarged = picture.resize(size, Image.Resampling.NEAREST)
        agrees = None if class_name is None else label == class_name
        result.append(Thumbnail(figures.data_uri(enlarged), label or name, agrees))
    return result


def _class_names(images: ImageSet) -> list[str | None]:
    if images.labels is None:
        return [None] * len(images)
    return [images.classes[label] if label >= 0 else None for label in images.labels.tolist()]


def _thumbnails(images: ImageSet, config: RunConfig, executor: Executor) -> list[Image.Image]:
    centred = load_centred(images, np.arange(len(images)), config.views, executor)
    views = to_pixels(centred, config.views)
    side = min(_NEIGHBOUR_PIXELS, config.views.side_pixels)
    return [to_picture(view, side) for view in views]


def _count(row: dict[str, str]) -> int:
    count = row.get("count") or ""  # older files have a row for each name
    return int(count) if count.isdecimal() else 1
