"""A gallery: all that its server answers from."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.embeddings.neighbours import Neighbours, nearest
from diptych.embeddings.vectors import VectorSet
from diptych.gallery.atlas import Atlas
from diptych.gallery.columns import Column, columns_of
from diptych.gallery.labels import LabelStore
from diptych.gallery.map import MapProcess
from diptych.gallery.panels import Findings, Panel
from diptych.gallery.pieces import Failed, Piece, Progress, make_in_threads
from diptych.gallery.shown_runs import NEIGHBOURS, Run, Runs, kept_array, open_runs
from diptych.gallery.upload import Search

_JOIN_SECONDS: Final = 2.0  # that the end waits for a thread
FOLDER: Final = ".gallery"
"""What the name of the folder beside the vectors ends in."""


@dataclass(eq=False)
class Gallery:
    """A set of images with what is shown of them. Nothing is computed before ``start``.

    Attributes:
        runs: the vectors.
        folder: where all that is made is kept.
        atlas: thumbnails.
        labels: given in the gallery.
        search: by uploaded images.
        table: of further columns, if any.
        titles: of the runs, for people; the names of the vectors where they have none.
        neighbours: the nearest of each vector, by run.
        maps: (images, 2) by run, NaN for images that the run lacks.
        findings: copies, outliers and so on of the first run.
        thumbnails: whether all pages are made.
        columns: values of images.
        ending: set when nobody is to wait for changes any more.
    """

    runs: Runs
    folder: Path
    atlas: Atlas
    labels: LabelStore
    search: Search
    table: Path | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    neighbours: dict[str, Piece[Neighbours]] = field(init=False)
    maps: dict[str, Piece[NDArray[np.float32]]] = field(init=False)
    findings: Piece[Findings] = field(init=False)
    thumbnails: Piece[bool] = field(init=False)
    columns: list[Column] = field(init=False)
    ending: Event = field(default_factory=Event, init=False)
    _panels: dict[str, Panel] | None = field(default=None, init=False)
    _processes: list[MapProcess] = field(default_factory=list, init=False)
    _threads: list[Thread] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.neighbours = {run.name: Piece(self._find(run)) for run in self.runs}
        self.maps = {run.name: Piece(self._draw(run)) for run in self.runs}
        first = self.runs.first
        self.findings = Piece(
            lambda progress: Findings.of(first.vectors, self.neighbours["A"].make())
        )
        self.thumbnails = Piece(self.atlas.make_all)
        self.columns = columns_of(first.vectors, self.findings, self.labels, self.table)

    def __len__(self) -> int:
        return len(self.runs)

    def title(self, run: str) -> str:
        """Of a run, for people."""
        return self.titles.get(run) or self.runs.by_name()[run].vectors.source.name

    def panels(self) -> dict[str, Panel]:
        """What to look at first; see ``Findings.panels``."""
        found = self.findings.get()
        if self._panels is None:
            self._panels = found.panels()
        return self._panels

    def start(self) -> None:
        """Begins to make all pieces, in threads beside the server."""
        maps = [piece.make for piece in self.maps.values()]
        self._threads += make_in_threads(maps, [self.findings.make, self.thumbnails.make])

    def close(self) -> bool:
        """Ends what is still being made, and the use of files.

        Returns:
            Whether all threads have ended.
        """
        self.ending.set()
        for process in self._processes:
            process.close()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        self.labels.close()
        return not any(thread.is_alive() for thread in self._threads)

    def _find(self, run: Run) -> Callable[[Progress], Neighbours]:
        def make(progress: Progress) -> Neighbours:
            features = run.vectors.features

            def both() -> NDArray[np.float32]:
                found = nearest(features, features, NEIGHBOURS, exclude_own_row=True)
                # Whole numbers up to 2^24 are exact in float32.
                return np.stack([found.rows.astype(np.float32), found.similarities])

            kept = kept_array(self.folder, f"neighbours{NEIGHBOURS}-{run.name}", run.digest, both)
            return Neighbours(kept[0].astype(np.int64), kept[1].astype(np.float32))

        return make

    def _draw(self, run: Run) -> Callable[[Progress], NDArray[np.float32]]:
        def make(progress: Progress) -> NDArray[np.float32]:
            def drawn() -> NDArray[np.float32]:
                if self.ending.is_set():
                    raise Failed("the gallery ends")
                with closing(MapProcess()) as process:
                    self._processes.append(process)
                    near = self.neighbours[run.name].make()
                    return process.draw(run.vectors.features, near, progress)

            points = kept_array(self.folder, f"umap-{run.name}", run.digest, drawn)
            whole = np.full((len(self), 2), np.nan, np.float32)
            whole[run.rows] = points
            return whole

        return make


def gallery_folder(vectors: Path) -> Path:
    """Where the gallery of vectors keeps what it makes.

    >>> str(gallery_folder(Path("features/")))
    'features.gallery'
    """
    named = with_own_name(vectors)
    return named.with_name(named.name + FOLDER)


def with_own_name(path: Path) -> Path:
    """The path, whole where it is ``.`` or ends in ``..``: beside these, nothing can be named."""
    return path.resolve() if path.name in ("", "..") else path


def open_gallery(
    vectors: VectorSet,
    *,
    against: VectorSet | None = None,
    images: str | None = None,
    table: Path | None = None,
    titles: Mapping[str, str] | None = None,
) -> Gallery:
    """Opens what is needed to show a set of vectors.

    Args:
        vectors: of the images.
        against: of the same images by another encoder.
        images: where they are, if not where they were embedded.
        table: a CSV file with a column ``name`` and others.
        titles: of the runs A and B, for people.

    Raises:
        EmbeddingsError: the vectors cannot be shown.
        ConfigError: the table cannot be used.
        ImagesError: ``images`` holds none.
        LabelsError: labels that are there cannot be read.
    """
    runs = open_runs(vectors, against)
    folder = gallery_folder(vectors.source)
    folder.mkdir(parents=True, exist_ok=True)
    atlas = Atlas(vectors, images, folder, runs.first.digest)
    labels = LabelStore(folder / "labels.sqlite", vectors.names)
    return Gallery(runs, folder, atlas, labels, Search.of(vectors), table, titles or {})
