"""The verbs that judge training without labels: `rank`, and `check-leak` of batch norm."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from diptych.cli.flags import DeviceOptions, InferenceOptions, parse
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.runtime.console import ProgressBars

if TYPE_CHECKING:
    from diptych.diagnostics.label_free import Agreement
    from diptych.diagnostics.ranking import RankedCandidate, Ranking
    from diptych.evaluation.split import Split

_MEASURES: Final = {
    "effective_rank": "effective rank",
    "pretext": "pretext accuracy",
    "stability": "stability",
    "combined": "combined",
}
"""What candidates are ranked by, as the tables call it."""


@dataclass(frozen=True)
class RankFlags:
    """What `diptych rank` takes."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, one or several."""
    images: str | None = None
    """Images to measure on, which need no labels; by default the runs' own, and of these the
    held-out ones."""
    labels: bool = False
    """Measure kNN too, where there are labels, and say how each measure agrees with it."""
    checkpoints: bool | None = None
    """Rank every checkpoint that was kept, not the encoder that each run keeps; by default when
    there is one run."""
    image_count: int = 2048
    """Images to measure on, at most."""
    json: Path | None = None
    """Also write all figures to this file."""
    runtime: Annotated[InferenceOptions, arg(name="")] = field(default_factory=InferenceOptions)


def rank(arguments: Sequence[str]) -> None:
    """Rank runs, or the checkpoints kept in a run, without labels: the best first.

    By effective rank of the features, pretext accuracy on held-out images, stability of neighbours
    from one view to another, and all three combined. With --labels also by kNN, which does not
    change the order, and how well each measure agrees with it. Of several runs the encoders that
    they keep are measured; pretext accuracy is that of the last step.

    Examples:
      diptych rank runs/a runs/b runs/c
      diptych rank runs/a --images photos/ --json ranks.json
      diptych rank runs/* --labels
    """
    flags = parse(RankFlags, rank, arguments)

    from diptych.diagnostics.ranking import rank_runs

    if flags.json is not None:
        require_writable(flags.json.parent)
    console = Console(markup=False)
    with ProgressBars(console) as bars:
        found = rank_runs(
            flags.runs,
            images=flags.images,
            labels=flags.labels,
            checkpoints=flags.checkpoints,
            image_count=flags.image_count,
            progress=bars,
            **asdict(flags.runtime),
        )
    print_ranking(console, found)
    if flags.json is not None:
        atomic_write(flags.json, (json.dumps(found.as_dict(), indent=1) + "\n").encode())


def print_ranking(console: Console, ranking: "Ranking") -> None:
    """Prints the candidates, the best first; with labels also each measure's agreement with kNN."""
    console.print(_candidates(ranking))
    if _names_encoders(ranking):
        console.print(
            "Measured is the encoder that a run keeps. Pretext accuracy is that of its last step.",
            highlight=False,
        )
    if ranking.agreement is not None:
        console.print(_agreements(ranking.agreement))
    _print_splits(console, ranking.splits, "")
    _print_splits(console, ranking.labelled, "kNN: ")


def _names_encoders(ranking: "Ranking") -> bool:
    """Whether some run keeps another encoder than that of its last step."""
    return any(row.kept is not None for row in ranking.rows)


def _candidates(ranking: "Ranking") -> Table:
    rows = ranking.rows
    table = Table(
        title=f"Ranked without labels, on {ranking.images:,} images; more is better in each",
        title_justify="left",
    )
    table.add_column("run", overflow="fold")
    table.add_column("step", justify="right")
    if _names_encoders(ranking):
        table.add_column("encoder")
    columns = {**_MEASURES, "steadiness": "agreement with the checkpoint before", "knn": "kNN"}
    shown = [name for name in columns if any(getattr(row, name) is not None for row in rows)]
    for name in shown:
        table.add_column(columns[name], justify="right")
    for row in rows:
        step = "end" if row.step is None else f"{row.step:,}"
        encoder = [row.kept or "last step"] if _names_encoders(ranking) else []
        table.add_row(row.run, step, *encoder, *(_figure(row, name) for name in shown))
    return table


def _figure(row: "RankedCandidate", name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return "-"
    if name == "combined":
        return f"{value:.2f}"
    return f"{value:.1f}" if name == "effective_rank" else f"{value:.1%}"


def _agreements(agreement: "Mapping[str, Agreement | None]") -> Table:
    table = Table(title="How well each agrees with kNN", title_justify="left")
    table.add_column("measure")
    for heading in ("Kendall's tau", "Spearman", "p-value", "accuracy lost"):
        table.add_column(heading, justify="right")
    for name, one in agreement.items():
        if one is None:
            table.add_row(_MEASURES[name], "not known", "", "", "")
            continue
        table.add_row(
            _MEASURES[name],
            f"{one.kendall:+.2f}",
            f"{one.spearman:+.2f}",
            f"{one.p_value:.1%}",
            f"{100 * one.lost:.1f} points",
        )
    return table


def _print_splits(console: Console, splits: "Mapping[str, Split]", what: str) -> None:
    """On which images; once for each run where they differ."""
    words = {run: split.words for run, split in splits.items()}
    if len(set(words.values())) == 1:
        words = {"": next(iter(words.values()))}
    for run, sentences in words.items():
        console.print(f"{run + ': ' if run else ''}{what}{sentences}", highlight=False)


@dataclass(frozen=True)
class CheckLeakFlags:
    """What `diptych check-leak` takes."""

    run: Positional[Path]
    """A run folder with a checkpoint."""
    images: int = 2048
    """Images to encode, in whole batches."""
    runtime: Annotated[DeviceOptions, arg(name="")] = field(default_factory=DeviceOptions)


def check_leak(arguments: Sequence[str]) -> None:
    """Measure a run's leak accuracy: the share of keys that batch statistics alone give away.

    Images are encoded as in training, in batches as large, with the head and the key encoder of the
    newest checkpoint, and again with keys in random groups. Leak accuracy is the pretext accuracy
    of the first less that of the second.

    Examples:
      diptych check-leak runs/photos
    """
    flags = parse(CheckLeakFlags, check_leak, arguments)

    from diptych.config.files import load_run_config
    from diptych.diagnostics.leak import cannot_leak
    from diptych.diagnostics.leak import check_leak as measure
    from diptych.runs.folder import RunFolder

    with ProgressBars(Console(markup=False)) as bars:
        found = measure(flags.run, image_count=flags.images, progress=bars, **asdict(flags.runtime))
    if found is None:
        print(f"Nothing can leak: {cannot_leak(load_run_config(RunFolder(flags.run).config))}.")
    else:
        print(found.sentence())
