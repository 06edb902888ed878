"""Images with several labels each: a table ``labels.csv`` in the folder of the images.

Its first column is ``name``, an image's path below the folder; every other column is a label, with
1 where the image has it and 0 where it does not.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ImagesError
from diptych.escaping import unescaped

TABLE: Final = "labels.csv"
_FORM: Final = "wanted the columns name, LABEL, LABEL, .. with 0 or 1 below every label"


class Tags(NamedTuple):
    """Which labels each image has.

    Attributes:
        names: of the labels.
        rows: labels of an image by its name, (labels,) of 0 and 1.
    """

    names: tuple[str, ...]
    rows: dict[str, NDArray[np.float32]]

    def of(self, images: Sequence[str], origin: str) -> NDArray[np.float32]:
        """The labels of images in their order, (images, labels).

        Raises:
            ImagesError: the table lacks an image.
        """
        missing = [name for name in images if name not in self.rows]
        if missing:
            raise ImagesError(
                f"{TABLE} of {origin} has no row for {len(missing)} of {len(images)} images, as "
                f"{missing[0]!r}. Add them, with the path below the folder as the name."
            )
        return np.stack([self.rows[name] for name in images])


def find_tags(folder: Path, *, part: Sequence[str] = ()) -> Tags | None:
    """The table of the first of a folder's subfolders ``part`` that has one, or the folder's own.

    Names of subfolders are compared without case.

    Raises:
        ImagesError: there is one of another form.
    """
    found = {one.name.lower(): one for one in sorted(folder.glob("*/"))}
    places = [found[name.lower()] / TABLE for name in part if name.lower() in found]
    places.append(folder / TABLE)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return _read(csv.reader(file), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImagesError(f"{path} cannot be read: {error}.") from error


def _read(lines: Any, path: Path) -> Tags:
    head: list[str] = next(lines, [])
    if head[:1] != ["name"] or len(head) < 3:
        found = ", ".join(head[:10]) or "nothing"
        raise ImagesError(f"{path}: {_FORM}, two labels or more; its first line has {found}.")
    rows = {}
    for line in lines:
        if not line:
            continue
        if len(line) != len(head) or any(value not in ("0", "1") for value in line[1:]):
            raise ImagesError(f"{path}, line {lines.line_num}: {_FORM}; got {','.join(line)!r}.")
        rows[unescaped(line[0])] = np.array(line[1:], dtype=np.float32)
    return Tags(tuple(head[1:]), rows)
