"""The pages, the table and the figure of a study: what the paper found, what we found."""

import shlex
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from diptych.config.files import flatten
from diptych.config.recipes import recipe_config
from diptych.escaping import HANDLER
from diptych.evaluation.split import split_words
from diptych.report import figures
from diptych.report.page import template
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.studies.cell_results import CellResult, StudyResults, to_table
from diptych.studies.drawing import png
from diptych.studies.study import CONFIDENCE, DOTTED, Cell, Judgement, for_budget, judge_claim
from diptych.studies.study_run import CellRun, StudyRun

NAMES: Final = {
    "knn": "kNN",
    "pretext": "pretext acc",
    "effective_rank": "effective rank",
    "linear": "linear",
    "untrained": "untrained, kNN",
    "leak": "leak acc",
    "supervised": "supervised, kNN",
    "supervised_linear": "supervised, linear",
}
"""Measures as the pages call them."""

_NOT_SHARES: Final = frozenset({"effective_rank", "minutes"})
_HEADLINES: Final = {
    "agree": ("shows here beyond the intervals", "show here beyond the intervals"),
    "smaller": (
        "is smaller here than in the paper, if it is there at all",
        "are smaller here than in the paper, if they are there at all",
    ),
    "undecided": ("is not decided here", "are not decided here"),
    "disagree": ("is contradicted here", "are contradicted here"),
    "unmeasured": ("was not measured", "were not measured"),
}
"""Of one finding, and of any other number."""


class CellRow(NamedTuple):
    """A cell in the page's table."""

    cell: str
    place: Sequence[str]
    seeds: int
    values: Sequence[str]


class StudyPage(NamedTuple):
    """What both forms of the page say."""

    run: StudyRun
    headline: str
    judgements: Sequence[Judgement]
    caption: str
    command: str
    axes: Sequence[str]
    measures: Sequence[str]
    rows: Sequence[CellRow]
    setting: Sequence[str]
    differences: Sequence[str]
    notes: Sequence[str]
    commands: Sequence[str]
    settings: Sequence[tuple[str, str]]
    failures: Sequence[str]


def write_study(run: StudyRun) -> list[str]:
    """Writes ``table.csv``, ``figure.svg``, ``figure.png``, ``index.md`` and ``index.html``.

    Returns:
        The sentences that the pages begin with.
    """
    require_writable(run.out)
    results, out = run.results(), run.out
    page = describe(run, results)
    figure = run.study.draw(results)
    picture = figures.svg(figure, facecolor="white")
    html = template("study.html.jinja", "diptych.studies").render(
        page=page, study=run.study, figure=Markup(picture), paper=run.study.found
    )
    for name, data in (
        ("table.csv", to_table(results.all).encode(errors=HANDLER)),
        ("figure.svg", picture.encode(errors=HANDLER)),
        ("figure.png", png(figure)),
        ("index.md", to_markdown(page).encode(errors=HANDLER)),
        ("index.html", html.encode(errors=HANDLER)),
    ):
        atomic_write(out / name, data)
    return [page.headline, *(one.sentence() for one in page.judgements)]


def describe(run: StudyRun, results: StudyResults) -> StudyPage:
    """Everything that the pages say."""
    study, cell_runs = run.study, run.cell_runs()
    judgements = [judge_claim(claim, results) for claim in study.claims(results)]
    cells = study.grid(run.budget.epochs)
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.place))
    shown = [name for name in study.shown if name in results.measures]
    said = headline(judgements, done=len(results.all), wanted=len(cell_runs))
    by_label = {f"{one.cell}/seed-{one.seed}": one for one in results.all}
    found = [by_label.get(one.label) for one in cell_runs]
    threads = _threads(run, results)
    return StudyPage(
        run=run,
        headline=" ".join([said, *_waiting(cell_runs, found)]),
        judgements=judgements,
        caption=_caption(run, results),
        # Of a number that not all runs had, none would repeat them.
        command=shlex.join(["diptych", *run.arguments(*threads if len(threads) == 1 else ())]),
        axes=axes,
        measures=[NAMES.get(name, name.replace("_", " ")) for name in shown],
        rows=[_row(results, cell, axes, shown) for cell in cells],
        setting=_setting(run, results, cell_runs),
        differences=[for_budget(one, run.budget) for one in study.differences],
        notes=[for_budget(one, run.budget) for one in study.notes],
        commands=[
            one.command if there is None else there.command
            for one, there in zip(cell_runs, found, strict=True)
            if one.seed == 0
        ],
        settings=_differing_settings(cell_runs),
        failures=[f"{r.cell}, seed {r.seed}: {r.failed}" for r in results.all if r.failed],
    )


def headline(judgements: Sequence[Judgement], *, done: int, wanted: int) -> str:
    """How many findings show, in one sentence."""
    outcomes = [one.outcome for one in judgements]
    below = sum(one.outcome == "agree" and one.is_below_paper for one in judgements)
    notes = {"agree": f" ({below} by less than in the paper)"} if below else {}
    counted = [
        f"{outcomes.count(outcome)} {words[outcomes.count(outcome) != 1]}{notes.get(outcome, '')}"
        for outcome, words in _HEADLINES.items()
        if outcome in outcomes
    ]
    text = f"Of {len(outcomes)} findings of the paper, {', '.join(counted)}."
    return text if done == wanted else f"{text} {done} of {wanted} runs are done."


def to_markdown(page: StudyPage) -> str:
    """The page for a repository."""
    study = page.run.study
    header = ["cell", *page.axes, "seeds", *page.measures]
    numbers = [":--"] * (1 + len(page.axes)) + ["--:"] * (1 + len(page.measures))
    table = [header, numbers]
    table += [[f"`{r.cell}`", *r.place, str(r.seeds), *r.values] for r in page.rows]
    parts = [
        f"# {study.question}",
        f"Study `{study.name}`, after {study.source}.",
        f"**{page.headline}**",
        _bullets([one.sentence() for one in page.judgements]),
        f"![{study.question}](figure.svg)",
        page.caption,
        "## What the paper found",
        _bullets(study.found),
        "## What was run here",
        f"    {page.command}",
        _bullets([*page.setting, *page.differences, *page.notes]),
        "## All cells",
        "Mean and standard error over seeds; in %, but for ranks and minutes.",
        "\n".join("| " + " | ".join(row) + " |" for row in table),
    ]
    if page.failures:
        parts += ["Without a result:", _bullets(page.failures)]
    parts.append(
        "[table.csv](table.csv) has every run with the command that repeats it, as\n\n"
        f"    {page.commands[0]}"
    )
    return "\n\n".join(parts) + "\n"


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _row(results: StudyResults, cell: Cell, axes: Sequence[str], shown: Sequence[str]) -> CellRow:
    return CellRow(
        cell.name,
        [_plain(cell.place.get(axis, "")) for axis in axes],
        len(results.of(cell.name)),
        [_value(results, cell.name, measure) for measure in shown],
    )


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,g}" if value < 1e4 else f"{value:,.0f}"


def _value(results: StudyResults, cell: str, measure: str) -> str:
    """Mean and standard error, in per cent where it is a share."""
    mean, error = results.mean(cell, measure), results.error(cell, measure)
    factor = 1.0 if measure in _NOT_SHARES else 100.0
    if mean is None:
        return ""
    return f"{factor * mean:.1f}" + ("" if error is None else f" ± {factor * error:.1f}")


def _setting(run: StudyRun, results: StudyResults, cell_runs: Sequence[CellRun]) -> list[str]:
    """Data, network, length, seeds and how intervals are made."""
    protocol: dict[str, Any] = next((dict(r.protocol) for r in results.all if r.protocol), {})
    runs = f"{len(cell_runs)} runs"
    if len(results.all) < len(cell_runs):
        runs = f"{len(results.all)} of {runs}, as many seeds of each cell as the table below says"
    found = [f"Seeds 0 to {run.seeds - 1}; {runs}." if run.seeds > 1 else "Seed 0."]
    if protocol:
        found.append(
            f"The frozen encoder is measured by {protocol['knn_neighbours']} nearest neighbours "
            f"(temperature {protocol['knn_temperature']:g})."
        )
        found += _splits(results)
    reference = results.mean(for_budget(run.study.reference, run.budget), "untrained")
    if reference is not None:
        found.append(f"The untrained encoder reaches {100 * reference:.1f}% (kNN).")
    found += _length(run, results)
    found.append(
        f"Intervals are t intervals at {CONFIDENCE:.0%} over seeds, the wider of two: with one "
        "standard deviation for all cells of the study, and with each cell's own (Welch). Each "
        "comparison is judged by itself. They hold for these images: the differences of a point "
        "that another set of test images would make are not in them."
    )
    found.append(
        "The papers' figures are of ResNet-50 on ImageNet in hundreds of epochs; only the order "
        "and the shape can be compared."
    )
    return found


def _splits(results: StudyResults) -> list[str]:
    """On which images the cells were measured; cell by cell where they do not have the same."""
    cells: dict[str, list[str]] = {}
    for one in results.all:
        if one.protocol:
            cells.setdefault(split_words(one.protocol.get("split")), []).append(one.cell)
    if len(cells) == 1:
        return list(cells)
    return [f"{', '.join(dict.fromkeys(names))}: {words}" for words, names in cells.items()]


def _length(run: StudyRun, results: StudyResults) -> list[str]:
    """How long the runs were and what they took; nothing where there is none."""
    if not results.all:
        return []
    minutes = sum(one.seconds for one in results.all) / 60
    each = " or ".join(map(str, _threads(run, results)))
    return [
        f"{run.budget.epochs} epochs unless the cell says otherwise. Training took {minutes:.0f} "
        f"minutes, all runs added up, with CPU threads for each: {each}."
    ]


def _threads(run: StudyRun, results: StudyResults) -> list[int]:
    """Each number that runs were trained with; that of the command where there is no run."""
    found = {one.settings.get("training.threads", run.threads) for one in results.all}
    return sorted(found or {run.threads})


def _waiting(cell_runs: Sequence[CellRun], found: Sequence[CellResult | None]) -> list[str]:
    """That runs lack measures, and which; nothing where none does."""
    missing = [
        run.missing(there) for run, there in zip(cell_runs, found, strict=True) if there is not None
    ]
    names = ", ".join(dict.fromkeys(name for some in missing for name in some))
    if not names:
        return []
    count = sum(map(bool, missing))
    return [f"{count} of {len(cell_runs)} runs lack what the same command adds: {names}."]


def _caption(run: StudyRun, results: StudyResults) -> str:
    """Of the figure as it is drawn: without its dotted line where that is not measured."""
    if results.values(for_budget(run.study.reference, run.budget), "untrained"):
        return run.study.caption
    return run.study.caption.replace(DOTTED, "The untrained encoder is not measured.")


def _differing_settings(cell_runs: Sequence[CellRun]) -> list[tuple[str, str]]:
    """The settings of the study's cells that are not the recipe's, where all cells share them."""
    first = cell_runs[0].settings
    shared = [n for n in first if all(one.settings.get(n) == first[n] for one in cell_runs)]
    recipe = flatten(recipe_config(first["recipe"], first["scale"]))
    return [(name, str(first[name])) for name in shared if recipe.get(name) != first[name]]
