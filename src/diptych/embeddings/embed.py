"""Vectors of the images of a path: in shards, of which each process makes whole ones, or one file.

A shard is made from images to views to vectors to a file, and asks nothing of the other processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diptych.config.downstream import EmbedSettings
from diptych.embeddings.embed_progress import EmbedProgress, FinishedFile, say_dropped
from diptych.embeddings.job import EmbeddingJob, open_job
from diptych.embeddings.kept import CHANGES, MOST_SHARDS, KeptShards, KeptVectors, can_be_kept
from diptych.embeddings.shard_files import (
    MANIFEST,
    Note,
    differences,
    new_shard,
    read_note,
    read_set_manifest,
    refuse_differences,
    write_or_compare_manifest,
)
from diptych.embeddings.shards import Shard, checked_shard
from diptych.embeddings.single_file import is_single_file, make_file
from diptych.errors import ConfigError, EmbeddingsError
from diptych.escaping import readable
from diptych.images.index import decoders
from diptych.images.open import require_there
from diptych.images.sources.handed_over import path_of
from diptych.models.start import OpenedEncoder, open_encoder
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.runtime.devices import Runtime


@dataclass
class ShardMaker:
    """Makes the shards of a folder, one after the other.

    Attributes:
        job: what is embedded, and how.
        out: the folder.
        progress: called as it goes.
        stack: closes what stays open until the last shard is made.
    """

    job: EmbeddingJob
    out: Path
    progress: EmbedProgress
    stack: ExitStack
    _kept: KeptVectors | None = field(default=None, init=False)
    _made: int = field(default=0, init=False)

    def make(self, shard: Shard) -> FinishedFile:
        """One shard, unless it is there."""
        note = self._note(shard)
        self._write_manifest(replace(note, shard={}))
        found = self._find(shard, note)
        if found is not None:
            return found
        self._made += 1
        return self._anew(shard, note)

    def say_what_is_gone(self, shard: Shard) -> None:
        """After the last shard: how many vectors were dropped, if all were made anew here."""
        if self._kept is not None and self._made == shard.count:
            say_dropped(self._kept.gone, self.progress)

    def _anew(self, shard: Shard, note: Note) -> FinishedFile:
        job, path = self.job, self.out / shard.file_name
        rows, kept = shard.rows(len(job.rows)), self._kept_for(shard, note)
        skipped, reading, again = dict[int, str](), job.rows.reader(rows), 0
        with new_shard(
            path,
            dim=note.settings["dim"],
            precision=job.settings.precision,
            labelled=job.rows.labels is not None,
        ) as writer:
            for part in job.parts(rows, reading, kept):
                writer.add(
                    [job.rows.names[index] for index in part.images],
                    [job.rows.label(index) for index in part.images],
                    [reading.checksum(index) for index in part.images],
                    part.vectors,
                )
                skipped |= part.unreadable
                again += part.kept
                job.refuse_too_many(skipped, len(rows), str(shard))
                self.progress.images(str(shard), part.stop - rows.start, len(rows))
            writer.flush()
            seen = {"content": reading.content(), "unread": reading.unread()}
            writer.sign(replace(note, shard={**note.shard, **seen}))
            # Before the shard is there: whoever finds it finds its list too.
            job.list_skipped(self.out / shard.skipped_name, skipped)
        return self._finished(shard, len(rows) - len(skipped), kept=again)

    def _finished(
        self, shard: Shard, images: int, *, kept: int = 0, was_there: bool = False
    ) -> FinishedFile:
        rows = shard.rows(len(self.job.rows))
        return FinishedFile(
            str(shard),
            self.out / shard.file_name,
            images,
            len(rows) - images,
            self.out / shard.skipped_name,
            kept,
            was_there,
        )

    def _note(self, shard: Shard) -> Note:
        rows = shard.rows(len(self.job.rows))
        own = {
            "shard": shard.index,
            "first": rows.start,
            "stop": rows.stop,
            "stamps": self.job.rows.stamps(rows),
            "labels": self.job.rows.label_hash(rows),
            "decoders": decoders(),
        }
        return Note({**self.job.identity, "shards": shard.count}, own, self.job.made)

    def _write_manifest(self, note: Note) -> None:
        """Writes the manifest, also where images came or went, or all moved to another path."""
        file = self.out / MANIFEST
        if file.exists():
            there = read_set_manifest(self.out)
            found = differences(there.settings, note.settings)
            if _only_images_changed(there, note, found) if found else _moved(there, note):
                atomic_write(file, note.encode() + b"\n")
        write_or_compare_manifest(self.out, note)

    def _find(self, shard: Shard, note: Note) -> FinishedFile | None:
        """The shard, if it has been finished; one that is damaged or outdated is made anew."""
        path, rows = self.out / shard.file_name, shard.rows(len(self.job.rows))
        if not path.exists():
            return None
        try:
            there, count = read_note(path)
        except (OSError, ValueError) as error:
            self.progress.say(f"{path} is damaged and made anew: {error}")
            return None
        found = differences(there.settings, note.settings)
        if found and _only_images_changed(there, note, found):
            self.progress.say(f"{path} is made anew: images came or went.")
            return None
        refuse_differences(found, path)
        why = self._outdated(there, note, rows, count)
        if why:
            self.progress.say(f"{path} is made anew: {why}.")
            return None
        return self._finished(shard, count, was_there=True)

    def _outdated(self, there: Note, now: Note, rows: range, count: int) -> str:
        """Why a shard of the same settings, with so many vectors, is to be made anew, if it is."""
        if _moved(there, now):
            return "its images have moved"
        if there.shard.get("labels") != now.shard["labels"]:
            return "its labels are others now, or not known"
        if count < len(rows) and there.shard.get("decoders") != now.shard["decoders"]:
            return "images that could not be read are tried by other decoders"
        if not self._is_of_same_content(there.shard, now.shard, rows):
            return "its images have changed since"
        return ""

    def _kept_for(self, shard: Shard, note: Note) -> KeptVectors | None:
        """Vectors of shards that are outdated; None where there are none, as at first."""
        own = self.out / shard.file_name
        if shard.count > MOST_SHARDS or not can_be_kept(own, note.settings):
            return None
        if self._kept is None:
            # All of them now: images may have moved from one shard to the next.
            files = [self.out / Shard(index, shard.count).file_name for index in range(shard.count)]
            there = [file for file in files if file.exists()]
            self._kept = KeptShards(there, note.settings, self.stack).vectors
        return self._kept

    def _is_of_same_content(
        self, there: Mapping[str, Any], now: Mapping[str, Any], rows: range
    ) -> bool:
        """Whether the images still have the bytes that were embedded.

        They are read for that, unless sizes and times of all files are as they were: then only
        those that could not be, as of a disk that failed.
        """
        reading = self.job.rows.reader(rows)
        if now["stamps"] is not None and there.get("stamps") == now["stamps"]:
            return not any(reading.can_be_read(index) for index in there.get("unread", ()))
        reading.read_all(self.job.view_maker.executor)
        return bool(there.get("content") == reading.content())


def _moved(there: Note, now: Note) -> bool:
    """Whether the images lay elsewhere: whoever reads the vectors looks for them by their path."""
    return there.made.get("path") != now.made.get("path")


def _only_images_changed(there: Note, now: Note, found: Sequence[str]) -> bool:
    """Whether a set is the same but for images that came or went."""
    if any(one.partition(":")[0] not in CHANGES for one in found):
        return False
    if not _moved(there, now):
        return True
    raise EmbeddingsError(
        f"there are vectors of other images: of {there.made.get('path')}, and now of "
        f"{now.made.get('path')}. Choose another place for these, or remove the old ones."
    )


def embed(
    source: str | Path,
    path: Any,
    out: str | Path,
    shard: tuple[int, int] = (0, 1),
    *,
    device: str = "auto",
    threads: int | None = None,
    encoder: str | None = None,
    side_pixels: int | None = None,
    **settings: Any,
) -> Path:
    """Writes the vectors of all images of a path, or one shard of them.

    What is there is left alone; of images that came or changed since, only those are embedded.

    Args:
        source: a run folder whose training has ended, its ``encoder.safetensors``, or any other
            weights as ``encoder.weights`` names them.
        path: anything that ``pretrain`` takes; of one with held-out images, those to learn from.
        out: the folder of the shards; or one file that ends in .parquet, .npy or .csv.
        shard: of a folder, its number, from 0, and how many there are.
        device: where the network runs, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        encoder: of weights from elsewhere, the network that they are of.
        side_pixels: of weights from elsewhere, the side of the images that it sees.
        settings: see ``EmbedSettings``.

    Returns:
        The file of the shard, or of all.

    Raises:
        EmbeddingsError: embeddings of another encoder, images or settings are there.
        ImagesError: the images, or too many of them, cannot be read.
        RunFolderError: there is no trained encoder.
        ConfigError: a setting is out of range, or there is no such layer or shard.
    """
    chosen, how = [checked_shard(*shard)], EmbedSettings(**settings)
    opened = open_encoder(str(source), encoder=encoder, side_pixels=side_pixels)
    with Runtime(device, threads, how.batch_size) as runtime:
        [done] = embed_images(str(source), opened, path, Path(out), chosen, how, runtime)
    return done.path


def embed_images(
    source: str,
    opened: OpenedEncoder,
    path: Any,
    out: Path,
    shards: Sequence[Shard],
    settings: EmbedSettings,
    runtime: Runtime,
    progress: EmbedProgress | None = None,
) -> Iterator[FinishedFile]:
    """Makes shards one after the other, or one file; see ``embed``.

    Args:
        source: the encoder's name, for people.
        opened: the encoder.
        path: of the images.
        out: the folder or file.
        shards: of the same set; of a file the only one.
        settings: how images become vectors.
        runtime: gives device and threads.
        progress: called as it goes.
    """
    progress = progress or EmbedProgress()
    _require_place(out, shards)  # before any work is done
    job = open_job(source, opened, path, settings, runtime)
    if any(shard.index == 0 for shard in shards):  # of several processes one says it
        _say_left_out(job, progress)
    if is_single_file(out):
        yield make_file(job, out, progress)
        return
    with ExitStack() as stack:
        maker = ShardMaker(job, out, progress, stack)
        for shard in shards:
            yield maker.make(shard)
        if shards:
            maker.say_what_is_gone(shards[-1])


def _say_left_out(job: EmbeddingJob, progress: EmbedProgress) -> None:
    for sentence in job.rows.left_out:
        progress.say(sentence)
    for part, count in job.rows.held_out:
        progress.say(
            f"Not embedded: {count:,} images of {job.made['path']} that are held out"
            f"{f' as {readable(part)}' if part else ''}. Name their own folder or file for those."
        )


def check_before_start(
    source: str,
    path: Any,
    out: Path,
    shards: Sequence[Shard],
    *,
    encoder: str | None = None,
    side_pixels: int | None = None,
) -> None:
    """Refuses what is certain to fail before processes are started, without opening an image.

    Args:
        source: of the encoder.
        path: of the images.
        out: the folder.
        shards: of one process.
        encoder: as in ``embed``.
        side_pixels: as in ``embed``.

    Raises:
        DiptychError: as ``embed_images`` would.
        OSError: the folder cannot be written.
    """
    # On the CPU: the processes need the accelerator.
    opened = open_encoder(source, encoder=encoder, side_pixels=side_pixels)
    require_there(opened.encoder.config.images.at(path_of(path)))
    _require_place(out, shards)


def _require_place(out: Path, shards: Sequence[Shard]) -> None:
    """Refuses a place that cannot be written, or a single file that is to be made in shards."""
    if not is_single_file(out):
        require_writable(out)
        return
    if list(shards) != [Shard(0, 1)]:
        raise ConfigError(
            f"{out} is one file, which one process makes. Give a folder for shards, or for several "
            "processes."
        )
    require_writable(out.parent)
