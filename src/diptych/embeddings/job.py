"""Images to vectors, part by part: fresh, or only those that no earlier call has made."""

import csv
import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from diptych.config.data import OF_SOURCE, ImagesConfig
from diptych.config.downstream import EmbedSettings
from diptych.embeddings.encode_views import (
    BatchOfViews,
    Vectors,
    ViewEncoder,
    ViewMaker,
    views_as_json,
)
from diptych.embeddings.kept import KeptVectors
from diptych.embeddings.shards import ImageRows, ShardReader, find_rows
from diptych.errors import ImagesError
from diptych.escaping import HANDLER, escaped
from diptych.images.codecs.channels import Pixels
from diptych.images.open import from_any_folder
from diptych.images.sources.handed_over import path_of
from diptych.models.start import OpenedEncoder
from diptych.models.weight_files import absolute_source
from diptych.runs.atomic import atomic_write
from diptych.runs.own_tables import SKIPPED_COLUMNS
from diptych.runtime.devices import Runtime

_BLOCK: Final = 16  # batches that are looked through at once for images that are new
_SMALL_SIDE: Final = 48
"""Pixels of a view up to which each thread has a batch of its own, instead of all sharing one.

Layers that small leave threads idle, and decoding small files is mostly Python, which one thread
runs at a time: a batch each is a fifth faster at 32 pixels, and at 96 a tenth slower.
"""


class Part(NamedTuple):
    """Some consecutive images with their vectors.

    Attributes:
        images: places in the set of those that could be read, in order.
        vectors: (images, dim).
        unreadable: the reason why, by place.
        stop: images before this place are done.
        kept: how many of the vectors an earlier call had made.
    """

    images: list[int]
    vectors: Vectors
    unreadable: dict[int, str]
    stop: int
    kept: int = 0


@dataclass(frozen=True)
class EmbeddingJob:
    """What is embedded, and how.

    Attributes:
        encoder: from views to vectors.
        rows: all images.
        view_maker: from images to views.
        settings: the rest.
        made: from where, for people.
    """

    encoder: ViewEncoder
    rows: ImageRows
    view_maker: ViewMaker
    settings: EmbedSettings
    made: dict[str, str]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the vectors follow from."""
        config = self.encoder.config
        settings = {
            **self.encoder.identity,
            "dim": self.encoder.dim(),
            "precision": self.settings.precision,
            "normalized": self.settings.normalize,
            "views": views_as_json(config, self.settings.crops),
            "batch_size": self.settings.batch_size,
            "images": len(self.rows),
            "names": self.rows.fingerprint(),
        }
        # Only where that is asked for: what was embedded without stays as it is.
        plain, images = ImagesConfig(), config.images
        chosen = {name: getattr(images, name) for name in OF_SOURCE}
        if any(value != getattr(plain, name) for name, value in chosen.items()):
            settings["source"] = chosen
        shared: dict[str, Any] = json.loads(json.dumps(settings))  # as it is read again
        return shared

    def parts(self, rows: range, reading: ShardReader, kept: KeptVectors | None) -> Iterator[Part]:
        """The vectors of consecutive images.

        Args:
            rows: the images.
            reading: of these.
            kept: vectors to use again; then only images that are not among them are encoded.
        """
        return self._fresh(rows, reading) if kept is None else self._with(kept, rows, reading)

    def _fresh(self, rows: range, reading: ShardReader) -> Iterator[Part]:
        batches, maker = self.view_maker.batches(rows), self.view_maker
        if self.encoder.on_accelerator():
            seen = (maker.make(batch, reading.pixels) for batch in batches)
            return map(self._part, _one_ahead(seen))
        threads, side = torch.get_num_threads(), self.encoder.config.views.side_pixels
        if threads > 1 and side <= _SMALL_SIDE and self.encoder.can_share:
            maker = replace(maker, executor=_SameThread())
            return _in_threads(
                lambda batch: self._part(maker.make(batch, reading.pixels)), batches, threads
            )
        # Views and network share the cores: nothing to gain ahead.
        return (self._part(maker.make(batch, reading.pixels)) for batch in batches)

    def _part(self, seen: BatchOfViews) -> Part:
        good = [index for index in seen.rows if index not in seen.unreadable]
        size = self.view_maker.batch_size
        places = [index % size for index in good]
        # The set's last batch is as short as the set leaves it, in whatever shard: not blank
        # rows of a batch of 256 where there are 60 images.
        short = min(size, len(self.rows) - seen.rows.start // size * size)
        views = tuple(view[:short] for view in seen.views)
        vectors = self.encoder.vectors(views)[places] if good else self._none
        return Part(good, vectors, seen.unreadable, seen.rows.stop)

    def _with(self, kept: KeptVectors, rows: range, reading: ShardReader) -> Iterator[Part]:
        size = _BLOCK * self.view_maker.batch_size
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            found = kept.find(reading.read_all(self.view_maker.executor, some))
            there = found >= 0
            new = [index for index, is_there in zip(some, there, strict=True) if not is_there]
            fresh, unreadable = self._encoded(new, reading)
            whole = np.empty((len(some), self.identity["dim"]), self.settings.precision)
            whole[there], whole[~there] = kept.read(found[there]), fresh
            good = [index for index in some if index not in unreadable]
            places = [index - some.start for index in good]
            yield Part(good, whole[places], unreadable, some.stop, int(there.sum()))

    def _encoded(self, new: Sequence[int], reading: ShardReader) -> tuple[Vectors, dict[int, str]]:
        """Vectors of scattered images, in full batches; blank rows of those that are unreadable."""
        out = np.zeros((len(new), self.identity["dim"]), self.settings.precision)
        unreadable = dict[int, str]()
        for start in range(0, len(new), self.view_maker.batch_size):
            few = new[start : start + self.view_maker.batch_size]
            seen = self.view_maker.make(range(len(few)), partial(_pixels_at, reading, few))
            unreadable |= {few[place]: why for place, why in seen.unreadable.items()}
            if len(seen.unreadable) < len(few):
                views = tuple(view[: len(few)] for view in seen.views)
                out[start : start + len(few)] = self.encoder.vectors(views)
        return out, unreadable

    @cached_property
    def _none(self) -> Vectors:
        return np.empty((0, self.identity["dim"]), self.settings.precision)

    def refuse_too_many(self, skipped: Mapping[int, str], count: int, what: str) -> None:
        """Refuses a shard or file that lacks too many of its images.

        Raises:
            ImagesError: lists some.
        """
        most = self.settings.max_unreadable_share
        if len(skipped) <= most * count:
            return
        some = itertools.islice(sorted(skipped.items()), 5)
        listed = "".join(f"\n  {self.rows.names[index]}: {why}" for index, why in some)
        raise ImagesError(
            f"more than {most:.0%} of the {count:,} images of {what} cannot be read, so it is not "
            f"finished:{listed}\nRepair or remove them, or raise max_unreadable_share, which "
            "`diptych embed` takes."
        )

    def list_skipped(self, file: Path, skipped: Mapping[int, str]) -> None:
        """Writes the images that are left out, and why; no file where there are none."""
        if not skipped:
            file.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(SKIPPED_COLUMNS)
        writer.writerows(
            [escaped(self.rows.names[index]), why] for index, why in sorted(skipped.items())
        )
        atomic_write(file, text.getvalue().encode(errors=HANDLER))


def open_job(
    source: str, opened: OpenedEncoder, path: Any, settings: EmbedSettings, runtime: Runtime
) -> EmbeddingJob:
    """Opens the images for an encoder.

    Args:
        source: the encoder's name, for people.
        opened: the encoder.
        path: of the images.
        settings: how they become vectors.
        runtime: gives device and threads.

    Raises:
        ImagesError: nothing usable is there.
        ConfigError: there is no such layer.
    """
    encoder = ViewEncoder(opened, settings, runtime.torch_device)
    config = encoder.config
    images = replace(
        config.images.at(path_of(path)), column=settings.column or config.images.column
    )
    views = ViewMaker(
        settings.crops, config.views, images.channels, settings.batch_size, runtime.executor
    )
    # From any folder, so that whoever reads the vectors finds the images again.
    place = from_any_folder(images.path) or str(Path(images.path).absolute())
    made = {"run": absolute_source(source), "path": place}
    return EmbeddingJob(encoder, find_rows(images), views, settings, made)


def _pixels_at(reading: ShardReader, images: Sequence[int], place: int) -> Pixels:
    return reading.pixels(images[place])


class _SameThread(Executor):
    """Does what it is given at once, in the thread that asks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that has its result already."""
        done = Future[Any]()
        done.set_result(fn(*args, **kwargs))
        return done


def _in_threads(
    work: Callable[[range], Part], batches: Sequence[range], threads: int
) -> Iterator[Part]:
    """What ``work`` makes of the batches, in their order; in each thread torch uses one core."""
    waiting = deque[Future[Part]]()
    pool = ThreadPoolExecutor(threads, "diptych-embed", torch.set_num_threads, (1,))
    try:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that are begun later take over the last number


def _one_ahead(batches: Iterator[BatchOfViews]) -> Iterator[BatchOfViews]:
    """The same, each made while its predecessor is in use."""
    # One thread: a generator cannot be run by two at once.
    with ThreadPoolExecutor(1, thread_name_prefix="diptych-embed-ahead") as ahead:
        waiting = ahead.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = ahead.submit(next, batches, None)
            yield batch
