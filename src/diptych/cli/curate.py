"""The verbs on vectors of images: search, and what is wrong with a set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from diptych.cli.flags import parse
from diptych.errors import ConfigError
from diptych.escaping import readable, readable_lines
from diptych.runs.folder import require_writable

if TYPE_CHECKING:
    from diptych.curation.curation_page import Sheet
    from diptych.embeddings.vectors import VectorSet

_PRINTED: Final = 20  # queries that search prints


@dataclass(frozen=True)
class OutputOptions:
    """Where a verb writes what it found."""

    out: Annotated[Path, arg(aliases=["-o"])]
    """The table to write, as found.csv; a page of pictures is written beside it, as found.html."""
    images: str | None = None
    """Where the images are, for their pictures: what `diptych embed` read when not given."""
    sheet: int = 60
    """Rows of pictures on the page; 0 for no page."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Where vectors are compared."""

    def check(self, sheet: "Sheet") -> None:
        """Refuses, before any work, what cannot be written or is not the verb's own."""
        if self.out.suffix.lower() != ".csv":
            raise ConfigError(f"--out {self.out}: wanted a name that ends in .csv.")
        if self.sheet < 0:
            raise ConfigError(f"--sheet is a number of rows; got {self.sheet}.")
        sheet.require_own(self.out, page=self.sheet > 0)
        require_writable(self.out.parent)


@dataclass(frozen=True)
class DuplicatesFlags:
    """What `diptych duplicates` takes."""

    vectors: Positional[Path]
    """Vectors that `diptych embed` wrote, or a .parquet, .npy or .csv file of vectors."""
    output: Annotated[OutputOptions, arg(name="")]
    threshold: float | None = None
    """Largest distance (1 - cosine) of copies. Chosen from the distances when not given."""


@dataclass(frozen=True)
class OverlapFlags:
    """What `diptych overlap` takes."""

    vectors: Positional[Path]
    """Vectors of the images to learn from."""
    test: Positional[Path]
    """Vectors of the images to test on, by the same encoder."""
    output: Annotated[OutputOptions, arg(name="")]
    threshold: float | None = None
    """Largest distance (1 - cosine) of copies. Chosen from the distances when not given."""
    test_images: str | None = None
    """Where the images to test on are: what `diptych embed` read when not given."""


@dataclass(frozen=True)
class OutliersFlags:
    """What `diptych outliers` takes."""

    vectors: Positional[Path]
    """Vectors that `diptych embed` wrote, or a .parquet, .npy or .csv file of vectors."""
    output: Annotated[OutputOptions, arg(name="")]
    neighbours: int = 10
    """Nearest images of each whose mean distance is taken."""


@dataclass(frozen=True)
class MislabelledFlags:
    """What `diptych mislabelled` takes."""

    vectors: Positional[Path]
    """Vectors with labels, as `diptych embed` writes them of a folder for each class."""
    output: Annotated[OutputOptions, arg(name="")]
    neighbours: int = 20
    """Nearest labelled images of each that vote."""


@dataclass(frozen=True)
class SearchFlags:
    """What `diptych search` takes."""

    vectors: Positional[Path]
    """Vectors that `diptych embed` wrote, or a .parquet, .npy or .csv file of vectors."""
    image: str
    """The image to look for: a file, a folder of files, or an image of the set by its row (from 0)
    or its name."""
    source: str | None = None
    """The run, encoder or weights that made the vectors; needed for images that are not of the
    set."""
    encoder: str | None = None
    """The network of `--source`, where these are weights that do not show it."""
    k: int = 10
    """Images to find for each."""
    index: Literal["exact", "faiss"] = "exact"
    """Compare all images, or those in near cells of faiss, for very many queries in large sets."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Also write a table, as found.csv, and a page of pictures beside it, as found.html."""
    images: str | None = None
    """Where the images are, for their pictures: what `diptych embed` read when not given."""
    sheet: int = 60
    """Queries on the page; 0 for no page."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the query is encoded."""


def duplicates(arguments: Sequence[str]) -> None:
    """List groups of exact and near copies, and which image of each to keep. Deletes nothing.

    The threshold is chosen from the distances of nearest neighbours, and explained. Of a group the
    image with the largest file is kept where the images are at hand, else the first one. No two
    kept images are within the threshold.

    Examples:
      diptych duplicates features/ -o copies.csv
      diptych duplicates features/ -o copies.csv --threshold 0.05
    """
    flags = parse(DuplicatesFlags, duplicates, arguments)

    from diptych.curation.tables import COPIES, write_copies
    from diptych.embeddings.vectors import read_vectors

    flags.output.check(COPIES)
    out = flags.output
    vectors = read_vectors(flags.vectors)
    said = write_copies(
        vectors, flags.threshold, out.out, images=out.images, rows=out.sheet, device=out.device
    )
    _say(said, out.out, page=out.sheet > 0)


def overlap(arguments: Sequence[str]) -> None:
    """List the images of a test set that are exact or near copies of training images.

    The table has every image to test on with its nearest one to learn from, the nearest first.

    Examples:
      diptych overlap train-features/ test-features/ -o overlap.csv
    """
    flags = parse(OverlapFlags, overlap, arguments)

    from diptych.curation.tables import OVERLAP, write_overlap
    from diptych.embeddings.vectors import read_vectors

    flags.output.check(OVERLAP)
    out = flags.output
    said = write_overlap(
        read_vectors(flags.vectors),
        read_vectors(flags.test),
        flags.threshold,
        out.out,
        images=(out.images, flags.test_images),
        rows=out.sheet,
        device=out.device,
    )
    _say(said, out.out, page=out.sheet > 0)


def outliers(arguments: Sequence[str]) -> None:
    """Rank images by the mean distance to their nearest others, the farthest first.

    Examples:
      diptych outliers features/ -o outliers.csv
    """
    flags = parse(OutliersFlags, outliers, arguments)

    from diptych.curation.tables import OUTLIERS, write_outliers
    from diptych.embeddings.vectors import read_vectors

    flags.output.check(OUTLIERS)
    out, vectors = flags.output, read_vectors(flags.vectors)
    said = write_outliers(
        vectors, flags.neighbours, out.out, images=out.images, rows=out.sheet, device=out.device
    )
    _say(said, out.out, page=out.sheet > 0)


def mislabelled(arguments: Sequence[str]) -> None:
    """List labels that the nearest images contradict, the most doubtful first. Changes no label.

    Examples:
      diptych mislabelled features/ -o labels.csv
    """
    flags = parse(MislabelledFlags, mislabelled, arguments)

    from diptych.curation.tables import LABELS, write_mislabelled
    from diptych.embeddings.vectors import read_vectors

    flags.output.check(LABELS)
    out, vectors = flags.output, read_vectors(flags.vectors)
    said = write_mislabelled(
        vectors, flags.neighbours, out.out, images=out.images, rows=out.sheet, device=out.device
    )
    _say(said, out.out, page=out.sheet > 0)


def search(arguments: Sequence[str]) -> None:
    """Find the images of a set that are nearest to a picture, by the cosine of their vectors.

    Examples:
      diptych search features/ --image query.jpg --source runs/photos
      diptych search features/ --image 12 -o found.csv
      diptych search features/ --image queries/ --source runs/photos --index faiss -o found.csv
    """
    flags = parse(SearchFlags, search, arguments)

    from diptych.curation.search import embed_queries, find_row, search_images, search_rows
    from diptych.curation.tables import SEARCH, write_search
    from diptych.embeddings.vectors import read_vectors

    if flags.out is not None:
        OutputOptions(flags.out, sheet=flags.sheet).check(SEARCH)
    vectors = read_vectors(flags.vectors)
    row = find_row(vectors, flags.image)
    if row is not None:
        result = search_rows(vectors, [row], flags.k, index=flags.index)
    elif flags.source is None:
        raise ConfigError(
            f"--image {flags.image} is no row and no name in {flags.vectors}. To look for another "
            "image, give --source, the run or encoder that made the vectors."
        )
    else:
        queries = embed_queries(
            vectors, flags.source, flags.image, encoder=flags.encoder, device=flags.device
        )
        result = search_images(vectors, queries, flags.k, index=flags.index)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for place, name in enumerate(result.queries[:_PRINTED]):
        console.print(f"Nearest to {readable(name)}:")
        near = zip(result.found.rows[place], result.found.similarities[place], strict=True)
        for found, similarity in near:
            if found >= 0:
                console.print(f"  {similarity:.4f}  {_described(vectors, int(found))}")
    if flags.out is None:
        console.print(result.sentence)
        return
    write_search(vectors, result, flags.out, images=flags.images, rows=flags.sheet)
    _say([result.sentence], flags.out, page=flags.sheet > 0)


def _described(vectors: "VectorSet", row: int) -> str:
    label = None if vectors.labels is None else vectors.labels[row]
    return readable(vectors.names[row]) + ("" if label is None else f" ({readable(label)})")


def _say(sentences: Sequence[str], out: Path, *, page: bool) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for sentence in sentences:
        console.print(readable_lines(sentence))
    console.print(f"Written: {out}" + (f" and {out.with_suffix('.html')}" if page else ""))
