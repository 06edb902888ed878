"""Labels of a gallery in the formats of others."""

import csv
import io
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from diptych.escaping import escaped
from diptych.gallery.gallery import Gallery


class Export(NamedTuple):
    """A file to download."""

    file: str
    media_type: str
    write: Callable[[Gallery], bytes]


def as_csv(gallery: Gallery) -> bytes:
    """A row for each image: name, label, given."""
    vectors = gallery.runs.first.vectors
    _, codes = gallery.labels.codes()
    classes = [*gallery.labels.classes(), ""]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "label", "given"])
    labels = vectors.labels or [None] * len(vectors)
    for name, label, code in zip(vectors.names, labels, codes.tolist(), strict=True):
        writer.writerow([escaped(name), escaped(label or ""), classes[code]])
    return text.getvalue().encode()


def write_links(gallery: Gallery) -> dict[str, Any]:
    """A folder of links."""
    return {"path": "", "words": ""}


EXPORTS: Final = {"csv": Export("labels.csv", "text/csv; charset=utf-8", as_csv)}
