"""Vectors of very many images: each process makes whole shards, and asks nothing of the others.

A shard is made from images to views to vectors to a file.
"""

import csv
import io
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from diptych.config.downstream import EmbedSettings
from diptych.embeddings.embedder import BatchOfViews, Embedder, ViewMaker
from diptych.embeddings.shard_files import (
    Note,
    ShardWriter,
    differences,
    new_shard,
    read_note,
    refuse_differences,
    write_or_compare_manifest,
)
from diptych.embeddings.shards import ImageRows, Shard, ShardReader, checked_shard, find_rows
from diptych.errors import ImagesError
from diptych.escaping import HANDLER, escaped, readable_lines
from diptych.images.open import require_there
from diptych.images.sources.handed_over import path_of
from diptych.models.weights import load_encoder
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.runtime.devices import Runtime


class ShardProgress:
    """Called as shards are made; this one is silent."""

    def say(self, sentence: str) -> None:
        """Something worth a line."""

    def images(self, shard: Shard, done: int, total: int) -> None:
        """So many images of a shard are done."""


@dataclass(frozen=True)
class FinishedShard:
    """A shard that is on disk.

    Attributes:
        shard: which.
        path: of its file.
        images: vectors in it.
        skipped: images that could not be read.
        was_there: it had been finished before.
    """

    shard: Shard
    path: Path
    images: int
    skipped: int
    was_there: bool


@dataclass(frozen=True)
class EmbeddingJob:
    """What is embedded, how, and where to.

    Attributes:
        embedder: from views to vectors.
        rows: all images.
        view_maker: from images to views.
        settings: the rest.
        out: the folder.
        made: from where, for people.
        progress: called as it goes.
    """

    embedder: Embedder
    rows: ImageRows
    view_maker: ViewMaker
    settings: EmbedSettings
    out: Path
    made: dict[str, str]
    progress: ShardProgress

    def make(self, shard: Shard) -> FinishedShard:
        """One shard, unless it is there."""
        note = self._note(shard)
        write_or_compare_manifest(self.out, replace(note, shard={}))
        found = self._find(shard, note)
        if found is not None:
            return found
        path, rows = self.out / shard.file_name, shard.rows(len(self.rows))
        skipped, reading = dict[int, str](), self.rows.reader(rows)
        with new_shard(
            path,
            dim=note.settings["dim"],
            precision=self.settings.precision,
            labelled=self.rows.labels is not None,
        ) as writer:
            for seen in self._seen(rows, reading):
                self._write(seen, reading, writer)
                skipped |= seen.unreadable
                self._refuse_too_many(skipped, shard)
                self.progress.images(shard, seen.rows.stop - rows.start, len(rows))
            writer.flush()
            writer.sign(replace(note, shard={**note.shard, "content": reading.content()}))
            self._list_skipped(shard, skipped)
        return FinishedShard(shard, path, len(rows) - len(skipped), len(skipped), was_there=False)

    def _note(self, shard: Shard) -> Note:
        rows = shard.rows(len(self.rows))
        own = {
            "shard": shard.index,
            "first": rows.start,
            "stop": rows.stop,
            "stamps": self.rows.stamps(rows),
        }
        return Note({**self._shared, "shards": shard.count}, own, self.made)

    @cached_property
    def _shared(self) -> dict[str, Any]:
        config, side = self.embedder.config, self.view_maker.config.side_pixels
        blank = torch.zeros(1, self.view_maker.channels, side, side)  # to learn a vector's length
        settings = {
            **self.embedder.identity,
            "dim": self.embedder.vectors((blank,)).shape[1],
            "precision": self.settings.precision,
            "normalized": self.settings.normalize,
            "views": {
                "crops": self.settings.crops,
                "side_pixels": config.views.side_pixels,
                "pixel_mean": config.views.pixel_mean,
                "pixel_std": config.views.pixel_std,
                "color": config.images.color,
                "channels": config.images.channels,
                "bits": config.images.bits,
                "max_megapixels": config.images.max_megapixels,
            },
            "batch_size": self.settings.batch_size,
            "images": len(self.rows),
            "names": self.rows.fingerprint(),
        }
        shared: dict[str, Any] = json.loads(json.dumps(settings))  # as it is read again
        return shared

    def _find(self, shard: Shard, note: Note) -> FinishedShard | None:
        """The shard, if it has been finished; one that is damaged is made anew."""
        path, rows = self.out / shard.file_name, shard.rows(len(self.rows))
        if not path.exists():
            return None
        try:
            there, count = read_note(path)
        except (OSError, ValueError) as error:
            self.progress.say(f"{path} is damaged and made anew: {error}")
            return None
        refuse_differences(differences(there.settings, note.settings), path)
        if not self._is_of_same_content(there.shard, note.shard, rows):
            self.progress.say(f"{path} is made anew: its images have changed since.")
            return None
        return FinishedShard(shard, path, count, len(rows) - count, was_there=True)

    def _is_of_same_content(
        self, there: Mapping[str, Any], now: Mapping[str, Any], rows: range
    ) -> bool:
        """Whether the images still have the bytes that were embedded.

        They are read for that, unless sizes and times of all files are as they were.
        """
        if now["stamps"] is not None and there.get("stamps") == now["stamps"]:
            return True
        reading = self.rows.reader(rows)
        reading.read_all(self.view_maker.executor)
        return bool(there.get("content") == reading.content())

    def _seen(self, rows: range, reading: ShardReader) -> Iterable[BatchOfViews]:
        batches = self.view_maker.batches(rows)
        seen = (self.view_maker.make(batch, reading.pixels) for batch in batches)
        # On a CPU views and network share the cores: nothing to gain ahead.
        return _one_ahead(seen) if self.embedder.on_accelerator() else seen

    def _write(self, seen: BatchOfViews, reading: ShardReader, writer: ShardWriter) -> None:
        good = [index for index in seen.rows if index not in seen.unreadable]
        if not good:
            return
        places = [index % self.view_maker.batch_size for index in good]
        writer.add(
            [self.rows.names[index] for index in good],
            [self.rows.label(index) for index in good],
            [reading.checksum(index) for index in good],
            self.embedder.vectors(seen.views)[places],
        )

    def _refuse_too_many(self, skipped: dict[int, str], shard: Shard) -> None:
        count, most = len(shard.rows(len(self.rows))), self.settings.max_unreadable_share
        if len(skipped) <= most * count:
            return
        some = itertools.islice(sorted(skipped.items()), 5)
        listed = "".join(f"\n  {self.rows.names[index]}: {why}" for index, why in some)
        raise ImagesError(
            f"more than {most:.0%} of the {count:,} images of {shard} cannot be read, so it is not "
            f"finished:{listed}\nRepair or remove them, or raise --max-unreadable-share."
        )

    def _list_skipped(self, shard: Shard, skipped: dict[int, str]) -> None:
        """Before the shard is there: whoever finds it finds its list too."""
        file = self.out / shard.skipped_name
        if not skipped:
            file.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["name", "reason"])
        writer.writerows(
            [escaped(self.rows.names[index]), why] for index, why in sorted(skipped.items())
        )
        atomic_write(file, text.getvalue().encode(errors=HANDLER))


def _one_ahead(batches: Iterator[BatchOfViews]) -> Iterator[BatchOfViews]:
    """The same, each made while its predecessor is in use."""
    # One thread: a generator cannot be run by two at once.
    with ThreadPoolExecutor(1, thread_name_prefix="diptych-embed-ahead") as ahead:
        waiting = ahead.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = ahead.submit(next, batches, None)
            yield batch


_EVERY_SECONDS: Final = 10.0


class PrintedShardProgress(ShardProgress):
    """Plain lines, as several processes may share the terminal or each has a log.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()
        self._last_done = (-1, 0)

    def say(self, sentence: str) -> None:
        """Something worth a line."""
        self._console.print(readable_lines(sentence), highlight=False, soft_wrap=True)

    def images(self, shard: Shard, done: int, total: int) -> None:
        """At most every ten seconds: how far a shard is, and how fast."""
        now = time.monotonic()
        if now - self._last < _EVERY_SECONDS:
            return
        number, earlier = self._last_done
        speed = (done - (earlier if number == shard.index else 0)) / (now - self._last)
        self._last, self._last_done = now, (shard.index, done)
        self.say(f"{str(shard).capitalize()}: {done:,} of {total:,} images, {speed:,.0f} a second.")

    def done(self, done: FinishedShard) -> None:
        """A shard is on disk."""
        how = "was there" if done.was_there else "done"
        skipped = ""
        if done.skipped:
            where = done.path.with_name(done.shard.skipped_name)
            skipped = f", {done.skipped:,} skipped and listed in {where}"
        self.say(
            f"{str(done.shard).capitalize()} {how}: {done.images:,} images in {done.path}{skipped}."
        )


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
        progress: called as it goes.
    """
    work = _open(run, path, out, settings, runtime, progress or ShardProgress())
    for shard in shards:
        yield work.make(shard)


def check_before_start(run: Path, path: Any, out: Path) -> None:
    """Refuses what is certain to fail before processes are started, without opening an image.

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
