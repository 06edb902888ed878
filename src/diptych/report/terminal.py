"""The results of `diptych evaluate` and `diptych rank` as tables on the terminal."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from diptych.diagnostics.label_free import Agreement
from diptych.diagnostics.ranking import RankedCandidate, Ranking
from diptych.evaluation.split import Split
from diptych.report.charts import ChartGroup, chart_groups

_MEASURES: Final = {
    "effective_rank": "effective rank",
    "pretext": "pretext accuracy",
    "stability": "stability",
    "combined": "combined",
}
"""What candidates are ranked by, as the tables call it."""


def print_tables(console: Console, evaluation: Mapping[str, Any]) -> None:
    """Prints one table for each group of results: encoders by figures, with 95% intervals."""
    for group in chart_groups(evaluation):
        console.print(_table(group))
        console.print(group.text, highlight=False)
        for chart in group.charts:
            if chart.gain:
                console.print(f"  {chart.title}: {chart.gain}", highlight=False)
        for images in dict.fromkeys(chart.images for chart in group.charts if chart.images):
            titles = [chart.title for chart in group.charts if chart.images == images]
            console.print(f"  {'; '.join(titles)}: {images}", highlight=False)


def print_ranking(console: Console, ranking: Ranking) -> None:
    """Prints the candidates, the best first; with labels also each measure's agreement with kNN."""
    console.print(_candidates(ranking))
    if ranking.agreement is not None:
        console.print(_agreements(ranking.agreement))
    _print_splits(console, ranking.splits, "")
    _print_splits(console, ranking.labelled, "kNN: ")


def _table(group: ChartGroup) -> Table:
    chances = {chart.chance for chart in group.charts if chart.chance is not None}
    chance = f" (largest class: {min(chances):.1%})" if len(chances) == 1 else ""
    table = Table(title=group.title + chance, title_justify="left", caption_justify="left")
    table.add_column("")
    for chart in group.charts:
        table.add_column(chart.title, justify="right")
    rows = dict.fromkeys(bar.words for chart in group.charts for bar in chart.bars)
    for words in rows:
        cells = []
        for chart in group.charts:
            bar = next((bar for bar in chart.bars if bar.words == words), None)
            cells.append("" if bar is None else f"{bar.text} {_bracketed(bar.range)}".strip())
        table.add_row(words, *cells)
    return table


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""


def _print_splits(console: Console, splits: Mapping[str, Split], what: str) -> None:
    """On which images; once for each run where they differ."""
    words = {run: split.words for run, split in splits.items()}
    if len(set(words.values())) == 1:
        words = {"": next(iter(words.values()))}
    for run, sentences in words.items():
        console.print(f"{run + ': ' if run else ''}{what}{sentences}", highlight=False)


def _candidates(ranking: Ranking) -> Table:
    rows = ranking.rows
    table = Table(
        title=f"Ranked without labels, on {ranking.images:,} images; more is better in each",
        title_justify="left",
    )
    table.add_column("run", overflow="fold")
    table.add_column("step", justify="right")
    columns = {**_MEASURES, "steadiness": "neighbour agreement", "knn": "kNN"}
    shown = [name for name in columns if any(getattr(row, name) is not None for row in rows)]
    for name in shown:
        table.add_column(columns[name], justify="right")
    for row in rows:
        step = "end" if row.step is None else f"{row.step:,}"
        table.add_row(row.run, step, *(_figure(row, name) for name in shown))
    return table


def _figure(row: RankedCandidate, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return "-"
    if name == "combined":
        return f"{value:.2f}"
    return f"{value:.1f}" if name == "effective_rank" else f"{value:.1%}"


def _agreements(agreement: Mapping[str, Agreement | None]) -> Table:
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
