"""All vectors of a set in one file: Parquet, or .npy or .csv with what belongs beside it.

They lie in memory until they are written; a folder of shards has no such limit.
"""

import csv
import io
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from diptych.embeddings.embed_progress import EmbedProgress, FinishedFile, say_dropped
from diptych.embeddings.encode_views import Vectors
from diptych.embeddings.job import EmbeddingJob
from diptych.embeddings.kept import CHANGES, KeptVectors, kept_in_memory
from diptych.embeddings.shard_files import (
    Note,
    differences,
    new_shard,
    read_note,
    refuse_differences,
)
from diptych.embeddings.vectors import (
    CHECKSUM,
    FEATURE,
    FORMATS,
    LABEL,
    NAME,
    VectorSet,
    digest_of_rows,
    read_vectors,
)
from diptych.errors import EmbeddingsError
from diptych.escaping import escaped
from diptych.runs.atomic import atomic_path, atomic_write
from diptych.runs.own_tables import require_own_list, skipped_list


@dataclass
class _Rows:
    """Rows of the file, in memory."""

    vectors: Vectors
    names: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    checksums: list[bytes] = field(default_factory=list)

    def are_in(self, there: VectorSet | None, *, labelled: bool) -> bool:
        """Whether a file has the same rows already, if their vectors are the same."""
        return (
            there is not None
            and list(there.names) == self.names
            and list(there.checksums or ()) == self.checksums
            and (not labelled or list(there.labels or ()) == self.labels)
        )


def is_single_file(out: Path) -> bool:
    """Whether vectors go into one file, by its name, and not into a folder."""
    return out.suffix.lower() in FORMATS and not out.is_dir()


def make_file(job: EmbeddingJob, out: Path, progress: EmbedProgress) -> FinishedFile:
    """Writes all vectors; of a file that is there those whose images are the same are kept.

    Args:
        job: what is embedded, and how.
        out: the file.
        progress: called as it goes.

    Raises:
        EmbeddingsError: what is there is of something else.
        ConfigError: so is the list of images that cannot be read.
        ImagesError: too many images cannot be read.
    """
    there = _read_there(job, out, progress)
    require_own_list(out)
    kept = None
    if there is not None and there.checksums:
        kept = kept_in_memory(there.checksums, there.features.astype(job.settings.precision))
    found, skipped, again = _rows(job, out, kept, progress)
    list_of_skipped = skipped_list(out)
    done = FinishedFile(out.name, out, len(found.names), len(skipped), list_of_skipped, again)
    job.list_skipped(list_of_skipped, skipped)
    whole = kept is not None and again == len(found.names) == len(kept)
    if whole and found.are_in(there, labelled=job.rows.labels is not None) and _is_noted(job, out):
        return replace(done, was_there=True, kept=0)
    if kept is not None:
        say_dropped(kept.gone, progress)
    _write(out, found, job)
    return done


def _rows(
    job: EmbeddingJob, out: Path, kept: KeptVectors | None, progress: EmbedProgress
) -> tuple[_Rows, dict[int, str], int]:
    """All rows, the images that could not be read, and how many vectors were kept."""
    rows = range(len(job.rows))
    reading, skipped, again = job.rows.reader(rows), dict[int, str](), 0
    found = _Rows(np.empty((len(rows), job.identity["dim"]), job.settings.precision))
    for part in job.parts(rows, reading, kept):
        start = len(found.names)
        found.names += [job.rows.names[index] for index in part.images]
        found.labels += [job.rows.label(index) for index in part.images]
        found.checksums += [reading.checksum(index) for index in part.images]
        found.vectors[start : len(found.names)] = part.vectors
        skipped |= part.unreadable
        again += part.kept
        job.refuse_too_many(skipped, len(rows), out.name)
        progress.images(out.name, part.stop, len(rows))
    found.vectors = found.vectors[: len(found.names)]
    return found, skipped, again


def _note_of(out: Path) -> Path:
    return out.with_suffix(".json")


def _beside(out: Path) -> list[Path]:
    """Files that belong to one with this name, or that it would belong to: .npy has a .csv."""
    kind = out.suffix.lower()
    if kind == ".parquet":
        return []
    return [_note_of(out), out.with_suffix(".csv" if kind == ".npy" else ".npy")]


def _read_there(job: EmbeddingJob, out: Path, progress: EmbedProgress) -> VectorSet | None:
    """What an earlier call wrote with the same settings, if it did.

    Raises:
        EmbeddingsError: there is another file, which is not to be lost, or one of other settings.
    """
    present = [file for file in (out, *_beside(out)) if file.exists()]
    if not present:
        return None
    note = _read_note(out)
    if note is None:
        raise EmbeddingsError(
            f"{present[0]} is there, and `diptych embed` did not write it with this name, or it is "
            "damaged. Choose another name, or remove it."
        )
    found = differences(note.settings, job.identity)
    refuse_differences([one for one in found if one.partition(":")[0] not in CHANGES], out)
    if found and note.made.get("path") != job.made["path"]:
        raise EmbeddingsError(
            f"{out} has vectors of the images of {note.made.get('path')}; these are of "
            f"{job.made['path']}. Choose another name, or remove it."
        )
    try:
        return read_vectors(out)
    except EmbeddingsError as error:
        progress.say(f"{out} is damaged and made anew: {error}")
        return None


def _read_note(out: Path) -> Note | None:
    """The note of a file that an earlier call wrote; None where none did."""
    with suppress(OSError, ValueError):
        if out.suffix.lower() == ".parquet":
            return read_note(out)[0]
        note = Note.decode(_note_of(out).read_bytes())
        return note if note.shard.get("file") == out.name else None
    return None


def _is_noted(job: EmbeddingJob, out: Path) -> bool:
    """Whether the file says of which images it is, and where they lie, as it would now."""
    note = _read_note(out)
    return (
        note is not None
        and note.settings == job.identity
        and note.made.get("path") == job.made["path"]
    )


def _write(out: Path, found: _Rows, job: EmbeddingJob) -> None:
    own = {"file": out.name, "rows": digest_of_rows(found.vectors, found.checksums)}
    note = Note(job.identity, own, job.made)
    labelled, kind = job.rows.labels is not None, out.suffix.lower()
    if kind == ".parquet":
        _write_parquet(out, found, note, labelled=labelled)
        return
    # The note first: what is cut off in between differs from it, and is made anew.
    atomic_write(_note_of(out), note.encode() + b"\n")
    table = _table(found, labelled=labelled, features=kind == ".csv")
    atomic_write(out.with_suffix(".csv") if kind == ".npy" else out, table)
    if kind == ".npy":
        with atomic_path(out) as temporary, open(temporary, "wb") as file:
            np.save(file, found.vectors, allow_pickle=False)


def _write_parquet(out: Path, found: _Rows, note: Note, *, labelled: bool) -> None:
    dim, precision = note.settings["dim"], note.settings["precision"]
    with new_shard(out, dim=dim, precision=precision, labelled=labelled) as writer:
        writer.add(found.names, found.labels, found.checksums, found.vectors)
        writer.flush()
        writer.sign(note)


def _table(found: _Rows, *, labelled: bool, features: bool) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    numbers = [f"{FEATURE}_{i}" for i in range(found.vectors.shape[1])] if features else []
    writer.writerow([NAME, *([LABEL] if labelled else []), CHECKSUM, *numbers])
    for row, name in enumerate(found.names):
        label = [escaped(found.labels[row] or "")] if labelled else []
        # The shortest text that gives the same number again, as it is read: of 32 bits.
        vector = map(str, found.vectors[row].astype(np.float32)) if features else []
        writer.writerow([escaped(name), *label, found.checksums[row].hex(), *vector])
    return text.getvalue().encode()
