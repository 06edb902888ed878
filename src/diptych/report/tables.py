"""The results of an evaluation as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from diptych.report.results import Group, groups_of


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
