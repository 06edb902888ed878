"""The verbs that measure a run with labels and show it: `evaluate` and `report`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import InferenceOptions, parse
from diptych.runtime.console import ProgressBars


@dataclass(frozen=True)
class EvaluateFlags:
    """What `diptych evaluate` takes."""

    run: Positional[Path]
    """A run folder whose training has ended, or an encoder file as `diptych import` writes it: that
    needs --train."""
    protocol: tuple[str, ...] = ("knn", "linear")
    """What to measure, one or several of: knn, linear, linear_sgd, finetune, transfer, geometry,
    transformations, views. Results of others stay in evaluation.json; docs/evaluation.md says
    more."""
    train: str | None = None
    """Labelled images, one folder for each class, to fit the probes on. The run's own by
    default."""
    test: str | None = None
    """Labelled images to measure on. By default those held out with the run's own images, or a
    fifth split off from them; the result says which of them pretraining saw."""
    fit_images: int | None = None
    """Labelled images to fit the probes on, at most, spread over all that there are."""
    test_images: int | None = None
    """Labelled images to measure on, at most, spread over all that there are."""
    supervised: bool = False
    """Compare with the same network trained on the labels, with the run's views, optimizer and
    steps. It is trained once and kept in the run folder; that takes about as long as the run."""
    against: tuple[str, ...] = ()
    """Other encoders to compare with: run folders, encoder.safetensors files, or weights of other
    libraries as `diptych pretrain --weights` takes them."""
    head_layers: int = 0
    """Hidden layers of the projection head to keep behind the encoder."""
    crops: Literal["center", "five"] = "center"
    """Encode the centre of an image, or five crops (corners and centre), whose mean is taken."""
    neighbours: int = 20
    """Neighbours that vote in knn."""
    knn_temperature: float = 0.07
    """Of knn: a vote weighs exp(cosine / temperature)."""
    l2_sweep: Literal["seven", "simclr"] = "seven"
    """Of linear and transfer: penalties to choose from, 7 from 1 to 1e-6, or SimCLR's 45 from 1e5
    to 1e-6."""
    sgd: Literal["moco", "simclr"] = "moco"
    """Of linear_sgd: the paper that the settings are from."""
    sgd_epochs: int | None = None
    """Of linear_sgd: MoCo's 100 or SimCLR's 90 when not given."""
    finetune_shares: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Shares of the labels for finetune; the same of each class."""
    finetune_epochs: int | None = None
    """Of finetune: 30, and 60 for 1% of the labels, when not given; labels alone may get three
    times as many."""
    seeds: int = 3
    """Seeds of finetune."""
    transfer: tuple[str, ...] = ()
    """Labelled images for transfer, one path for each task."""
    runtime: Annotated[InferenceOptions, arg(name="")] = field(default_factory=InferenceOptions)


COMMON: Final = {
    "what is measured": ("protocol", "train", "test", "against", "supervised", "head_layers"),
    "settings of the protocols": ("neighbours", "finetune_shares", "seeds", "transfer"),
    "how": ("crops", "device", "batch_size", "threads"),
}
"""Flags that most people need."""


def evaluate(arguments: Sequence[str]) -> None:
    """Measure an encoder by kNN and by a linear classifier, or by other --protocol.

    The same is done with the untrained encoder, raw pixels and what --against and --supervised
    name. Results are added to evaluation.json, of an encoder file x.safetensors in x-evaluation/;
    `diptych report RUN` shows all of a run.

    Examples:
      diptych evaluate runs/photos
      diptych evaluate runs/photos --train labelled/train --test labelled/test
      diptych evaluate runs/photos --protocol finetune --finetune-shares 0.1 0.01 --seeds 3
      diptych evaluate runs/photos --protocol transfer --transfer birds/ cars/
      diptych evaluate runs/photos --supervised --against runs/other
      diptych evaluate imagenet.safetensors --train labelled/train --test labelled/test
    """
    flags = parse(EvaluateFlags, evaluate, arguments, common=COMMON)

    from diptych.diagnostics.candidates import read_choice, words_for_kept
    from diptych.evaluation.protocols import evaluate as measure
    from diptych.evaluation.protocols import results_folder
    from diptych.report.charts import print_tables

    options = asdict(flags)
    run, protocols, runtime = (options.pop(name) for name in ("run", "protocol", "runtime"))
    console = Console(markup=False)
    with ProgressBars(console) as bars:
        found = measure(run, protocols, **runtime, progress=bars, **options)
    folder = results_folder(run)
    print_tables(console, found, words_for_kept(read_choice(folder), found))
    print_verdict(console, run)
    if folder.path != run:
        console.print(f"Results: {folder.path}", highlight=False, soft_wrap=True)


def print_verdict(console: Console, run: Path) -> None:
    """Prints what a run's report says first."""
    from diptych.report.page import verdict_of

    verdict = verdict_of(run)
    console.print(verdict.headline, style="bold", highlight=False)
    for sentence in verdict.sentences:
        console.print(sentence, highlight=False)


@dataclass(frozen=True)
class ReportFlags:
    """What `diptych report` takes."""

    run: Positional[Path]
    """A run folder whose training has ended."""
    runtime: Annotated[InferenceOptions, arg(name="")] = field(default_factory=InferenceOptions)


def report(arguments: Sequence[str]) -> None:
    """Write RUN/report.html: one page that opens offline and begins with a verdict in words.

    Examples:
      diptych report runs/photos
    """
    flags = parse(ReportFlags, report, arguments)

    from diptych.report.page import write_report

    with ProgressBars(Console(markup=False)) as bars:
        page = write_report(flags.run, progress=bars, **asdict(flags.runtime))
    print(f"Report: {page}")
