"""Arrays of equal-sized images: .npy, .npz and IDX files. Nothing is ever unpickled."""

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import MOST_CHANNELS, ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.channels import Pixels, in_depth, pixel_type
from diptych.images.collection import (
    CompactNames,
    ImageSet,
    beyond,
    choose,
    held_out_config,
    present_classes,
)
from diptych.images.index import checksum
from diptych.images.inventory import Skipped
from diptych.images.pixels import (
    DecodedPixels,
    HeldPixels,
    PixelBatch,
    PixelSource,
    keep_pixels,
)
from diptych.images.splits import LocatedImages, choose_splits, role_of

_DAMAGED: Final = (OSError, ValueError, EOFError, zlib.error)
"""What reading an array raises, packed or not."""
_IMAGE_KEYS: Final = ("images", "x")
_LABEL_KEYS: Final = ("labels", "y")
_UNLABELLED: Final = -1
_IDX_UINT8: Final = 0x08
_LARGEST_ARRAY: Final = 64 * 2**30  # bytes; more than that in a header is refused


def find_npy(path: str, config: ImagesConfig) -> LocatedImages:
    """A .npy file of uint8 or uint16, (images, height, width) or (images, height, width, channels).

    The file is memory-mapped, so that it may be larger than memory.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImagesError(f"{path} is not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ImagesError(f"{path} is an .npz file by its content; give it that ending.")
    return LocatedImages(image_set(array, None, config, path))


def find_npz(path: str, config: ImagesConfig) -> LocatedImages:
    """A .npz file with images and, if it has them, labels and other parts.

    Names that are looked for, in any case: images or x, labels or y, alone or with the name of a
    part before or after, as train_images, x_val or testing_labels.

    Raises:
        ImagesError: it cannot be read, or it is not clear which arrays are meant.
    """
    try:
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as archive:
            return _find_in_arrays(archive, config, path)
    except (*_DAMAGED, zipfile.BadZipFile, RuntimeError) as error:
        raise ImagesError(f"{path} is not a readable .npz file: {error}") from error


def _find_in_arrays(
    archive: Mapping[str, NDArray[np.generic]], config: ImagesConfig, path: str
) -> LocatedImages:
    images, labels, others = _by_part(archive, path)
    if not images:
        raise ImagesError(
            f"{path} holds {', '.join(archive) or 'nothing'}; wanted an array named "
            f"{' or '.join(_IMAGE_KEYS)}, alone or as train_images and test_images."
        )
    if "" in images and any(role_of(name) == "train" for name in images):
        raise ImagesError(
            f"{path} holds {images.pop('')} and {' and '.join(images.values())}; it is not clear "
            "which to learn from. Wanted one of them."
        )
    chosen = choose_splits([name or "train" for name in images], str(path))

    def read(name: str, config: ImagesConfig) -> ImageSet:
        key = name if name in images else ""
        role = role_of(key) or ""
        own = archive[labels[role]] if role in labels else None
        return image_set(archive[images[key]], own, config, path)

    learned = read(chosen.train, config)
    # A limit is on the images to learn from.
    held_out = {name: read(name, held_out_config(config, learned)) for name in chosen.held_out}
    labelled = [name for name, one in held_out.items() if one.labels is not None]
    best = next(iter([*labelled, *held_out]), "")
    unused = [name for name in (*chosen.held_out, *chosen.unused) if name != best]
    return LocatedImages(
        learned,
        [held_out[best]] if best else [],
        train_part=chosen.train if chosen.train in images else "",
        test_part=best,
        left_out=(
            *(
                Skipped(images[name], "an array of a part that is not used", name)
                for name in unused
            ),
            *(Skipped(key, "an array of no name that is looked for") for key in others),
        ),
        remarks=chosen.remarks,
    )


_Keys = dict[str, str]
"""Keys of arrays by the part that they are of."""


def _by_part(archive: Iterable[str], path: str) -> tuple[_Keys, _Keys, list[str]]:
    """Keys of images by the names of their parts, of labels by what those are for, and the rest."""
    images, labels, others = dict[str, str](), dict[str, str](), list[str]()
    for key in archive:
        what, part = _meaning(key)
        if what == "":
            others.append(key)
            continue
        kept, own = (images, part) if what in _IMAGE_KEYS else (labels, role_of(part) or "")
        if own in kept:
            raise ImagesError(
                f"{path} holds {kept[own]} and {key}, which mean the same; wanted one."
            )
        kept[own] = key
    roles = {role_of(part) or "" for part in images}
    return images, labels, others + [key for role, key in labels.items() if role not in roles]


def _meaning(key: str) -> tuple[str, str]:
    """What an array is by its name, and of which part; nothing for a name that is not known.

    >>> _meaning("X_train"), _meaning("testing_labels"), _meaning("images"), _meaning("boxes")
    (('x', 'train'), ('labels', 'testing'), ('images', ''), ('', ''))
    """
    first, _, second = key.partition("_")
    for what, part in ((first, second), (second, first)):
        if what.lower() in (*_IMAGE_KEYS, *_LABEL_KEYS) and (not part or role_of(part)):
            return what.lower(), part
    return "", ""


def is_idx_folder(path: str) -> bool:
    """Whether a folder holds an IDX file of images to learn from."""
    return os.path.isdir(path) and _idx_parts(Path(path)) is not None


def find_idx_folder(path: str, config: ImagesConfig) -> LocatedImages:
    """The IDX files of a folder that are named train and t10k or test."""
    parts = _idx_parts(Path(path))
    assert parts is not None
    learned = _open_idx(parts[0], config)
    if parts[1] is None:
        return LocatedImages(learned)
    held_out = _open_idx(parts[1], held_out_config(config, learned))
    return LocatedImages(learned, [held_out], train_part="train")


def _idx_parts(path: Path) -> tuple[Path, Path | None] | None:
    try:
        files = sorted(file for file in path.iterdir() if "idx3" in file.name and is_idx(file))
    except OSError:  # reported when the folder is walked through
        return None
    train = [file for file in files if file.name.startswith("train")]
    test = [file for file in files if file.name.startswith(("t10k", "test"))]
    return (train[0], test[0] if test else None) if train else None


def find_idx(path: str, config: ImagesConfig) -> LocatedImages:
    """An IDX file of images, as MNIST's; labels are taken from the file beside it.

    ``train-images-idx3-ubyte.gz`` finds ``train-labels-idx1-ubyte.gz``, compressed or not.
    """
    return LocatedImages(_open_idx(Path(path), config))


def _open_idx(path: Path, config: ImagesConfig) -> ImageSet:
    images, labels = read_idx(path), None
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    beside = [path.with_name(name), path.with_name(name.removesuffix(".gz"))]
    for candidate in [*beside, path.with_name(name + ".gz")]:
        if candidate != path and candidate.is_file():
            labels = read_idx(candidate)
            break
    return image_set(images, labels, config, path)


def is_idx(path: str | Path) -> bool:
    """Whether the first bytes are those of an IDX file of uint8 with three or four dimensions."""
    try:
        with _open_maybe_gzip(path) as file:
            magic = file.read(4)
    except _DAMAGED:
        return False
    return magic[:3] == bytes([0, 0, _IDX_UINT8]) and magic[3:] in (b"\x03", b"\x04")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads an IDX file of uint8, plain or gzip, of any number of dimensions.

    Raises:
        ImagesError: it is not such a file, or has fewer or more bytes than its header says.
    """
    try:
        with _open_maybe_gzip(path) as file:
            magic = file.read(4)
            if magic[:3] != bytes([0, 0, _IDX_UINT8]) or len(magic) < 4:
                raise ImagesError(f"{path} is not an IDX file of uint8: it begins {magic!r}.")
            # Python's integers: the product of NumPy's could wrap around and pass the check.
            shape = tuple(int(n) for n in np.frombuffer(file.read(4 * magic[3]), dtype=">u4"))
            size = math.prod(shape)
            if size > _LARGEST_ARRAY or len(shape) != magic[3]:
                raise ImagesError(f"{path} is refused: its header names the shape {shape}.")
            # One byte more shows a file that is too long.
            data = file.read(size + 1)
    except _DAMAGED as error:
        raise ImagesError(f"{path} cannot be read: {error}") from error
    if len(data) != size:
        raise ImagesError(
            f"{path} should hold {size} bytes for shape {shape}, but holds "
            f"{'more' if len(data) > size else len(data)}; it is damaged."
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def image_set(
    array: NDArray[np.generic],
    labels: NDArray[np.generic] | None,
    config: ImagesConfig,
    origin: str | Path,
) -> ImageSet:
    """Checks an array of images and its labels and wraps them.

    Args:
        array: (images, height, width) or (images, height, width, channels), uint8 or uint16; 1 or 3
            channels, or with the colour mode "raw" 1 to 64.
        labels: (images,) or (images, 1), integers; -1 is no label.
        config: limit, colour mode and depth.
        origin: named in errors.

    Raises:
        ImagesError: the type or the shape is another.
    """
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (3, 4) or 0 in array.shape:
        raise ImagesError(
            f"{origin}: wanted uint8 or uint16 images of shape (images, height, width) or (images, "
            f"height, width, channels); got {array.dtype} of shape {array.shape}."
        )
    stack = array[..., None] if array.ndim == 3 else array
    _check_channels(stack.shape[3], config, origin)
    if labels is not None:
        labels = labels.reshape(len(labels), -1)
        if labels.shape != (len(stack), 1) or not np.issubdtype(labels.dtype, np.integer):
            raise ImagesError(
                f"{origin}: wanted one integer label for each of {len(stack)} images; got "
                f"{labels.dtype} of shape {labels.shape}."
            )
    chosen = choose(len(stack), config.limit)
    if len(chosen) < len(stack):
        stack, labels = stack[chosen], labels if labels is None else labels[chosen]
    pixels, remark = _pixels(stack, config)
    numbers, classes = present_classes(*_number(labels))
    return ImageSet(
        pixels=pixels,
        names=CompactNames.of(map(str, chosen.tolist())),
        heights=np.full(len(stack), stack.shape[1], dtype=np.int64),
        widths=np.full(len(stack), stack.shape[2], dtype=np.int64),
        channels=stack.shape[3] if config.color == "raw" else config.channels,
        labels=numbers,
        classes=classes,
        remarks=() if remark is None else (remark,),
        beyond_limit=beyond(len(array), config.limit),
        # Of the pixels as they were given, whatever colour and depth this run makes of them.
        checksums=np.array(
            [checksum(np.ascontiguousarray(image).data.cast("B")) for image in stack],
            dtype=np.uint64,
        ),
    )


def _pixels(stack: NDArray[Any], config: ImagesConfig) -> tuple[PixelSource, str | None]:
    """Images in the form of a run, where they lie if they can stay there; a remark on the rest."""
    if not isinstance(stack, np.memmap) or np.may_share_memory(_in_form(stack[:1], config), stack):
        return HeldPixels(PixelBatch.of_stack(_in_form(stack, config))), None
    # A mapped file may be larger than memory: each image is converted when it is asked for.
    count, height, width, channels = stack.shape
    converted = DecodedPixels(
        np.full(count, height, dtype=np.int64),
        np.full(count, width, dtype=np.int64),
        channels if config.color == "raw" else config.channels,
        pixel_type(config),
        lambda index, room: _in_form(stack[index : index + 1], config)[0],
    )
    return keep_pixels(converted, config, None)


def _in_form(stack: NDArray[Any], config: ImagesConfig) -> Pixels:
    """Channels and depth of a run, in the order of memory; a copy only if that changes them."""
    return np.ascontiguousarray(in_depth(_to_color(stack, config), config))


def _number(labels: NDArray[np.generic] | None) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels as positions in the classes that occur, -1 for none; None if no image has one."""
    if labels is None or not (labels != _UNLABELLED).any():
        return None, ()
    flat = labels.reshape(-1)
    values = np.unique(flat[flat != _UNLABELLED])
    positions = np.searchsorted(values, flat).astype(np.int64)
    return np.where(flat == _UNLABELLED, -1, positions), tuple(str(value) for value in values)


def _check_channels(count: int, config: ImagesConfig, origin: str | Path) -> None:
    if config.color != "raw" and count not in (1, 3):
        raise ImagesError(
            f"{origin}: wanted 1 or 3 channels, last; got {count}. images.color = 'raw' keeps any "
            f"number up to {MOST_CHANNELS}."
        )
    least, most = config.raw_channels or 1, config.raw_channels or MOST_CHANNELS
    if config.color == "raw" and not least <= count <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ImagesError(f"{origin}: wanted {wanted} channels, last; got {count}.")


def _to_color(stack: NDArray[Any], config: ImagesConfig) -> Pixels:
    if config.color == "raw" or stack.shape[3] == config.channels:
        return stack
    if config.channels == 3:
        return np.repeat(stack, 3, axis=3)
    luma = np.rint(stack @ np.array([0.299, 0.587, 0.114]))
    return luma.astype(stack.dtype)[..., None]


def _refuse_bomb(path: str) -> None:
    with zipfile.ZipFile(path) as archive:
        # As the archive names them, without unpacking; zipfile unpacks no more than it names.
        size = sum(member.file_size for member in archive.infolist())
    if size > _LARGEST_ARRAY:
        raise ImagesError(f"{path} is refused: it would unpack to {size} bytes.")


def _open_maybe_gzip(path: str | Path) -> BinaryIO | gzip.GzipFile:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else open(path, "rb")
