"""What curation found as a table, and as a page of pictures to look at."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diptych.curation.threshold import SAME
from diptych.curation.thumbnails import SIDE, Thumbnails
from diptych.embeddings.vectors import VectorSet
from diptych.escaping import HANDLER, escaped, readable
from diptych.report.figures import ACCENT, SECOND, STYLE, svg
from diptych.report.page import template
from diptych.runs.atomic import atomic_write
from diptych.runs.own_tables import require_own_page, require_own_table

_NAME_LETTERS: Final = 34  # of a name under a picture: its end, which differs


class Sheet(NamedTuple):
    """What a verb writes.

    Attributes:
        title: of its page.
        columns: of its table.
    """

    title: str
    columns: tuple[str, ...]

    def require_own(self, out: Path, *, page: bool) -> None:
        """Sees that what is there under its names was written by the same verb.

        Raises:
            ConfigError: it was not, or belongs to vectors.
        """
        require_own_table(out, self.columns)
        if page:
            require_own_page(out.with_suffix(".html"), f"{self.title} - diptych")


@dataclass(frozen=True)
class Tile:
    """A picture with what stands below it.

    Attributes:
        name: of the image.
        uri: of the picture; None where there is none.
        lines: below its name.
        marked: it is the one that others are compared with.
    """

    name: str
    uri: str | None
    lines: Sequence[str] = ()
    marked: bool = False

    @property
    def short_name(self) -> str:
        """The end of the name."""
        name = readable(self.name)
        return name if len(name) <= _NAME_LETTERS else f"...{name[-_NAME_LETTERS:]}"


@dataclass(frozen=True)
class Row:
    """Pictures side by side under a heading, which may be empty."""

    heading: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Section:
    """Rows of pictures under a title and a sentence."""

    title: str
    text: str
    rows: Sequence[Row]


def tile(
    vectors: VectorSet, pictures: Thumbnails, row: int, *lines: str, marked: bool = False
) -> Tile:
    """The picture of a row, with its label and these lines."""
    label = None if vectors.labels is None else vectors.labels[row]
    below = [*([] if label is None else [readable(label)]), *lines]
    return Tile(vectors.names[row], pictures.picture(row), below, marked)


def write_page(
    out: Path,
    title: str,
    sentences: Sequence[str],
    sections: Sequence[Section],
    *,
    figure: str | None = None,
) -> None:
    """Writes a page that opens offline.

    Args:
        out: the HTML file.
        title: of the page.
        sentences: what was found.
        sections: the pictures.
        figure: SVG above them.
    """
    page = template("curation.html.jinja", "diptych.curation").render(
        title=title,
        sentences=sentences,
        sections=[section for section in sections if section.rows],
        figure=figure,
        side=SIDE,
    )
    atomic_write(out, page.encode(errors=HANDLER))


def write_table(out: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a CSV file; names are written as in ``diptych embed``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    atomic_write(out, text.getvalue().encode())


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    return f"{value:.6g}" if isinstance(value, float | np.floating) else value


def histogram(distances: NDArray[np.floating], threshold: float) -> str:
    """How far nearest neighbours are, on a logarithmic axis, with the threshold; SVG."""
    # Zero has no place on the axis.
    shown = np.maximum(distances.astype(np.float64), SAME)
    line = max(threshold, SAME)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 2.6), layout="constrained")
        axes = figure.subplots()
        low = min(float(shown.min()), line)
        high = max(float(shown.max()), 2 * low)
        axes.hist(shown, np.geomspace(low, high, 60).tolist(), color=SECOND)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.axvline(line, color=ACCENT)
        axes.set_xlabel(f"distance to the nearest neighbour ({SAME:g} for the same vector)")
        axes.set_ylabel("images")
        axes.set_title(f"threshold {threshold:.4f}", color=ACCENT, loc="left", fontsize=10)
        return svg(figure)
