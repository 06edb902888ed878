"""torchvision's data sets, made as it expects them on disk; those that unpickle are refused."""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet
from diptych.images.sources.known_sets import find_torchvision
from diptych.images.splits import open_located

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
GRAY, CONFIG = ImagesConfig(color="gray"), ImagesConfig()


def idx(array: NDArray[Any]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def pixels_of(found: ImageSet) -> NDArray[Any]:
    batch = found.pixels.gather(np.arange(len(found)))
    return np.stack([batch.image(n) for n in range(len(found))])


@pytest.fixture
def mnist(tmp_path: Path, stripes: Stripes) -> tuple[Path, NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = stripes(10)
    images = images[:, :28, :28, 0]
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, some in (("train", slice(0, 7)), ("t10k", slice(7, 10))):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images[some]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels[some]))
    return tmp_path, images, labels


def test_arrays_are_taken_as_they_are(
    mnist: tuple[Path, NDArray[np.uint8], NDArray[np.int64]],
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, images, labels = mnist
    train, test = open_located(
        find_torchvision(f"torchvision:FashionMNIST:{root}", GRAY), GRAY, executor
    )
    assert np.array_equal(pixels_of(train)[..., 0], images[:7])
    assert train.classes == ("T-shirt/top", "Trouser", "Pullover")
    assert train.labels is not None
    assert train.labels.tolist() == labels[:7].tolist()
    assert test is not None
    assert np.array_equal(pixels_of(test)[..., 0], images[7:])
    monkeypatch.setenv("TORCHVISION_ROOT", str(root))
    assert (
        len(open_located(find_torchvision("torchvision:FashionMNIST", GRAY), GRAY, executor)[0])
        == 7
    )


def test_channels_that_come_first_are_moved(
    tmp_path: Path,
    stripes: Stripes,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.datasets import STL10

    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    images, labels = stripes(4)
    images = np.tile(images, (1, 3, 3, 1))
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for part in ("train", "test"):  # column by column, each plane, labels from 1
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    train, test = open_located(
        find_torchvision(f"torchvision:STL10:{tmp_path}", CONFIG), CONFIG, executor
    )
    assert np.array_equal(pixels_of(train), images)
    assert train.classes == ("airplane", "bird", "car")
    assert test is not None


def test_files_are_decoded_by_diptych(
    tmp_path: Path, stripes: Stripes, executor: ThreadPoolExecutor
) -> None:
    images, _ = stripes(4)
    for number, image in enumerate(images):
        folder = tmp_path / "eurosat" / "2750" / ("Forest" if number < 2 else "River")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"torchvision would fail at this one")
    lenient = ImagesConfig(max_unreadable_share=0.5)
    train, test = open_located(
        find_torchvision(f"torchvision:EuroSAT:{tmp_path}", lenient), lenient, executor
    )
    assert test is None
    assert np.array_equal(pixels_of(train), images)
    assert train.classes == ("Forest", "River")
    assert train.names[0] == "eurosat/2750/Forest/0.png"
    assert [one.reason for one in train.skipped] == ["not an image of a known format"]


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "LSUN", "ImageNet"])
def test_pickles_are_refused(name: str, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(ImagesError, match=r"unpickles its files.*Instead, "):
        open_located(find_torchvision(f"torchvision:{name}", CONFIG), CONFIG, executor)


def test_what_is_missing_or_unknown_is_said(
    mnist: tuple[Path, NDArray[np.uint8], NDArray[np.int64]], executor: ThreadPoolExecutor
) -> None:
    root = mnist[0]
    with pytest.raises(
        ImagesError, match=r"import KMNIST; KMNIST\('.*', train=True, download=True"
    ):
        open_located(find_torchvision(f"torchvision:KMNIST:{root}", CONFIG), CONFIG, executor)
    with pytest.raises(ImagesError, match=r"wanted one of CLEVRClassification, .*, USPS"):
        open_located(find_torchvision("torchvision:Nothing", CONFIG), CONFIG, executor)
    (root / "FashionMNIST" / "processed").mkdir()
    (root / "FashionMNIST" / "processed" / "training.pt").write_bytes(b"a pickle")
    with pytest.raises(ImagesError, match=r"processed holds \.pt files of an old torchvision"):
        open_located(find_torchvision(f"torchvision:FashionMNIST:{root}", CONFIG), CONFIG, executor)
