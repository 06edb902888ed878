"""Labels that were given in a gallery, in the formats of others."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from diptych.errors import ConfigError
from diptych.escaping import escaped, readable
from diptych.gallery.contents import Gallery
from diptych.images.splits import role_of
from diptych.runs.atomic import atomic_path

LINKS: Final = "links"
"""Folder beside the labels that has a folder of links for each class."""

_UNSAFE: Final = re.compile(r"[^\w .,()+=@#-]")
_MOST_BYTES: Final = 200  # of a file's name, which may have 255


class Export(NamedTuple):
    """A file to download.

    Attributes:
        file: its name.
        media_type: what it is.
        write: gives its bytes.
    """

    file: str
    media_type: str
    write: Callable[[Gallery], bytes]


class Line(NamedTuple):
    """What is known of an image: row, name, the class it came with, and the one given here."""

    row: int
    name: str
    label: str | None
    given: str | None


def lines(gallery: Gallery) -> Iterator[Line]:
    """All images in their order."""
    vectors = gallery.runs.first.vectors
    _, codes = gallery.labels.codes()
    classes = gallery.labels.classes()
    labels = vectors.labels or [None] * len(vectors)
    for row, (name, label) in enumerate(zip(vectors.names, labels, strict=True)):
        code = int(codes[row])
        yield Line(
            row, escaped(name), label and escaped(label), classes[code] if code >= 0 else None
        )


def as_csv(gallery: Gallery) -> bytes:
    """A row for each image: name, label, given."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "label", "given"])
    writer.writerows([line.name, line.label or "", line.given or ""] for line in lines(gallery))
    return text.getvalue().encode()


def as_parquet(gallery: Gallery) -> bytes:
    """The same columns; null for none."""
    found = list(lines(gallery))
    table = pa.table(
        {
            "name": pa.array([line.name for line in found], pa.string()),
            "label": pa.array([line.label for line in found], pa.string()),
            "given": pa.array([line.given for line in found], pa.string()),
        }
    )
    out = io.BytesIO()
    parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


def as_coco(gallery: Gallery) -> bytes:
    """COCO's JSON: the images labelled here, each with one annotation of its class, no box."""
    classes = gallery.labels.classes()
    number = {name: place + 1 for place, name in enumerate(classes)}
    found = [line for line in lines(gallery) if line.given is not None]
    return _json(
        {
            "info": {"description": f"Labels of {readable(gallery.title('A'))}"},
            "images": [{"id": line.row + 1, "file_name": line.name} for line in found],
            "annotations": [
                {"id": place + 1, "image_id": line.row + 1, "category_id": number[str(line.given)]}
                for place, line in enumerate(found)
            ],
            "categories": [{"id": number[name], "name": name} for name in classes],
        }
    )


def as_fiftyone(gallery: Gallery) -> bytes:
    """The labels.json of FiftyOne's FiftyOneImageClassificationDataset: names without endings."""
    classes = gallery.labels.classes()
    number = {name: place for place, name in enumerate(classes)}
    found = {
        os.path.splitext(line.name)[0]: number[line.given]
        for line in lines(gallery)
        if line.given is not None
    }
    return _json({"classes": classes, "labels": found})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


EXPORTS: Final = {
    "csv": Export("labels.csv", "text/csv; charset=utf-8", as_csv),
    "parquet": Export("labels.parquet", "application/vnd.apache.parquet", as_parquet),
    "coco": Export("coco.json", "application/json", as_coco),
    "fiftyone": Export("labels.json", "application/json", as_fiftyone),
}


def _folders_of(classes: set[str]) -> dict[str, str]:
    """A folder for each class, which has no other's name and is read as a class.

    Raises:
        ConfigError: names two classes that would share one, or one that names a part.
    """
    folders, taken = dict[str, str](), dict[str, str]()
    for name in sorted(classes):
        folder = _file_name(name)
        other = taken.setdefault(folder.lower(), name)
        if other != name:
            raise ConfigError(
                f"The classes {other} and {name} would share the folder {folder}. Rename one."
            )
        if role_of(folder) is not None:
            raise ConfigError(
                f"A folder called {folder} would be read as a part of the set, and not as a class. "
                "Rename the class."
            )
        folders[name] = folder
    return folders


def write_links(gallery: Gallery) -> dict[str, Any]:
    """Writes a folder with a link to each labelled image, in a folder for each class.

    An earlier one is replaced. Only images that are files of the indexed folder are linked.

    Raises:
        ConfigError: nothing is labelled, the images are no files of a folder, or classes cannot be
            folders.
    """
    root = gallery.atlas.root
    if root is None:
        raise ConfigError("Links need images that are files of a folder; give --images FOLDER.")
    names, folder, count = gallery.runs.names, gallery.folder / LINKS, 0
    labelled = [line for line in lines(gallery) if line.given is not None]
    if not labelled:
        raise ConfigError("No image is labelled yet: give labels first.")
    folders = _folders_of({str(line.given) for line in labelled})
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for line in labelled:
            name = names[line.row]
            # Only what the folder lists: names in vectors may come from anybody.
            if not gallery.atlas.lists(name) or not (root / name).is_file():
                continue
            place = temporary / folders[str(line.given)]
            place.mkdir(exist_ok=True)
            link = place / _file_name(line.name.replace("/", "__"))
            if link.is_symlink():
                link = place / f"{line.row}-{link.name}"
            link.symlink_to((root / name).absolute())
            count += 1
        if not count:
            raise ConfigError(
                "No labelled image is a file of its own, so there is nothing to link."
            )
    words = f"{count:,} links in {readable(str(folder))}"
    left = len(labelled) - count
    return {"path": readable(str(folder)), "links": count, "words": words, "left_out": left}


def _file_name(text: str) -> str:
    """A name that is one file's in any file system, and never a way out of the folder."""
    safe = _UNSAFE.sub("_", text).strip(" .") or "_"
    while len(safe.encode()) > _MOST_BYTES:
        safe = safe[1:]  # the end differs, and says what kind of file it is
    return safe
