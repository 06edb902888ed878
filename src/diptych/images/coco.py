"""Boxes in COCO's form: a JSON file for each part, images beside it or in a folder of the part."""

import json
import math
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

import numpy as np

from diptych.errors import ImagesError
from diptych.images.annotation import Annotation, Annotations

_FILES: Final = (
    "annotations/instances_{part}*.json",  # COCO's own
    "annotations/{part}.json",
    "{part}/_annotations.coco.json",
    "{part}.json",
)


def find_coco(root: Path, part: str) -> Path | None:
    """The JSON file of a part; of several (years) the last by name."""
    for pattern in _FILES:
        found = sorted(root.glob(pattern.format(part=part)))
        if found:
            return found[-1]
    return None


def read_coco(root: Path, part: str) -> Annotations:
    """The annotations of a part, in the order of its images.

    Raises:
        ImagesError: there is no such part, or the file is not in COCO's form.
    """
    file = find_coco(root, part)
    if file is None:
        wanted = ", ".join(pattern.format(part=part) for pattern in _FILES)
        raise ImagesError(f"{root} has no part {part!r} in COCO's form. Wanted one of {wanted}.")
    try:
        with open(file, "rb") as opened:
            document = json.load(opened, parse_constant=_refuse_constant)
        return Annotations(str(file), _annotations(root, file, part, document))
    except _Wrong as error:
        raise ImagesError(f"{file}: {error}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ImagesError(f"{file} cannot be read as JSON ({error}).") from error


class _Wrong(Exception):
    """What is wrong with a document, in a few words."""


def _annotations(root: Path, file: Path, part: str, document: Any) -> tuple[Annotation, ...]:
    classes = {
        _integer(one, "id", f"categories[{i}]"): _string(one, "name", f"categories[{i}]")
        for i, one in enumerate(_table(document, "categories"))
    }
    images = _table(document, "images")
    for key in ("id", "file_name"):
        if len({str(one.get(key)) for one in images}) < len(images):
            raise _Wrong(f"two images have the same {key}")
    marked = _boxes_by_image(document, classes, {_integer(one, "id", "images") for one in images})
    folder = _folder_of_images(root, file, part, images)
    return tuple(
        _annotation(folder, one, f"images[{i}]", marked[one["id"]], classes)
        for i, one in enumerate(images)
    )


def _boxes_by_image(
    document: Any, classes: dict[int, str], images: set[int]
) -> dict[int, list[dict[str, Any]]]:
    marked: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for i, one in enumerate(_table(document, "annotations")):
        place = f"annotations[{i}]"
        image, category = _integer(one, "image_id", place), _integer(one, "category_id", place)
        if image not in images or category not in classes:
            raise _Wrong(f"{place} is of image {image} and category {category}, not both listed")
        box = one.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise _Wrong(f"{place}.bbox must be [left, top, width, height]; got {_shown(box)}")
        marked[image].append(one)
    return marked


def _annotation(
    folder: str,
    image: dict[str, Any],
    place: str,
    marked: list[dict[str, Any]],
    classes: dict[int, str],
) -> Annotation:
    boxes = np.array([one["bbox"] for one in marked], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Annotation(
        name=str(PurePosixPath(folder) / _file_name(image, place)),
        height=_integer(image, "height", place),
        width=_integer(image, "width", place),
        boxes=boxes,
        classes=tuple(classes[one["category_id"]] for one in marked),
        difficult=np.zeros(len(marked), dtype=np.bool_),
        crowd=np.array([one.get("iscrowd", 0) not in (0, False) for one in marked], dtype=np.bool_),
    )


def _folder_of_images(root: Path, file: Path, part: str, images: list[dict[str, Any]]) -> str:
    """Where the first image lies, of the places where images of this form lie."""
    if not images:
        raise _Wrong("it lists no images")
    first = _file_name(images[0], "images[0]")
    year = file.stem.removeprefix("instances_")
    beside = file.parent.relative_to(root).as_posix()
    for folder in dict.fromkeys((year, part, beside, "images", f"images/{year}", ".")):
        if (root / folder / first).is_file():
            return folder
    raise _Wrong(f"{first} is not in {root}/{year}, {root}/images or beside the annotations")


def _file_name(image: dict[str, Any], place: str) -> str:
    """A path inside the folder of the data: a file may not send us elsewhere."""
    name = _string(image, "file_name", place)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise _Wrong(f"{place}.file_name leads out of its folder: {_shown(name)}")
    if any(0xD800 <= ord(one) < 0xE000 for one in name):  # half of a pair, which no path has
        raise _Wrong(f"{place}.file_name is no text: {_shown(name)}")
    return name


def _table(document: Any, key: str) -> list[dict[str, Any]]:
    table = document.get(key) if isinstance(document, dict) else None
    if not isinstance(table, list) or not all(isinstance(one, dict) for one in table):
        raise _Wrong(f"wanted a list of objects under {key!r}")
    return table


def _integer(one: dict[str, Any], key: str, place: str) -> int:
    value = one.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise _Wrong(f"{place}.{key} must be an integer; got {_shown(value)}")
    return value


def _string(one: dict[str, Any], key: str, place: str) -> str:
    value = one.get(key)
    if not isinstance(value, str) or not value:
        raise _Wrong(f"{place}.{key} must be a text; got {_shown(value)}")
    return value


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 2**53 and math.isfinite(value)


def _shown(value: object) -> str:
    return repr(value)[:60]


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
