"""Images with boxes around objects, to train and measure detectors on: VOC's XML or COCO's JSON.

Annotations are hostile until checked. A box that reaches over the edge is clipped, one without area
is left out; an image whose annotation cannot be meant for it is skipped and listed.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import CompactNames, ImageSet, refuse_if_too_many
from diptych.images.inventory import Skipped
from diptych.images.listing import Progress, ignore_progress, open_listing
from diptych.images.sources.annotations import Annotation, Annotations, is_voc, read_coco, read_voc
from diptych.images.sources.image_files import list_files


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image.

    Attributes:
        corners: float32 (boxes, 4), left, top, right, bottom in pixels, from 0, inside the image;
            right and bottom are one past the last pixel.
        labels: int64 (boxes,), positions in the set's ``classes``.
        difficult: bool (boxes,), VOC's mark: neither trained on nor counted.
        crowd: bool (boxes,), COCO's mark of many objects in one box: as difficult ones.
    """

    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def plain(self) -> NDArray[np.bool_]:
        """(boxes,), those that count."""
        return ~(self.difficult | self.crowd)


@dataclass(frozen=True)
class BoxedImages:
    """Images and the boxes in them, in the same order.

    Attributes:
        images: with names, heights and widths; its ``skipped`` lists the images left out.
        boxes: one for each image; an image may have none.
        classes: their names.
        remarks: sentences on what was changed.
    """

    images: ImageSet
    boxes: tuple[Boxes, ...]
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)


def open_boxes(
    path: str | Path,
    parts: Sequence[str],
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress = ignore_progress,
) -> list[BoxedImages]:
    """Opens some parts of a data set, as ``train`` and ``test``, with the classes of all of them.

    Args:
        path: a folder with VOC's layout (JPEGImages, Annotations, ImageSets/Main/PART.txt), or with
            COCO's JSON (annotations/instances_PART*.json, or PART/_annotations.coco.json).
        parts: their names.
        config: limits, colour mode and the cache; its path is not used.
        executor: its threads decode.
        on_progress: called with the images read and their total.

    Raises:
        ImagesError: there is no such part, it is not in either form, or too many of its images
            cannot be used.
    """
    root = Path(path)
    if not root.is_dir():
        raise ImagesError(
            f"{root} is no folder. Wanted one with JPEGImages, Annotations and ImageSets/Main "
            "(Pascal VOC), or with annotations/instances_train.json or the like (COCO)."
        )
    read = read_voc if is_voc(root) else read_coco
    annotated = [read(root, part) for part in parts]
    for one in annotated:
        refuse_if_too_many(one.skipped, one.total, config, one.origin)
    names = {name for part in annotated for image in part.found for name in image.classes}
    if not names:
        raise ImagesError(f"{root}: there is not a single box in {' and '.join(parts)}.")
    classes = tuple(sorted(names))
    opened = [_opened(root, part, classes, config, executor, on_progress) for part in annotated]
    named = list[BoxedImages]()
    for found, part in zip(opened, parts, strict=True):
        skipped = tuple(replace(one, part=part) for one in found.images.skipped)
        named.append(replace(found, images=replace(found.images, skipped=skipped)))
    return named


def _opened(
    root: Path,
    annotated: Annotations,
    classes: tuple[str, ...],
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress,
) -> BoxedImages:
    listing = list_files(
        root, CompactNames.of(one.name for one in annotated.found), origin=annotated.origin
    )
    # Boxes are in the coordinates of the images in full.
    images = open_listing(listing, replace(config, decoded_side=None), executor, on_progress)
    by_name = {one.name: one for one in annotated.found}
    clipped = empty = 0
    boxes, kept, skipped = list[Boxes](), list[int](), [*annotated.skipped, *images.skipped]
    for index, name in enumerate(images.names):
        size = int(images.heights[index]), int(images.widths[index])
        checked = check_boxes(by_name[name], size, classes)
        if isinstance(checked, Skipped):
            skipped.append(checked)
            continue
        boxes.append(checked.boxes)
        kept.append(index)
        clipped, empty = clipped + checked.clipped, empty + checked.empty
    refuse_if_too_many(skipped, annotated.total, config, annotated.origin)
    images = images.select(np.array(kept, dtype=np.int64))
    return BoxedImages(
        images=replace(images, skipped=tuple(skipped)),
        boxes=tuple(boxes),
        classes=classes,
        remarks=(*images.remarks, *_remarks(annotated.origin, clipped, empty, len(skipped))),
    )


@dataclass(frozen=True)
class _CheckedBoxes:
    """Boxes that lie in their image, and what was done to them.

    Attributes:
        boxes: the good ones.
        clipped: how many reached over the edge.
        empty: how many had no area and are left out.
    """

    boxes: Boxes
    clipped: int
    empty: int


def check_boxes(
    annotation: Annotation, size: tuple[int, int], classes: Sequence[str]
) -> _CheckedBoxes | Skipped:
    """Compares an annotation with its image.

    Args:
        annotation: what the file says.
        size: height and width of the decoded image.
        classes: all names of classes; a label is a position in them.

    Returns:
        The boxes, or why the image is skipped: it has another size than its annotation says, or a
        box that is inside out or altogether outside.
    """
    height, width = size
    if (annotation.height, annotation.width) != size:
        return Skipped(
            annotation.name,
            f"its annotation is of an image of {annotation.width} x {annotation.height} pixels; it "
            f"has {width} x {height}",
        )
    given = annotation.boxes
    inside = np.clip(given, 0, [width, height, width, height]).astype(np.float32)
    # By less than a pixel it is a box without area, which is common, and no reason to skip.
    turned = (given[:, 2:] < given[:, :2] - 1).any(axis=1)
    outside = (given[:, 2:] < 0).any(axis=1) | (given[:, :2] > [width, height]).any(axis=1)
    for wrong, what in ((turned, "is inside out"), (outside, "lies outside of the image")):
        if wrong.any():
            corners = ", ".join(f"{value:g}" for value in given[wrong.argmax()])
            return Skipped(annotation.name, f"the box {corners} {what}")
    good = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    position = {name: index for index, name in enumerate(classes)}
    labels = np.array([position[name] for name in annotation.classes], dtype=np.int64)
    boxes = Boxes(inside[good], labels[good], annotation.difficult[good], annotation.crowd[good])
    # Not just unequal: float32 rounds the corners that are given.
    clipped = (np.abs(inside - given) > 1e-3).any(axis=1) & good
    return _CheckedBoxes(boxes, int(clipped.sum()), int((~good).sum()))


def _remarks(origin: str, clipped: int, empty: int, skipped: int) -> list[str]:
    remarks = []
    if clipped:
        remarks.append(f"{clipped} boxes in {origin} reached over the edge and are clipped.")
    if empty:
        remarks.append(f"{empty} boxes in {origin} have no area and are left out.")
    if skipped:
        remarks.append(f"{skipped} images in {origin} are skipped.")
    return remarks
