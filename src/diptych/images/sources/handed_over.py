"""Data sets that are handed over as Python objects: Hugging Face's, and torch's ``Dataset``.

A run's config names its images by a text. Such an object is named by a hash of what is in it; the
name leads back to the object for as long as the caller keeps it.

An item of a torch ``Dataset`` goes the way of any image file: it is written as a file in memory,
without loss, when it is asked for. So what cannot be used is skipped and listed, colours and depth
are those of the run, and decoded images are kept as those of files are.
"""

import hashlib
import io
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.decode import read_bytes
from diptych.images.collection import CompactNames, spread_indices
from diptych.images.index import checksum
from diptych.images.inventory import Skipped
from diptych.images.listing import Listing
from diptych.images.sources.arrow import (
    find_columns,
    label_items,
    labels_of,
    name_rows,
    paths_of,
    row_image,
)
from diptych.images.splits import LocatedImages, choose_splits

_ROWS: Final = 1000  # looked at together when names are collected


def is_hugging_face(images: object) -> bool:
    """Whether it is one of the classes of ``datasets``; does not import them."""
    module = sys.modules.get("datasets")
    names = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
    return module is not None and isinstance(images, tuple(getattr(module, n) for n in names))


def hugging_face_fingerprint(images: Any) -> str:
    """That of the library: of the data and of all that was done to it.

    Raises:
        ImagesError: its rows have one order only.
    """
    if "Iterable" in type(images).__name__:
        raise ImagesError(
            f"a {type(images).__name__} is read in one order only, and images are drawn in random "
            "order. Load the data set without streaming=True."
        )
    if not isinstance(images, dict):
        return str(images._fingerprint)
    digest = hashlib.sha256()
    for name, part in sorted(images.items()):
        digest.update(f"{name}={part._fingerprint}\n".encode())
    return digest.hexdigest()[:16]


def find_hugging_face(images: Any, name: str, config: ImagesConfig) -> LocatedImages:
    """The images of a data set, or of the parts of several under one name.

    Raises:
        ImagesError: it has no column of images, or it is not clear which part to learn from.
    """
    del name
    parts = (
        {str(key): part for key, part in images.items()}
        if isinstance(images, dict)
        else {"": images}
    )
    chosen = choose_splits(parts, "the data set")
    return LocatedImages(
        list_dataset(parts[chosen.train], config, chosen.train),
        (list_dataset(parts[name], config, name) for name in chosen.held_out),
        train_part=chosen.train,
        left_out=tuple(
            Skipped("", "rows of a part of no known name", name, len(parts[name]))
            for name in chosen.unused
        ),
        remarks=chosen.remarks,
    )


def list_dataset(dataset: Any, config: ImagesConfig, part: str = "") -> Listing:
    """The rows of a ``datasets.Dataset``, in its order."""
    origin = f"the data set {dataset._fingerprint}"
    columns = find_columns(dataset.features.arrow_schema, config.column, origin)
    # As Arrow tables nothing is decoded, whatever format or transform the caller has set.
    images = dataset.select_columns([columns.image]).with_format("arrow")
    paths = list[str | None]()
    if columns.has_path:
        for table in images.iter(_ROWS):
            paths += paths_of(table, columns)
    tables = (
        [dataset.select_columns([columns.label]).with_format("arrow")[:]] if columns.label else []
    )
    labels, classes = labels_of(tables, columns, origin)
    names = name_rows([paths or [None] * len(dataset)], ["row"])

    def read(index: int) -> bytes:
        return row_image(images[index].column(0).chunk(0), columns, read_bytes)

    return Listing(origin, names, read, labels, classes, part)


_WANTED: Final = (
    "a PIL image, an array (height, width[, channels]) or a tensor (channels, height, width), "
    "alone or as the first of a tuple (image, label, ...)"
)
_READ_TWICE: Final = 4  # items, to see that they do not change


@dataclass
class _Contents:
    """What one pass over a data set has shown.

    Attributes:
        fingerprint: of all images.
        stamps: int64 (images, 2), from the pixels of each image.
        labels: text or whole number of each image; None where there is none, NaN for what names no
            class.
        lock: held while an item is asked for; few data sets may be used by several threads.
    """

    fingerprint: str
    stamps: NDArray[np.int64]
    labels: list[Any]
    lock: threading.Lock = field(default_factory=threading.Lock)


_contents: dict[int, _Contents] = {}  # by id, for as long as the data set lives


def is_torch_dataset(images: object) -> bool:
    """Whether it is one of torch's data sets."""
    return isinstance(images, Dataset)


def torch_dataset_fingerprint(dataset: Any) -> str:
    """A hash of all pixels; every item is read for it, once for each object.

    Raises:
        ImagesError: the data set has no length or order, or gives another image each time.
    """
    return _contents_of(dataset).fingerprint


def find_torch_dataset(dataset: Any, name: str, config: ImagesConfig) -> LocatedImages:
    """Its images, all to learn from.

    Labels are taken from its tuples, names of classes from its attribute ``classes`` if it has one.
    """
    contents = _contents_of(dataset)
    labels, classes = label_items(contents.labels, getattr(dataset, "classes", None), name)

    def read(index: int) -> bytes:
        with contents.lock:
            image, _ = _item(dataset, index)
            return as_file(image, config.bits)

    def stamp(index: int) -> tuple[int, int]:
        first, second = contents.stamps[index].tolist()
        return first, second

    names = CompactNames.of(map(str, range(len(contents.labels))))
    return LocatedImages(Listing(name, names, read, labels, classes, stamp=stamp))


def as_file(image: Any, bits: int) -> bytes:
    """An image as the bytes of a file that holds it without loss.

    Args:
        image: a PIL image, an array (height, width[, channels]) or a tensor (channels, height,
            width) or (height, width); uint8, uint16, or floats in 0 .. 1.
        bits: to which floats are rounded, 8 or 16.

    Raises:
        UnreadableImage: it is none of these, or cannot be decoded.
    """
    try:
        return _as_file(image, bits)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow decodes only now what it opened before
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UnreadableImage(f"damaged: {line}") from error


def _as_file(image: Any, bits: int) -> bytes:
    if isinstance(image, Image.Image):
        return _pil_file(image, bits)
    if isinstance(image, Tensor):
        # float() as NumPy has no bfloat16.
        array = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
        return _array_file(array.transpose(1, 2, 0) if array.ndim == 3 else array, bits)
    if isinstance(image, np.ndarray):
        return _array_file(image, bits)
    raise UnreadableImage(f"a {type(image).__name__}; wanted {_WANTED}")


def _contents_of(dataset: Any) -> _Contents:
    if id(dataset) not in _contents:
        found = _read_all(dataset)
        # Another object may get the same id once this one is gone.
        weakref.finalize(dataset, _contents.pop, id(dataset), None)
        _contents[id(dataset)] = found
    return _contents[id(dataset)]


def _read_all(dataset: Any) -> _Contents:
    count = _length(dataset)
    stamps, labels = np.zeros((count, 2), dtype=np.int64), list[Any]()
    for index in range(count):
        stamps[index], label = _stamp_and_label(dataset, index)
        labels.append(label)
    for index in spread_indices(count, _READ_TWICE).tolist():
        if not np.array_equal(_stamp_and_label(dataset, index)[0], stamps[index]):
            raise ImagesError(
                f"the {type(dataset).__name__} gives another image each time that its item {index} "
                "is asked for. Leave random transforms out: views are made here, by the settings "
                "of the run."
            )
    return _Contents(hashlib.sha256(stamps.tobytes()).hexdigest()[:16], stamps, labels)


def _length(dataset: Any) -> int:
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise ImagesError(
            f"a {name} is read in one order only, and images are drawn in random order. Wanted a "
            "torch.utils.data.Dataset with __len__ and __getitem__."
        )
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise ImagesError(
            f"the {name} has no length ({error}); wanted a torch.utils.data.Dataset with __len__ "
            "and __getitem__."
        ) from error


def _stamp_and_label(dataset: Any, index: int) -> tuple[tuple[int, int], Any]:
    """Two numbers that follow from the pixels, the second as if it were a time long ago."""
    try:
        image, label = _item(dataset, index)
        # At 16 bits whatever the run has: what a data set holds does not depend on a setting.
        first, second = checksum(as_file(image, 16))
    except UnreadableImage as error:
        label = None
        first, second = checksum(str(error).encode(errors="surrogateescape"))
    # The first fits into int64 by this; the second, as nanoseconds, lies before 1973.
    return (first >> 1, second >> 8), label


def _item(dataset: Any, index: int) -> tuple[Any, Any]:
    """The image and the label of an item; None where it has no label, NaN for another kind."""
    try:
        item = dataset[index]
    except Exception as error:  # it is the user's own code
        raise UnreadableImage(f"the data set raised {type(error).__name__}: {error}") from error
    if not isinstance(item, tuple | list):
        return item, None
    label = item[1] if len(item) > 1 else None
    if isinstance(label, Tensor | np.ndarray | np.generic) and math.prod(label.shape) == 1:
        label = label.item()
    # Labels are kept as long as the data set: a mask of each image would fill the memory.
    names_a_class = label is None or isinstance(label, str | int)
    return (item[0] if item else None), label if names_a_class else math.nan


def _pil_file(image: Image.Image, bits: int) -> bytes:
    plain = image.mode in ("L", "RGB", "I", "F") or image.mode.startswith("I;16")
    if plain and "transparency" not in image.info:
        array = np.asarray(image)
        if image.mode == "I" and array.min() >= 0 and array.max() < 2**16:  # widened 16 bits
            array = array.astype(np.uint16)
        return _array_file(array, bits)
    written = {"CMYK": "TIFF"}.get(image.mode, "PNG")
    if image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode in ("RGBX", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    out = io.BytesIO()
    image.save(out, written, **({"compress_level": 1} if written == "PNG" else {}))
    return out.getvalue()


def _array_file(array: NDArray[Any], bits: int) -> bytes:
    """A PGM, a PPM or, of other channels than 1 or 3, a TIFF; nothing is compressed."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UnreadableImage(f"an image of shape {array.shape}; wanted {_WANTED}")
    numbers = _whole_numbers(array, bits).reshape(*array.shape[:2], -1)
    height, width, channels = numbers.shape
    if channels in (1, 3):
        kind, white = 5 if channels == 1 else 6, np.iinfo(numbers.dtype).max
        header = f"P{kind}\n{width} {height}\n{white}\n".encode()
        # Netpbm's numbers of two bytes are big-endian.
        return header + numbers.astype(numbers.dtype.newbyteorder(">")).tobytes()
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, numbers, photometric="minisblack", planarconfig="contig", metadata=None)
    return out.getvalue()


def _whole_numbers(array: NDArray[Any], bits: int) -> NDArray[Any]:
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind != "f":
        raise UnreadableImage(
            f"numbers of type {array.dtype}; wanted uint8, uint16, or floats in 0 .. 1"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # nor where they are no numbers
        raise UnreadableImage(
            f"floats from {low:g} to {high:g}; wanted 0 .. 1. Leave a normalisation out: views "
            "are normalised by views.pixel_mean and views.pixel_std"
        )
    white = 2**bits - 1
    return np.rint(array * white).astype(np.uint8 if bits == 8 else np.uint16)


class ObjectKind(NamedTuple):
    """A kind of object that may be handed over.

    Attributes:
        what: it is, in errors.
        fits: whether an object is of this kind.
        fingerprint: of its content; raises ImagesError where it cannot be used.
        find: the images in it, given its name as well.
    """

    what: str
    fits: Callable[[object], bool]
    fingerprint: Callable[[Any], str]
    find: Callable[[Any, str, ImagesConfig], LocatedImages]


OBJECT_KINDS: Final = {
    "datasets:": ObjectKind(
        "Hugging Face data set",
        is_hugging_face,
        hugging_face_fingerprint,
        find_hugging_face,
    ),
    "torch:": ObjectKind(
        "torch.utils.data.Dataset",
        is_torch_dataset,
        torch_dataset_fingerprint,
        find_torch_dataset,
    ),
}
"""By what their names begin with."""

# Not the objects themselves: a finished run should not keep a data set alive.
_handed_over: WeakValueDictionary[str, Any] = WeakValueDictionary()


def path_of(images: Any) -> str:
    """What stands in a config for images: a path as it is, an object by its fingerprint.

    Raises:
        ImagesError: it is neither, or its images cannot be drawn in random order.
    """
    if isinstance(images, str | os.PathLike):
        return os.fspath(images)
    for prefix, kind in OBJECT_KINDS.items():
        if kind.fits(images):
            name = prefix + kind.fingerprint(images)
            _handed_over[name] = images
            return name
    raise ImagesError(
        f"got a {type(images).__name__} for images; wanted a path, a Hugging Face data set, or a "
        "torch.utils.data.Dataset. Arrays are given as a .npy or .npz file."
    )


def is_handed_over(name: str) -> bool:
    """Whether it is a name that ``path_of`` gives to objects."""
    return name.startswith(tuple(OBJECT_KINDS))


def find_handed_over(name: str, config: ImagesConfig) -> LocatedImages:
    """The images in the object that ``path_of`` gave this name.

    Raises:
        ImagesError: there is no such object any more, or it has no images.
    """
    kind = next(kind for prefix, kind in OBJECT_KINDS.items() if name.startswith(prefix))
    images = _handed_over.get(name)
    if images is None:
        raise ImagesError(
            f"{name} is a {kind.what} that was handed over in Python and is not at hand now. Load "
            "the same one and hand it over again: diptych.pretrain(dataset, out=..., resume=True), "
            "or diptych.evaluate(run, train=dataset)."
        )
    return kind.find(images, name, config)
