"""The results of an evaluation as tables on the terminal."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from diptych.diagnostics.label_free import Agreement
from diptych.diagnostics.ranking import RankedCandidate, Ranking
from diptych.evaluation.split import Split
from diptych.report.evaluations import Group, groups_of


def print_tables(console: Console, evaluation: Mapping[str, Any]) -> None:
    """Prints one table for each group of results: encoders by figures, with 95% intervals."""
    for group in groups_of(evaluation):
        console.print(_table(group))
        console.print(group.text, highlight=False)
        for panel in group.panels:
            if panel.gain:
                console.print(f"  {panel.title}: {panel.gain}", highlight=False)
        for images in dict.fromkeys(panel.images for panel in group.panels if panel.images):
            titles = [panel.title for panel in group.panels if panel.images == images]
            console.print(f"  {'; '.join(titles)}: {images}", highlight=False)


def _table(group: Group) -> Table:
    chances = {panel.chance for panel in group.panels if panel.chance is not None}
    chance = f" (largest class: {min(chances):.1%})" if len(chances) == 1 else ""
    table = Table(title=group.title + chance, title_justify="left", caption_justify="left")
    table.add_column("")
    for panel in group.panels:
        table.add_column(panel.title, justify="right")
    rows = dict.fromkeys(bar.words for panel in group.panels for bar in panel.bars)
    for words in rows:
        cells = []
        for panel in group.panels:
            bar = next((bar for bar in panel.bars if bar.words == words), None)
            cells.append("" if bar is None else f"{bar.text} {_bracketed(bar.range)}".strip())
        table.add_row(words, *cells)
    return table


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""


_WORDS: Final = {
    "effective_rank": "effective rank",
    "pretext": "pretext accuracy",
    "stability": "stability",
    "combined": "combined",
}


def print_ranking(console: Console, ranking: Ranking) -> None:
    """Prints the candidates, the best first; with labels also what the order is worth."""
    console.print(_candidates(ranking))
    if ranking.agreement is not None:
        console.print(_agreements(ranking.agreement))
    _print_splits(console, ranking.splits, "")
    _print_splits(console, ranking.labelled, "kNN: ")


def _print_splits(console: Console, splits: Mapping[str, Split], what: str) -> None:
    """On which images; run by run where they do not have the same to say."""
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
    columns = {**_WORDS, "steadiness": "like the one before", "knn": "kNN"}
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
    for heading in ("Kendall's tau", "Spearman", "as large by chance", "accuracy lost"):
        table.add_column(heading, justify="right")
    for name, one in agreement.items():
        if one is None:
            table.add_row(_WORDS[name], "not known", "", "", "")
            continue
        table.add_row(
            _WORDS[name],
            f"{one.kendall:+.2f}",
            f"{one.spearman:+.2f}",
            f"{one.p_value:.1%}",
            f"{100 * one.lost:.1f} points",
        )
    return table
