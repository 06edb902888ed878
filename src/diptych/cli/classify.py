"""The verbs that end in labels: `classify`, and `subset`, which says what to label."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import InferenceOptions, parse
from diptych.config.downstream import ClassifierSettings
from diptych.errors import ConfigError
from diptych.runs.own_tables import require_no_input, require_own_table
from diptych.runtime.console import ProgressBars

if TYPE_CHECKING:
    from diptych.curation.subset import Chosen
    from diptych.curation.thumbnails import Thumbnails
    from diptych.embeddings.vectors import VectorSet


@dataclass(frozen=True)
class ClassifyFlags:
    """What `diptych classify` takes."""

    task: Positional[Literal["fit", "predict"]]
    """What to do, fit or predict: make a classifier of labelled images, or use it on others."""
    source: Positional[str]
    """Run, encoder or weights to fit on; of predict, the folder of the classifier. Weights are as
    `--weights` of `diptych pretrain` takes them."""
    images: Positional[str]
    """Labelled images to fit on, or images to classify. A folder for each class, or anything else
    with labels."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """Of fit the folder of the classifier, of predict a table that ends in .csv."""
    test: str | None = None
    """Labelled images to measure on. Those held out with the images by default, or a fifth
    of them."""
    encoder: str = "resnet50"
    """The network of weights that do not show it."""
    settings: Annotated[ClassifierSettings, arg(name="")] = field(
        default_factory=ClassifierSettings
    )
    runtime: Annotated[InferenceOptions, arg(name="")] = field(default_factory=InferenceOptions)


CLASSIFY_COMMON: Final = {
    "of fit": ("kind", "test", "encoder", "crops", "neighbours", "epochs", "seed"),
    "of both": ("out", "device", "batch_size", "threads"),
}


def classify(arguments: Sequence[str]) -> None:
    """Fit a classifier on labelled images, or classify others with it.

    fit writes a folder with the classifier, its encoder, a table of its answers on images that
    were kept apart, and a page on how good it is. predict writes a table with a probability for
    each class.

    Examples:
      diptych classify fit runs/photos labelled/ -o model/
      diptych classify fit runs/photos labelled/train --test labelled/test -o model/
      diptych classify fit runs/photos labelled/ --kind finetune --epochs 20 -o model/
      diptych classify predict model/ photos/ -o predictions.csv
    """
    flags = parse(ClassifyFlags, classify, arguments, common=CLASSIFY_COMMON)
    console = Console(markup=False)
    if flags.task == "fit":
        _fit(flags, console)
    else:
        _predict(flags, console)


def _fit(flags: ClassifyFlags, console: Console) -> None:
    from diptych.classification.classifier import PAGE
    from diptych.classification.classifier_page import headline, sentences
    from diptych.classification.fit import fit_classifier

    with ProgressBars(console) as bars:
        found = fit_classifier(
            flags.source,
            flags.images,
            flags.out,
            test=flags.test,
            encoder=flags.encoder,
            progress=bars,
            **asdict(flags.runtime),
            **asdict(flags.settings),
        )
    console.print(headline(found.about), style="bold", highlight=False)
    for sentence in sentences(found):
        console.print(sentence, highlight=False)
    console.print(f"Classifier: {flags.out}", highlight=False, soft_wrap=True)
    console.print(f"Page: {flags.out / PAGE}", highlight=False, soft_wrap=True)


def _predict(flags: ClassifyFlags, console: Console) -> None:
    from diptych.classification.predict import predict_images
    from diptych.evaluation.predictions import accuracy_interval

    if flags.settings != ClassifierSettings() or flags.test is not None:
        raise ConfigError(
            "predict uses the classifier as it was fitted: --test and the settings of fit, as "
            "--kind or --crops, go with `diptych classify fit`."
        )
    with ProgressBars(console) as bars:
        found = predict_images(
            flags.source, flags.images, flags.out, progress=bars, **asdict(flags.runtime)
        )
    said, labelled = found.predictions, found.predictions.labelled()
    console.print(f"{len(said):,} images: {flags.out}", highlight=False, soft_wrap=True)
    if found.skipped:
        console.print(
            f"{len(found.skipped):,} cannot be read: {flags.out.with_suffix('.skipped.csv')}",
            highlight=False,
            soft_wrap=True,
        )
    for sentence in found.left_out:
        console.print(sentence, highlight=False)
    if len(labelled):
        value, low, high = (100 * one for one in accuracy_interval(labelled))
        console.print(
            f"Of the {len(labelled):,} that have a label {value:.1f}% are named right ({low:.1f} "
            f"to {high:.1f}%). Where the classifier was fitted on some of them, that is too many.",
            highlight=False,
        )


_SUBSET_COLUMNS: Final = ("name", "rank", "score")
_FIRST_LINE: Final = "# diptych subset\n"  # of a list, which takes it for a comment


@dataclass(frozen=True)
class SubsetFlags:
    """What `diptych subset` takes."""

    vectors: Positional[str]
    """Vectors of all images: a folder or file of `diptych embed`, a table, or an .npy file."""
    budget: int
    """Images to choose."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("subset.csv")
    """A table that ends in .csv, or a .txt list of paths. `diptych pretrain` takes the list as
    images."""
    by: Literal["k-centre", "facility-location", "typical", "uncertain"] = "typical"
    """How to choose. k-centre: the farthest from all chosen, rare kinds too; facility-location:
    those that all images are most like; typical: the densest part of each cluster, for few labels;
    uncertain: those that --model is least sure of."""
    labelled: str | None = None
    """What is labelled already and counts as chosen: a .csv with a column `name`, a list of names
    or files, or `labels` for the images with a label among the vectors."""
    model: str | None = None
    """The folder of a classifier on the same encoder, of `diptych classify fit`; for uncertain."""
    seed: int = 0
    """Of the clusters of typical."""
    threads: int | None = None
    """CPU threads; all cores when not given."""


def subset(arguments: Sequence[str]) -> None:
    """Choose which images to label next, by their vectors.

    Examples:
      diptych subset features/ --budget 500 -o to-label.csv
      diptych subset features/ --budget 500 --by k-centre --labelled done.csv -o next.txt
      diptych subset features/ --budget 100 --by uncertain --model model/ --labelled done.csv
    """
    flags = parse(SubsetFlags, subset, arguments)

    from diptych.curation.subset import SCORES, choose_subset, find_labelled
    from diptych.embeddings.vectors import read_vectors
    from diptych.runtime.devices import use_threads

    if flags.out.suffix.lower() not in (".csv", ".txt"):
        raise ConfigError(f"-o {flags.out}: wanted a name that ends in .csv or .txt.")
    if flags.out.suffix.lower() == ".csv":
        require_own_table(flags.out, _SUBSET_COLUMNS)
    else:
        _require_own_list(flags.out)
    use_threads(flags.threads)
    vectors = read_vectors(flags.vectors)
    require_no_input(flags.out, (flags.vectors, flags.labelled, vectors.path))
    files = None
    if flags.out.suffix.lower() == ".txt" and vectors.path is not None:
        files = _files_of(vectors, flags.out)
    own = find_labelled(vectors, flags.labelled)
    probabilities = None
    if flags.by == "uncertain" and flags.model is not None:
        from diptych.classification.predict import classify_vectors

        probabilities = classify_vectors(flags.model, vectors)
    elif flags.model is not None:
        raise ConfigError(f"--model goes with --by uncertain; got --by {flags.by}.")
    chosen = choose_subset(
        vectors.features,
        flags.budget,
        flags.by,
        labelled=own.rows,
        probabilities=probabilities,
        seed=flags.seed,
    )
    _write_chosen(flags.out, vectors, chosen, files)
    console = Console(markup=False)
    more = f", beside {len(own.rows):,} that are labelled" if len(own.rows) else ""
    console.print(
        f"{len(chosen.rows):,} of {len(vectors):,} images{more}: {flags.out}",
        highlight=False,
        soft_wrap=True,
    )
    if own.unknown:
        console.print(f"{own.unknown:,} names of --labelled are none of the images.")
    console.print(f"Their score: {SCORES[flags.by]}.", highlight=False)


def _require_own_list(out: Path) -> None:
    """Sees that no other file is lost; an empty one has nothing to lose."""
    if not out.exists():
        return
    first = _FIRST_LINE.encode()
    with open(out, "rb") as file:  # of a folder that is the error
        there = file.read(len(first))
    if there not in (b"", first):
        raise ConfigError(
            f"-o {out} is there and is no list of this command, which begins with "
            f"{_FIRST_LINE.strip()!r}. Choose another name, or move it away."
        )


def _files_of(vectors: "VectorSet", out: Path) -> "Thumbnails":
    """Where the files of the images are, for a list of them."""
    from diptych.curation.thumbnails import Thumbnails

    found = Thumbnails.of(vectors)
    if found.rows is None or found.rows.file is None:
        why = found.missing or "The images are no files of their own."
        raise ConfigError(f"-o {out} is a list of files. {why} Give a table, as {out.stem}.csv.")
    return found


def _write_chosen(
    out: Path, vectors: "VectorSet", chosen: "Chosen", files: "Thumbnails | None"
) -> None:
    """A list of files, by their names where these are all that is known, or a table."""
    from diptych.escaping import HANDLER, escaped
    from diptych.images.sources.lists import fits_a_line
    from diptych.runs.atomic import atomic_write

    names = [vectors.names[row] for row in chosen.rows]
    if out.suffix.lower() == ".txt":
        if files is not None:
            names = [_file_of(files, int(row), out) for row in chosen.rows]
        for name in names:
            if not fits_a_line(name):
                raise ConfigError(
                    f"-o {out}: a list cannot hold {name!r}, with a line break, blanks at its ends "
                    f"or a # at its beginning. Rename the file, or give a table, as {out.stem}.csv."
                )
        lines = "".join(f"{name}\n" for name in names)
        atomic_write(out, (_FIRST_LINE + lines).encode(errors="surrogateescape"))
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_SUBSET_COLUMNS)
    for rank, (name, score) in enumerate(zip(names, chosen.scores, strict=True), start=1):
        writer.writerow([escaped(name), rank, f"{score:.6g}"])
    atomic_write(out, text.getvalue().encode(errors=HANDLER))


def _file_of(files: "Thumbnails", row: int, out: Path) -> str:
    found = files.file(row)
    if found is None:
        raise ConfigError(
            f"-o {out}: {files.names[row]} is no longer among the images. Embed them again."
        )
    return os.path.abspath(found)
