"""Vectors of very many images: each process makes whole shards, and asks nothing of the others."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.config.downstream import EmbedSettings
from diptych.embeddings.embedder import Embedder, ViewMaker
from diptych.embeddings.job import EmbeddingJob, FinishedShard, ShardProgress
from diptych.embeddings.shards import Shard, checked_shard, find_rows
from diptych.images.open import require_there
from diptych.images.sources.handed_over import path_of
from diptych.models.weights import load_encoder
from diptych.runs.folder import require_writable
from diptych.runtime.runtime import Runtime


def embed(
    run: str | Path,
    path: Any,
    out: str | Path,
    shard: tuple[int, int] = (0, 1),
    *,
    device: str = "auto",
    threads: int | None = None,
    **settings: Any,
) -> Path:
    """Writes one shard of the vectors of all images of a path; one that is there is left alone.

    Args:
        run: a run folder whose training has ended, or its ``encoder.safetensors``.
        path: anything that ``pretrain`` takes; of one with held-out images, those to learn from.
        out: the folder of the embeddings, the same for all shards.
        shard: its number, from 0, and how many there are.
        device: where the network runs, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        settings: see ``EmbedSettings``.

    Returns:
        The shard's Parquet file.

    Raises:
        EmbeddingsError: the folder holds embeddings of another encoder, images or settings.
        ImagesError: the images, or too many of them, cannot be read.
        RunFolderError: there is no trained encoder.
        ConfigError: a setting is out of range, or there is no such layer or shard.
    """
    chosen = [checked_shard(*shard)]
    how = EmbedSettings(**settings)
    with Runtime(device, threads, how.batch_size) as runtime:
        [done] = embed_shards(Path(run), path, Path(out), chosen, how, runtime)
    return done.path


def embed_shards(
    run: Path,
    path: Any,
    out: Path,
    shards: Sequence[Shard],
    settings: EmbedSettings,
    runtime: Runtime,
    progress: ShardProgress | None = None,
) -> Iterator[FinishedShard]:
    """Makes shards one after the other; see ``embed``.

    Args:
        run: a run folder, or an ``encoder.safetensors``.
        path: of the images.
        out: the folder.
        shards: of the same set.
        settings: how images become vectors.
        runtime: gives device and threads.
        progress: told how it goes.
    """
    work = _open(run, path, out, settings, runtime, progress or ShardProgress())
    for shard in shards:
        yield work.make(shard)


def check_before_start(run: Path, path: Any, out: Path) -> None:
    """Refuses what can be told to fail before processes are started, without opening an image.

    Args:
        run: a run folder, or an ``encoder.safetensors``.
        path: of the images.
        out: the folder.

    Raises:
        DiptychError: as ``embed_shards`` would.
        OSError: the folder cannot be written.
    """
    config = load_encoder(run).config  # on the CPU: the processes need the accelerator
    require_there(replace(config.images, path=path_of(path)))
    require_writable(out)


def _open(
    run: Path,
    path: Any,
    out: Path,
    settings: EmbedSettings,
    runtime: Runtime,
    progress: ShardProgress,
) -> EmbeddingJob:
    embedder = Embedder(run, settings, runtime.torch_device)
    config = embedder.config
    images = replace(
        config.images,
        path=path_of(path),
        limit=None,
        column=settings.column or config.images.column,
    )
    views = ViewMaker(
        settings.crops, config.views, images.channels, settings.batch_size, runtime.executor
    )
    made = {"run": str(run), "path": images.path}
    require_writable(out)  # before any work is done
    return EmbeddingJob(embedder, find_rows(images), views, settings, out, made, progress)
