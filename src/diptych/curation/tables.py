"""What each verb of curation writes: a table of all, and a page of pictures of the first.

Each function returns what was found, in sentences. The page has at most ``rows`` rows of a kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.curation.copies import Copies, find_copies, find_overlap
from diptych.curation.curation_page import (
    Row,
    Section,
    Sheet,
    Tile,
    histogram,
    tile,
    write_page,
    write_table,
)
from diptych.curation.mislabelled import find_mislabelled
from diptych.curation.outliers import find_outliers
from diptych.curation.search import SearchResult
from diptych.curation.threshold import SAME
from diptych.curation.thumbnails import Thumbnails, file_picture
from diptych.embeddings.vectors import VectorSet

COPIES: Final = Sheet("Copies", ("group", "name", "kept", "copy_of", "kind", "distance", "label"))
OVERLAP: Final = Sheet("Overlap", ("name", "copy", "nearest", "distance", "label", "nearest_label"))
OUTLIERS: Final = Sheet("Outliers", ("name", "outlier", "score", "distance", "label"))
LABELS: Final = Sheet(
    "Labels",
    ("name", "suspected", "label", "suggested", "probability_label", "probability_suggested"),
)
SEARCH: Final = Sheet("Search", ("query", "rank", "name", "similarity", "label"))

_TILES: Final = 12  # pictures of one group
_BESIDE: Final = 12  # pairs on each side of the threshold


def write_copies(
    vectors: VectorSet,
    threshold: float | None,
    out: Path,
    *,
    images: str | None = None,
    rows: int = 60,
    device: str = "cpu",
) -> list[str]:
    """Writes the groups of copies in a set; see ``find_copies``."""
    pictures = Thumbnails.of(vectors, images)
    found = find_copies(vectors, threshold, prefer=pictures.file_bytes, device=device)
    groups = found.groups()
    table = []
    for number, group in enumerate(groups):
        kept = vectors.names[int(group[0])]
        for row in group.tolist():
            first, label = row == group[0], _label(vectors, row)
            told = ["yes", "", ""] if first else ["no", kept, _kind(found.exact[row])]
            table.append([number, vectors.names[row], *told, found.distances[row], label])
    write_table(out, COPIES.columns, table)
    said = [*_copies_in_words(found, groups, vectors), *pictures.remarks]
    if rows:

        def pair(row: int) -> Row:
            neighbour = int(found.neighbours[row])
            line = f"distance {found.nearest[row]:.4f}"
            two = tile(vectors, pictures, row, line), tile(vectors, pictures, neighbour)
            return Row("", two)

        shown = [_group(group, found, vectors, pictures) for group in groups[:rows]]
        text = (
            f"{len(shown):,} of {len(groups):,} groups, the largest first. The image with the "
            "thick line is the one to keep."
        )
        sections = [
            Section("Groups of copies", text, shown),
            *_around(found.nearest, found.threshold.distance, pair),
        ]
        figure = histogram(found.nearest, found.threshold.distance)
        write_page(out.with_suffix(".html"), COPIES.title, said, sections, figure=figure)
    return said


def write_overlap(
    learned: VectorSet,
    tested: VectorSet,
    threshold: float | None,
    out: Path,
    *,
    images: tuple[str | None, str | None] = (None, None),
    rows: int = 60,
    device: str = "cpu",
) -> list[str]:
    """Writes the nearest image to learn from of each to test on; see ``find_overlap``."""
    pictures = (
        Thumbnails.of(learned, images[0]),
        replace(Thumbnails.of(tested, images[1]), flag="--test-images"),
    )
    found = find_overlap(learned, tested, threshold, device=device)
    order, copies = np.argsort(found.distances, kind="stable"), found.copies()
    is_copy = np.isin(np.arange(len(tested)), copies)
    table = []
    for row in order.tolist():
        other = int(found.rows[row])
        kind = _kind(found.exact[row]) if is_copy[row] else ""
        labels = _label(tested, row), _label(learned, other)
        names = tested.names[row], learned.names[other]
        table.append([names[0], kind, names[1], found.distances[row], *labels])
    write_table(out, OVERLAP.columns, table)
    said = [
        f"{len(copies):,} of {len(tested):,} images of {tested.source} are copies of images of "
        f"{learned.source}, {int(found.exact[copies].sum()):,} of them exact.",
        *found.threshold.sentences(),
        *pictures[0].remarks,
        *pictures[1].remarks,
    ]
    if rows:

        def pair(row: int) -> Row:
            line = f"distance {found.distances[row]:.4f}"
            test = tile(tested, pictures[1], row, "to test on", line, marked=True)
            return Row(
                "", (test, tile(learned, pictures[0], int(found.rows[row]), "to learn from"))
            )

        text = "Each image to test on beside the nearest one to learn from, the nearest first."
        sections = [
            Section("Copies", text, [pair(row) for row in copies[:rows].tolist()]),
            *_around(found.distances, found.threshold.distance, pair),
        ]
        figure = histogram(found.distances, found.threshold.distance)
        write_page(out.with_suffix(".html"), OVERLAP.title, said, sections, figure=figure)
    return said


def write_outliers(
    vectors: VectorSet,
    neighbours: int,
    out: Path,
    *,
    images: str | None = None,
    rows: int = 60,
    device: str = "cpu",
) -> list[str]:
    """Writes all images, the farthest from their neighbours first; see ``find_outliers``."""
    pictures = Thumbnails.of(vectors, images)
    found = find_outliers(vectors, neighbours, device=device)
    table = [
        [
            vectors.names[row],
            "yes" if place < found.far else "no",
            found.scores[row],
            found.distances[row],
            _label(vectors, row),
        ]
        for place, row in enumerate(found.rows.tolist())
    ]
    write_table(out, OUTLIERS.columns, table)
    said = [*found.sentences(), *pictures.remarks]
    if rows:
        tiles = [
            tile(vectors, pictures, row, f"score {found.scores[row]:.1f}", marked=place < found.far)
            for place, row in enumerate(found.rows[: rows * 2].tolist())
        ]
        text = "The farthest first. Those with the thick line are outliers by their score."
        section = Section("Far from all others", text, [Row("", tiles)])
        write_page(out.with_suffix(".html"), OUTLIERS.title, said, [section])
    return said


def write_mislabelled(
    vectors: VectorSet,
    neighbours: int,
    out: Path,
    *,
    images: str | None = None,
    rows: int = 60,
    device: str = "cpu",
) -> list[str]:
    """Writes all labels, the most doubtful first; see ``find_mislabelled``."""
    pictures = Thumbnails.of(vectors, images)
    found = find_mislabelled(vectors, neighbours, device=device)
    table = []
    for place, row in enumerate(found.rows.tolist()):
        suspected = "yes" if place < found.suspected else "no"
        named = found.classes[found.labels[place]], found.classes[found.suggested[place]]
        chances = found.own[place], found.other[place]
        table.append([vectors.names[row], suspected, *named, *chances])
    write_table(out, LABELS.columns, table)
    said = [*found.sentences(), *pictures.remarks]
    if rows:
        tiles = [
            tile(
                vectors,
                pictures,
                row,
                f"{found.own[place]:.0%}; {found.classes[found.suggested[place]]} "
                f"{found.other[place]:.0%}",
            )
            for place, row in enumerate(found.rows[: min(rows * 2, found.suspected)].tolist())
        ]
        text = "The most doubtful first: the given label and what the neighbours suggest."
        section = Section("Labels to look at", text, [Row("", tiles)] if tiles else [])
        write_page(out.with_suffix(".html"), LABELS.title, said, [section])
    return said


def write_search(
    vectors: VectorSet,
    result: SearchResult,
    out: Path,
    *,
    images: str | None = None,
    rows: int = 60,
) -> None:
    """Writes what was found for each query, the nearest first."""
    table, shown = list[list[object]](), list[Row]()
    pictures = Thumbnails.of(vectors, images)
    query_picture = _query_pictures(result, pictures)
    for place, name in enumerate(result.queries):
        near = zip(result.found.rows[place], result.found.similarities[place], strict=True)
        hits = [(int(row), float(similarity)) for row, similarity in near if row >= 0]
        table += [
            [name, rank, vectors.names[row], similarity, _label(vectors, row)]
            for rank, (row, similarity) in enumerate(hits, 1)
        ]
        if place < rows:
            query = Tile(name, query_picture(place), ["looked for"], marked=True)
            tiles = [tile(vectors, pictures, row, f"{value:.4f}") for row, value in hits]
            shown.append(Row("", [query, *tiles]))
    write_table(out, SEARCH.columns, table)
    if rows:
        section = Section("Found", "The most similar first, with their cosines.", shown)
        said = [result.sentence, *pictures.remarks]
        write_page(out.with_suffix(".html"), SEARCH.title, said, [section])


def _query_pictures(result: SearchResult, pictures: Thumbnails) -> Callable[[int], str | None]:
    """The picture of each query, by its place: of the set, of a folder, or a file by itself."""
    if result.rows is not None:
        rows = result.rows
        return lambda place: pictures.picture(rows[place])
    if result.pictured is not None and result.pictured.path is not None:
        return Thumbnails.of(result.pictured).picture
    return lambda place: file_picture(result.queries[place])


def _copies_in_words(
    found: Copies, groups: Sequence[NDArray[np.int64]], vectors: VectorSet
) -> list[str]:
    copies = found.copies()
    conflicts = found.conflicts(vectors)
    labels = f" In {conflicts:,} groups labels differ." if conflicts else ""
    return [
        f"{len(groups):,} groups of copies: {len(copies):,} of {len(vectors):,} images can be left "
        f"out, {int(found.exact[copies].sum()):,} of them exact copies of the one that is kept."
        f"{labels}",
        *found.threshold.sentences(),
    ]


def _group(
    group: NDArray[np.int64], found: Copies, vectors: VectorSet, pictures: Thumbnails
) -> Row:
    first, *others = group[:_TILES].tolist()
    tiles = [tile(vectors, pictures, first, "keep", marked=True)]
    for row in others:
        exact = "exact copy" if found.exact[row] else f"distance {found.distances[row]:.4f}"
        tiles.append(tile(vectors, pictures, row, exact))
    more = f"{len(group):,} images, {_TILES} shown" if len(group) > _TILES else ""
    return Row(more, tiles)


def _around(
    distances: NDArray[np.float32], threshold: float, pair: Callable[[int], Row]
) -> list[Section]:
    """The farthest pairs that count as copies, and the nearest that do not."""
    order = np.argsort(distances, kind="stable")
    inside = order[(distances[order] <= threshold) & (distances[order] > SAME)][-2 * _BESIDE :]
    outside = order[distances[order] > threshold][: 2 * _BESIDE]
    texts = (
        (inside[::-1], "Just within the threshold", "If these are no copies, give a smaller one."),
        (outside, "Just beyond it", "If these are copies, give a larger --threshold."),
    )
    return [
        Section(title, text, [pair(row) for row in rows.tolist()])
        for rows, title, text in texts
        if len(rows)
    ]


def _kind(exact: np.bool_) -> str:
    return "exact" if exact else "near"


def _label(vectors: VectorSet, row: int) -> str:
    return "" if vectors.labels is None else vectors.labels[row] or ""
