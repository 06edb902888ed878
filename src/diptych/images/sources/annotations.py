"""Files that say where objects are in images: Pascal VOC's XML and COCO's JSON.

They are hostile until checked: here only that there are numbers and texts in the right places, and
that no name leads out of the folder of the data.
"""

import glob
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
from defusedxml.common import DTDForbidden
from defusedxml.ElementTree import DefusedXMLParser
from numpy.typing import NDArray

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.decode import EXTENSIONS, read_bytes
from diptych.images.inventory import Skipped


@dataclass(frozen=True)
class Annotation:
    """The boxes that a file gives for one image; nothing of it is checked but that it is numbers.

    Attributes:
        name: of the image file, relative to the data's folder.
        height: of the image in pixels, as the file says.
        width: of the image in pixels, as the file says.
        boxes: float64 (boxes, 4), left, top, right, bottom in pixels, from 0, the right and the
            bottom one past the last pixel.
        classes: the name of each box's class.
        difficult: bool (boxes,).
        crowd: bool (boxes,).
    """

    name: str
    height: int
    width: int
    boxes: NDArray[np.float64]
    classes: tuple[str, ...]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class Annotations:
    """The annotations of one part of a data set.

    Attributes:
        origin: the file or folder that they come from, named in errors.
        found: one for each image.
        skipped: the images whose annotation cannot be used.
    """

    origin: str
    found: tuple[Annotation, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def total(self) -> int:
        """Number of images, good and skipped."""
        return len(self.found) + len(self.skipped)


PARTS: Final = Path("ImageSets/Main")
_ANNOTATIONS: Final = Path("Annotations")
_IMAGES: Final = Path("JPEGImages")
_CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")
MOST_XML_BYTES: Final = 16 * 2**20
_DEEPEST_XML: Final = 32


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
    found = [_voc_image(root, name, stems) for name in dict.fromkeys(names)]
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


def _voc_image(root: Path, name: str, stems: dict[str, list[str]]) -> Annotation | Skipped:
    images = stems.get(name, [])
    if not images:  # also for a name with a slash, which leads elsewhere
        return Skipped(name, f"no image of this name in {_IMAGES}")
    if len(images) > 1:
        return Skipped(name, f"several images of this name: {', '.join(images)}; leave one")
    [image] = images
    try:
        data = read_bytes(root / _ANNOTATIONS / f"{name}.xml")
        return _voc_annotation(str(_IMAGES / image), parse_xml(data))
    except (UnreadableImage, RefusedXml, ValueError) as error:
        return Skipped(image, f"annotation: {error}")


def _voc_annotation(name: str, tree: Element) -> Annotation:
    objects = tree.findall("object")
    corners = [[_number_at(one, f"bndbox/{key}") for key in _CORNERS] for one in objects]
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    # VOC counts pixels from 1 and names the last one inside.
    boxes[:, :2] -= 1
    return Annotation(
        name=name,
        height=int(_number_at(tree, "size/height")),
        width=int(_number_at(tree, "size/width")),
        boxes=boxes,
        classes=tuple(_text_at(one, "name") for one in objects),
        difficult=np.array([_flag(one, "difficult") for one in objects], dtype=np.bool_),
        crowd=np.zeros(len(objects), dtype=np.bool_),
    )


def _text_at(tree: Element, path: str) -> str:
    text = (tree.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"no {path} in <{tree.tag}>")
    return text


def _number_at(tree: Element, path: str) -> float:
    text = _text_at(tree, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path} is {text[:40]!r}; wanted a number")
    return number


def _flag(tree: Element, path: str) -> bool:
    return (tree.findtext(path) or "0").strip() not in ("0", "")


class RefusedXml(ValueError):
    """The text is no XML, or XML that asks for more than to be read."""


def parse_xml(data: bytes) -> Element:
    """Parses a small document.

    Entities are what makes XML dangerous (they can grow without bound, or name other files), and
    they can only be declared in a document type: a document that has one is refused.

    Raises:
        RefusedXml: with the reason in a few words.
    """
    if len(data) > MOST_XML_BYTES:
        raise RefusedXml(f"{len(data):,} bytes of XML, more than {MOST_XML_BYTES:,}")
    parser = DefusedXMLParser(target=_BoundedBuilder(), forbid_dtd=True)
    try:
        parser.feed(data)
        tree: Element = parser.close()
        return tree
    except RefusedXml:
        raise
    except DTDForbidden as error:
        raise RefusedXml("XML with a document type, which may define entities") from error
    except Exception as error:  # of an unknown encoding expat raises what its codec does
        raise RefusedXml(f"no XML: {error}") from error


class _BoundedBuilder(TreeBuilder):
    """A tree of bounded depth: one that is very deep overflows the stack when it is freed."""

    depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self.depth += 1
        if self.depth > _DEEPEST_XML:
            raise RefusedXml(f"elements nested deeper than {_DEEPEST_XML}")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


_BESIDE: Final = r"_annotations\.coco\.json"
_COCO_FILES: Final = (
    "annotations/instances_{part}*.json",  # COCO's own
    "annotations/{part}.json",
    "{part}/_annotations.coco.json",
    "{part}.json",
)


def find_coco(root: Path, part: str) -> Path | None:
    """The JSON file of a part; of several years the last."""
    for pattern in _COCO_FILES:
        found = sorted(root.glob(pattern.format(part=glob.escape(part))))
        # Not those of parts whose names begin alike, as trainval and train; a year before others.
        for rest in (r"(?:[-_]?\d{4})?", r"(?![A-Za-z]).*"):
            whole = re.compile(rf"(?:instances_)?{re.escape(part)}{rest}\.json|{_BESIDE}")
            if own := [file for file in found if whole.fullmatch(file.name)]:
                return own[-1]
    return None


def read_coco(root: Path, part: str) -> Annotations:
    """The annotations of a part, in the order of its images.

    Raises:
        ImagesError: there is no such part, or the file is not in COCO's form.
    """
    file = find_coco(root, part)
    if file is None:
        wanted = ", ".join(pattern.format(part=part) for pattern in _COCO_FILES)
        raise ImagesError(f"{root} has no part {part!r} in COCO's form. Wanted one of {wanted}.")
    try:
        with open(file, "rb") as opened:
            document = json.load(opened, parse_constant=_refuse_constant)
        return Annotations(str(file), _annotations(root, file, part, document))
    except _BadCoco as error:
        raise ImagesError(f"{file}: {error}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ImagesError(f"{file} cannot be read as JSON ({error}).") from error


class _BadCoco(Exception):
    """What is wrong with a document, in a few words."""


def _annotations(root: Path, file: Path, part: str, document: Any) -> tuple[Annotation, ...]:
    classes = {
        _integer(one, "id", f"categories[{i}]"): _string(one, "name", f"categories[{i}]")
        for i, one in enumerate(_table(document, "categories"))
    }
    images = _table(document, "images")
    for key in ("id", "file_name"):
        # As text: a hostile value may be a list, which no set takes.
        if len({str(one.get(key)) for one in images}) < len(images):
            raise _BadCoco(f"two images have the same {key}")
    marked = _boxes_by_image(document, classes, {_integer(one, "id", "images") for one in images})
    folder = _folder_of_images(root, file, part, images)
    return tuple(
        _coco_annotation(folder, one, f"images[{i}]", marked[one["id"]], classes)
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
            raise _BadCoco(f"{place} is of image {image} and category {category}, not both listed")
        box = one.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise _BadCoco(f"{place}.bbox must be [left, top, width, height]; got {_shown(box)}")
        marked[image].append(one)
    return marked


def _coco_annotation(
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
        raise _BadCoco("it lists no images")
    first = _file_name(images[0], "images[0]")
    year = file.stem.removeprefix("instances_")
    beside = file.parent.relative_to(root).as_posix()
    for folder in dict.fromkeys((year, part, beside, "images", f"images/{year}", ".")):
        if (root / folder / first).is_file():
            return folder
    raise _BadCoco(f"{first} is not in {root}/{year}, {root}/images or beside the annotations")


def _file_name(image: dict[str, Any], place: str) -> str:
    """A path inside the folder of the data: a file may not send us elsewhere."""
    name = _string(image, "file_name", place)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise _BadCoco(f"{place}.file_name leads out of its folder: {_shown(name)}")
    if any(0xD800 <= ord(one) < 0xE000 for one in name):  # half of a pair, which no path has
        raise _BadCoco(f"{place}.file_name is no text: {_shown(name)}")
    return name


def _table(document: Any, key: str) -> list[dict[str, Any]]:
    table = document.get(key) if isinstance(document, dict) else None
    if not isinstance(table, list) or not all(isinstance(one, dict) for one in table):
        raise _BadCoco(f"wanted a list of objects under {key!r}")
    return table


def _integer(one: dict[str, Any], key: str, place: str) -> int:
    value = one.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise _BadCoco(f"{place}.{key} must be an integer; got {_shown(value)}")
    return value


def _string(one: dict[str, Any], key: str, place: str) -> str:
    value = one.get(key)
    if not isinstance(value, str) or not value:
        raise _BadCoco(f"{place}.{key} must be a text; got {_shown(value)}")
    return value


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # The bound first: isfinite raises for an integer that no double holds.
    return abs(value) < 2**53 and math.isfinite(value)


def _shown(value: object) -> str:
    return repr(value)[:60]


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
