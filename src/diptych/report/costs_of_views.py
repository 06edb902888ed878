"""What operations cost, as a table on the terminal and as rows of the preview page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from diptych.config.policies import as_text
from diptych.evaluation.operations.costs import Costs
from diptych.evaluation.operations.proposal import WORDS, words_of


@dataclass(frozen=True)
class CostsOfViews:
    """What was measured, with sentences on it.

    Attributes:
        costs: of each operation.
        advice: sentences, the proposed flags last.
    """

    costs: Costs
    advice: Sequence[str]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Text for each operation, in the order of ``HEADINGS``."""
        return [
            (
                cost.trial.name,
                cost.trial.words,
                f"{cost.fixed:.1%}",
                f"{cost.fitted:.1%}",
                f"{100 * cost.destroyed.value:+.1f} ({100 * cost.destroyed.low:+.1f} to "
                f"{100 * cost.destroyed.high:+.1f})",
                word,
            )
            for cost, word in words_of(self.costs)
        ]

    @property
    def texts(self) -> list[str]:
        """Each operation as it was tried, in a policy."""
        return [as_text([cost.trial.operation]) for cost in self.costs.costs]

    @property
    def words(self) -> list[str]:
        """What the last column means."""
        return [f"{word}: {meaning}" for word, meaning in WORDS.items()]


HEADINGS: Final = (
    *("operation", "strength", "fitted on images as they are", "fitted on such views"),
    *("loss in points (95%)", "labels"),
)


def print_costs(console: Console, found: CostsOfViews) -> None:
    """Prints table, meaning of its words, and advice."""
    table = Table(title="What the labels say, under each operation alone", title_justify="left")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if 2 <= number <= 4 else "left")
    for row in found.rows:
        table.add_row(*row)
    console.print(table)
    for sentence in (*found.words, *found.advice):
        console.print(sentence, highlight=False, soft_wrap=True)
