"""What all shards of a folder share, in a small file beside them."""

from pathlib import Path
from typing import Final

from diptych.errors import EmbeddingsError
from diptych.gallery.aside import written_aside
from diptych.gallery.note import Note, differences

MANIFEST: Final = "embeddings.json"
"""Its name."""


def agree(folder: Path, note: Note) -> None:
    """Writes the manifest, or compares with the one that is there.

    Raises:
        EmbeddingsError: the folder is that of another set.
    """
    file = folder / MANIFEST
    if not file.exists():
        with written_aside(file) as aside:
            aside.write_bytes(note.encode() + b"\n")
    require_same(differences(read_manifest(folder).settings, note.settings), file)


def read_manifest(folder: Path) -> Note:
    """What all shards of a folder share.

    Raises:
        EmbeddingsError: there is no manifest, or it is damaged.
    """
    file = folder / MANIFEST
    try:
        return Note.decode(file.read_bytes())
    except FileNotFoundError as error:
        raise EmbeddingsError(
            f"{folder} holds no embeddings: there is no {MANIFEST}. `diptych embed RUN PATH -o "
            f"{folder}` makes some."
        ) from error
    except (OSError, ValueError) as error:
        raise EmbeddingsError(
            f"{file} is damaged: {error}. Remove it; `diptych embed` writes it again."
        ) from error


def require_same(found: list[str], file: Path) -> None:
    """Refuses a file that differs from what is to be made.

    Raises:
        EmbeddingsError: something differs.
    """
    if found:
        raise EmbeddingsError(
            f"{file} is of other settings, images or another encoder: {'; '.join(found)}. Choose "
            "another folder, or remove this one's files."
        )
