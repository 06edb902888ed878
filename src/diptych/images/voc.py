"""Boxes in VOC's form: ImageSets/Main/PART.txt, Annotations/NAME.xml, JPEGImages/NAME.jpg."""

import math
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.annotation import Annotation, Annotations
from diptych.images.collection import Skipped
from diptych.images.decode import EXTENSIONS, read_bytes
from diptych.images.xml_tree import RefusedXml, parse_xml

PARTS: Final = Path("ImageSets/Main")
_ANNOTATIONS: Final = Path("Annotations")
_IMAGES: Final = Path("JPEGImages")
_CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")


def is_voc(root: Path) -> bool:
    """Whether a folder is laid out as Pascal VOC's."""
    return all((root / part).is_dir() for part in (PARTS, _ANNOTATIONS, _IMAGES))


def read_voc(root: Path, part: str) -> Annotations:
    """The annotations of the images that a part lists, in its order.

    Raises:
        ImagesError: there is no such part, or it lists no image.
    """
    file = root / PARTS / f"{part}.txt"
    try:
        names = [line.split()[0] for line in read_bytes(file).decode().splitlines() if line.split()]
    except (UnreadableImage, UnicodeDecodeError) as error:
        there = ", ".join(sorted(one.stem for one in (root / PARTS).glob("*.txt"))) or "none"
        raise ImagesError(
            f"{file} cannot be read ({error}). Wanted a list of images, one name a line; the parts "
            f"there are: {there}."
        ) from error
    if not names:
        raise ImagesError(f"{file} lists no images; wanted one name a line.")
    stems = _images_by_stem(root)
    found = [_read_one(root, name, stems) for name in dict.fromkeys(names)]
    return Annotations(
        origin=str(file),
        found=tuple(one for one in found if isinstance(one, Annotation)),
        skipped=tuple(one for one in found if isinstance(one, Skipped)),
    )


def _images_by_stem(root: Path) -> dict[str, list[str]]:
    """File names by what stands before the last dot, which several may share.

    What an annotation calls its file is not used: it often is another file, and could be any.
    """
    files = sorted(one for one in (root / _IMAGES).iterdir() if one.suffix.lower() in EXTENSIONS)
    stems = dict[str, list[str]]()
    for one in files:
        stems.setdefault(one.stem, []).append(one.name)
    return stems


def _read_one(root: Path, name: str, stems: dict[str, list[str]]) -> Annotation | Skipped:
    images = stems.get(name, [])
    if not images:  # also for a name with a slash, which leads elsewhere
        return Skipped(name, f"no image of this name in {_IMAGES}")
    if len(images) > 1:
        return Skipped(name, f"several images of this name: {', '.join(images)}; leave one")
    [image] = images
    try:
        data = read_bytes(root / _ANNOTATIONS / f"{name}.xml")
        return _annotation(str(_IMAGES / image), parse_xml(data))
    except (UnreadableImage, RefusedXml, ValueError) as error:
        return Skipped(image, f"annotation: {error}")


def _annotation(name: str, tree: Element) -> Annotation:
    objects = tree.findall("object")
    corners = [[_number(one, f"bndbox/{key}") for key in _CORNERS] for one in objects]
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    # VOC counts pixels from 1 and names the last one inside.
    boxes[:, :2] -= 1
    return Annotation(
        name=name,
        height=int(_number(tree, "size/height")),
        width=int(_number(tree, "size/width")),
        boxes=boxes,
        classes=tuple(_text(one, "name") for one in objects),
        difficult=np.array([_flag(one, "difficult") for one in objects], dtype=np.bool_),
        crowd=np.zeros(len(objects), dtype=np.bool_),
    )


def _text(tree: Element, path: str) -> str:
    text = (tree.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"no {path} in <{tree.tag}>")
    return text


def _number(tree: Element, path: str) -> float:
    text = _text(tree, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path} is {text[:40]!r}; wanted a number")
    return number


def _flag(tree: Element, path: str) -> bool:
    return (tree.findtext(path) or "0").strip() not in ("0", "")
