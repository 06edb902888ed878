"""From a run or vectors on disk to a gallery; a run's images are embedded first."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from diptych.config.downstream import EmbedSettings
from diptych.embeddings.embed import embed_images
from diptych.embeddings.embed_progress import PrintedProgress
from diptych.embeddings.shard_files import MANIFEST
from diptych.embeddings.shards import Shard
from diptych.embeddings.vectors import VectorSet, read_vectors
from diptych.errors import ConfigError
from diptych.gallery.contents import Gallery, gallery_folder, open_gallery, with_own_name
from diptych.models.start import OpenedEncoder, open_encoder
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime


def open_source(
    source: Path,
    *,
    against: Path | None,
    images: str | None,
    table: Path | None,
    console: Console,
    device: str = "auto",
    threads: int | None = None,
) -> Gallery:
    """Opens the gallery of a run, or of vectors.

    Args:
        source: a run folder, or vectors as ``read_vectors`` takes them.
        against: the same of another encoder; a run embeds the images of the first.
        images: where they are; what the run learned from, or what was embedded, when not given.
        table: more columns; see ``open_gallery``.
        console: for progress.
        device: where networks run.
        threads: CPU threads; all cores when not given.

    Raises:
        DiptychError: it cannot be shown; the message says why.
    """

    def embedded(run: Path, path: str | None, out: Path | None) -> VectorSet:
        opened = open_encoder(str(run))
        chosen = path or opened.encoder.config.images.path
        if not chosen:
            raise ConfigError(f"{run} does not say where its images are: give --images PATH.")
        place = out or RunFolder(run).vectors
        with Runtime(device, threads, EmbedSettings().batch_size) as runtime:
            _embed(run, opened, chosen, place, runtime, PrintedProgress(console))
        # Of the user's own run: pictures may come from wherever its images just came from.
        return replace(read_vectors(place), path=chosen)

    first = embedded(source, images, None) if is_run(source) else read_vectors(source)
    second = None
    if against is not None and is_run(against):
        path = images or first.path
        if path is None:
            raise ConfigError(f"{source} does not say where its images are: give --images PATH.")
        # Beside the first: the run may have vectors of images of its own.
        place = gallery_folder(first.source) / f"against-{open_encoder(str(against)).sha256[:12]}"
        second = embedded(against, path, place)
    elif against is not None:
        second = read_vectors(against)
    titles = {"A": with_own_name(source).name}
    titles["B"] = "" if against is None else with_own_name(against).name
    return open_gallery(first, against=second, images=images, table=table, titles=titles)


def is_run(path: Path) -> bool:
    """Whether a path is a run folder, and no vectors."""
    return path.is_dir() and not (path / MANIFEST).exists() and RunFolder(path).config.exists()


def _embed(
    run: Path, opened: OpenedEncoder, path: str, out: Path, runtime: Runtime, lines: PrintedProgress
) -> None:
    for done in embed_images(
        str(run), opened, path, out, [Shard(0, 1)], EmbedSettings(), runtime, lines
    ):
        lines.done(done)
