"""Data sets of known form: the built-in photographs, CIFAR, and those of torchvision by name.

Nothing is downloaded. Of torchvision only those are opened whose files hold numbers or encoded
images: some of its readers unpickle, and a pickle runs whatever its author wrote.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.channels import Pixels
from diptych.images.codecs.decode import decode_file
from diptych.images.collection import CompactNames, ImageSet, held_out_config
from diptych.images.listing import Listing
from diptych.images.sources.arrays import image_set
from diptych.images.sources.arrow import label_items
from diptych.images.sources.image_files import list_files
from diptych.images.splits import LocatedImages

PHOTOGRAPHS_NAME: Final = "photographs"
SIDE_PIXELS: Final = 32
CELL_PIXELS: Final = 48
TRAIN_PATCHES: Final = 320  # of each photograph
TEST_PATCHES: Final = 80
PHOTOGRAPHS: Final = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "moon": "skimage/data/moon.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
}
"""Name of each class and the file it is cut from: package, then path inside it."""


def is_photographs(path: str) -> bool:
    """Whether it is their name, and no file or folder is called so."""
    return path == PHOTOGRAPHS_NAME and not Path(path).exists()


def find_photographs(path: str, config: ImagesConfig) -> LocatedImages:
    """Cuts the patches, always the same ones, and labels each by its photograph."""
    del path
    train, test = list[Pixels](), list[Pixels]()
    # One generator for all: another order of photographs would cut other patches.
    generator = np.random.Generator(np.random.Philox(0))
    # Some are gray: of their own channels they would not agree. None is reduced: a patch is an
    # image of its own, and the same one for every run.
    color: Literal["rgb", "gray"] = "gray" if config.color == "gray" else "rgb"
    alike = replace(config, color=color, raw_channels=None, bits=8, decoded_side=None)
    for location in PHOTOGRAPHS.values():
        photograph = decode_file(_file(location), alike)
        train_cells, test_cells = _cells(photograph, generator)
        train.append(_patches(photograph, train_cells, TRAIN_PATCHES, generator))
        test.append(_patches(photograph, test_cells, TEST_PATCHES, generator))
    learned, held_out = _labelled(train, config), _labelled(test, replace(config, limit=None))
    return LocatedImages(
        learned,
        [held_out],
        description=f"{len(learned):,} patches of {len(PHOTOGRAPHS)} built-in photographs to learn "
        f"from and {len(held_out):,} held out, {SIDE_PIXELS} x {SIDE_PIXELS} pixels.",
        train_part="train",
        test_part="test",
    )


def whole_photographs() -> list[Pixels]:
    """The photographs that the patches are cut from, each (height, width, 3)."""
    return [decode_file(_file(location), ImagesConfig()) for location in PHOTOGRAPHS.values()]


def _labelled(patches: list[Pixels], config: ImagesConfig) -> ImageSet:
    labels = np.repeat(np.arange(len(patches)), [len(some) for some in patches])
    found = image_set(np.concatenate(patches), labels, config, PHOTOGRAPHS_NAME)
    names = tuple(PHOTOGRAPHS)  # of which a limit may leave some out
    return replace(found, classes=tuple(names[int(number)] for number in found.classes))


def _file(location: str) -> Path:
    package, _, inside = location.partition("/")
    found = find_spec(package)  # where it lies, without the seconds that importing it takes
    if found is None or found.origin is None:
        raise ImagesError(
            f"the built-in photographs lie in the package {package}, which is missing. Install "
            "diptych anew with its dependencies."
        )
    return Path(found.origin).parent / inside


def _cells(
    photograph: Pixels, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Top left corners of the training and the test cells, (cells, 2) each."""
    rows, columns = photograph.shape[0] // CELL_PIXELS, photograph.shape[1] // CELL_PIXELS
    # Patches lie within cells, and cells do not overlap: no held-out pixel is learned from.
    corners = np.argwhere(np.ones((rows, columns))) * CELL_PIXELS
    shuffled = generator.permutation(corners)
    held_out = len(corners) // 4
    return shuffled[held_out:], shuffled[:held_out]


def _patches(
    photograph: Pixels,
    cells: NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
) -> Pixels:
    """Patches at random places in the cells, each cell used about equally often."""
    shifts = generator.integers(0, CELL_PIXELS - SIDE_PIXELS + 1, size=(count, 2))
    corners = cells[np.arange(count) % len(cells)] + shifts
    return np.stack(
        [photograph[y : y + SIDE_PIXELS, x : x + SIDE_PIXELS] for y, x in corners.tolist()]
    )


PREFIX: Final = "torchvision:"
"""Begins the name of such a data set: ``torchvision:NAME`` or ``torchvision:NAME:ROOT``."""

_TRAIN_FLAG: Final = ({"train": True}, {"train": False})
_TRAIN_TEST: Final = ({"split": "train"}, {"split": "test"})
_TRAIN_VAL: Final = ({"split": "train"}, {"split": "val"})

_ARRAYS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "EMNIST": tuple({"split": "balanced", **part} for part in _TRAIN_FLAG),
    "FashionMNIST": _TRAIN_FLAG,
    "KMNIST": _TRAIN_FLAG,
    "MNIST": _TRAIN_FLAG,
    "QMNIST": _TRAIN_FLAG,
    "SEMEION": ({},),
    "STL10": _TRAIN_TEST,
    "SVHN": _TRAIN_TEST,
    "USPS": _TRAIN_FLAG,
}
"""Held as arrays: arguments of the part to learn from and, if there is one, of the held-out one."""

_FILES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "CLEVRClassification": _TRAIN_VAL,
    "Country211": _TRAIN_TEST,
    "DTD": _TRAIN_TEST,
    "EuroSAT": ({},),
    "FGVCAircraft": ({"split": "trainval"}, {"split": "test"}),
    "Flowers102": _TRAIN_TEST,
    "Food101": _TRAIN_TEST,
    "Imagenette": _TRAIN_VAL,
    "LFWPeople": ({"split": "train"}, {"split": "test"}),
    "Omniglot": ({"background": True}, {"background": False}),
    "RenderedSST2": _TRAIN_TEST,
    "SUN397": ({},),
    "StanfordCars": _TRAIN_TEST,
}
"""Held as image files."""

_INSTEAD: Final = {
    "CIFAR10": "fetch the binary version, and give its folder cifar-10-batches-bin",
    "CIFAR100": "fetch the binary version, and give its folder cifar-100-binary",
    "LSUN": "export its images as files, and give their folder",
    "LSUNClass": "export its images as files, and give their folder",
    "ImageNet": "give its folder of class folders",
    "PhotoTour": "give a folder of its images",
}
"""What to do where torchvision would unpickle."""


def is_torchvision(path: str) -> bool:
    """Whether it is a name of such a data set."""
    return path.startswith(PREFIX)


def absolute_name(name: str) -> str:
    """The same with an absolute path, so that it means the same from any folder."""
    kind, root = split_name(name)
    return f"{PREFIX}{kind}" + (f":{root.expanduser().absolute()}" if root is not None else "")


def split_name(name: str) -> tuple[str, Path | None]:
    """The data set that a name asks for and, where it says so, the folder that it lies in.

    >>> split_name("torchvision:MNIST:/data")
    ('MNIST', PosixPath('/data'))
    """
    kind, _, root = name.removeprefix(PREFIX).partition(":")
    return kind, Path(root) if root else None


def find_torchvision(name: str, config: ImagesConfig) -> LocatedImages:
    """What ``torchvision:NAME`` or ``torchvision:NAME:ROOT`` holds; nothing is downloaded.

    Raises:
        ImagesError: it is not known, not there, or would be unpickled.
    """
    kind, root = split_name(name)
    usual = Path(os.environ.get("TORCHVISION_ROOT") or "~/.cache/torchvision")
    where = (root or usual).expanduser()
    if kind in _INSTEAD:
        raise ImagesError(
            f"{name} is not opened: torchvision unpickles its files, and a pickle may run anything."
            f" Instead, {_INSTEAD[kind]}."
        )
    if kind in _FILES:
        train, *rest = (_list(kind, where, part) for part in _FILES[kind])
        return LocatedImages(train, rest, train_part=train.part)
    if kind in _ARRAYS:
        learned = _arrays(_construct(kind, where, _ARRAYS[kind][0]), config, name)
        if len(_ARRAYS[kind]) == 1:
            return LocatedImages(learned)
        alike = held_out_config(config, learned)
        held_out = _arrays(_construct(kind, where, _ARRAYS[kind][1]), alike, name)
        return LocatedImages(learned, [held_out], train_part="train")
    raise ImagesError(
        f"{name}: wanted one of {', '.join(sorted({**_ARRAYS, **_FILES}))}. Of any other data set, "
        "give the folder of its images."
    )


def _construct(kind: str, root: Path, part: dict[str, Any], **more: Any) -> Any:
    from torchvision import datasets

    made: Callable[..., Any] = getattr(datasets, kind)
    _refuse_processed(root / kind / "processed")
    if "loader" in more and "loader" not in inspect.signature(made).parameters:
        raise ImagesError(f"torchvision:{kind} needs a newer torchvision. Update it.")
    try:
        return made(str(root), download=False, **part, **more)
    except Exception as error:  # each of them raises whatever it likes when files are missing
        given = "".join(f", {key}={value!r}" for key, value in part.items())
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ImagesError(
            f'torchvision:{kind} cannot be opened in {root}: {line} Fetch it by: python -c "from '
            f'torchvision.datasets import {kind}; {kind}({str(root)!r}{given}, download=True)" or '
            f"give another place as torchvision:{kind}:ROOT."
        ) from error


def _refuse_processed(folder: Path) -> None:
    """Early versions of torchvision left tensors there, which it would unpickle."""
    if folder.is_dir() and any(folder.glob("*.pt")):
        raise ImagesError(
            f"{folder} holds .pt files of an old torchvision, which it would unpickle. Remove that "
            "folder; the files in raw beside it are enough."
        )


def _arrays(dataset: Any, config: ImagesConfig, origin: str) -> ImageSet:
    stack = np.asarray(dataset.data)
    if stack.ndim == 4 and stack.shape[1] in (1, 3):
        stack = stack.transpose(0, 2, 3, 1)
    values = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    values = values.reshape(len(values), -1)[:, 0]  # QMNIST's labels have further columns
    found = image_set(stack, values, config, origin)
    names = getattr(dataset, "classes", ())
    numbers = [int(text) for text in found.classes]
    if not numbers or max(numbers) >= len(names):
        return found
    return replace(found, classes=tuple(str(names[number]) for number in numbers))


def _list(kind: str, root: Path, part: dict[str, Any]) -> Listing:
    """The files of a data set: its own loader hands over their paths, undecoded."""
    dataset = _construct(kind, root, part, loader=str)
    rows = [dataset[index] for index in range(len(dataset))]
    names = CompactNames.of(os.path.relpath(path, root) for path, _ in rows)
    values = [label for _, label in rows]
    labels, classes = label_items(values, getattr(dataset, "classes", ()), "torchvision")
    found = list_files(root, names, labels, classes, origin=f"torchvision:{kind} in {root}")
    return replace(found, part=_part_name(part))


def _part_name(part: dict[str, Any]) -> str:
    """What the arguments call a part; empty for a data set without parts."""
    named = part.get("split")
    if named is not None or not part:
        return str(named or "")
    return "train" if next(iter(part.values())) else "test"


_SIDE: Final = 32
_PIXELS: Final = 3 * _SIDE * _SIDE
_LARGEST_FILE: Final = 2**30  # bytes; the real ones have at most 154 million


@dataclass(frozen=True)
class _Layout:
    """How one of the two is laid out.

    Attributes:
        train: files to learn from, in order.
        test: the held-out file.
        names: the text file with one class name a line.
        label_bytes: before the pixels of each record; the last one is the label.
    """

    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int


_CIFAR10: Final = _Layout(
    tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1
)
_CIFAR100: Final = _Layout(("train.bin",), "test.bin", "fine_label_names.txt", 2)


def is_cifar(path: str | Path) -> bool:
    """Whether a folder holds the binary version of CIFAR-10 or CIFAR-100."""
    return _layout(Path(path)) is not None


def find_cifar(path: str | Path, config: ImagesConfig) -> LocatedImages:
    """The images to learn from and, where its file is there, the held-out ones.

    Labels are the fine ones of CIFAR-100.

    Raises:
        ImagesError: a file is missing or damaged.
    """
    path = Path(path)
    layout = _layout(path)
    if layout is None:
        raise ImagesError(f"{path} does not hold the binary version of CIFAR-10 or CIFAR-100.")
    names = _class_names(path / layout.names)
    train = _read([path / name for name in layout.train], layout, names, config)
    if not (path / layout.test).is_file():
        return LocatedImages(train)
    test = _read([path / layout.test], layout, names, held_out_config(config, train))
    return LocatedImages(train, [test], train_part="train")


def _layout(path: Path) -> _Layout | None:
    for layout in (_CIFAR10, _CIFAR100):
        if all(os.path.isfile(path / name) for name in (layout.train[0], layout.names)):
            return layout
    return None


def _read(files: list[Path], layout: _Layout, names: list[str], config: ImagesConfig) -> ImageSet:
    records = np.concatenate([_records(file, layout) for file in files])
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(names):
        raise ImagesError(
            f"{files[0].parent} has a label {labels.max()}, but {layout.names} names only "
            f"{len(names)} classes; it is damaged."
        )
    planes = records[:, layout.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
    stack = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    found = image_set(stack, labels, config, files[0].parent)
    return replace(found, classes=tuple(names[int(number)] for number in found.classes))


def _records(file: Path, layout: _Layout) -> NDArray[np.uint8]:
    """The records of one file, (images, label bytes + pixels)."""
    record = layout.label_bytes + _PIXELS
    try:
        size = os.path.getsize(file)
        if size == 0 or size % record or size > _LARGEST_FILE:
            raise ImagesError(
                f"{file} has {size} bytes; wanted records of {record} bytes each. It is damaged; "
                "fetch it anew."
            )
        return np.fromfile(file, dtype=np.uint8, count=size).reshape(-1, record)
    except (OSError, ValueError) as error:
        raise ImagesError(f"{file} cannot be read: {error}. Fetch it anew.") from error


def _class_names(file: Path) -> list[str]:
    try:
        text = file.read_bytes()[:65536].decode("utf-8", "replace")
    except OSError as error:
        raise ImagesError(f"{file} cannot be read: {error}.") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) not in (10, 100):
        raise ImagesError(f"{file} should name 10 or 100 classes, one a line; got {len(names)}.")
    return names
