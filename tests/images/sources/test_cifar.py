"""The binary versions of CIFAR: read as their authors describe them, refused where damaged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet
from diptych.images.sources.known_sets import find_cifar, is_cifar
from diptych.images.splits import open_located


def opened(root: Path, config: ImagesConfig) -> tuple[ImageSet, ImageSet | None]:
    with ThreadPoolExecutor(1) as executor:
        return open_located(find_cifar(root, config), config, executor)


def write_cifar10(root: Path, rng: np.random.Generator, images: int = 4) -> np.ndarray:
    """Returns the records of all batches, the last ones held out: (6 * images, 3073)."""
    root.mkdir()
    records = rng.integers(0, 256, (6 * images, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(len(records)) % 10
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
    for number, name in enumerate(names):
        (root / name).write_bytes(records[number * images : (number + 1) * images].tobytes())
    classes = "\n".join(f"kind{n}" for n in range(10))
    (root / "batches.meta.txt").write_text(classes + "\n\n")
    return records


def test_cifar10_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    root = tmp_path / "cifar-10-batches-bin"
    records = write_cifar10(root, rng)
    assert is_cifar(root)
    train, test = opened(root, ImagesConfig())
    assert (len(train), test and len(test)) == (20, 4)
    batch = train.pixels.gather(np.array([7]))
    for channel in range(3):  # planes of 1024 bytes: red, green, blue
        plane = records[7, 1 + 1024 * channel : 1 + 1024 * (channel + 1)].reshape(32, 32)
        assert np.array_equal(batch.image(0)[:, :, channel], plane)
    assert train.labels is not None
    assert [train.classes[n] for n in train.labels] == [f"kind{n % 10}" for n in range(20)]
    assert test is not None
    assert test.classes == ("kind0", "kind1", "kind2", "kind3")


def test_cifar100_has_the_fine_labels(tmp_path: Path, rng: np.random.Generator) -> None:
    records = rng.integers(0, 256, (5, 3074), dtype=np.uint8)
    records[:, 0], records[:, 1] = [0, 1, 0, 1, 0], [5, 99, 5, 7, 8]
    (tmp_path / "train.bin").write_bytes(records.tobytes())
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"f{n}" for n in range(100)))
    train, test = opened(tmp_path, ImagesConfig(limit=5))
    assert test is None
    assert train.labels is not None
    assert [train.classes[n] for n in train.labels] == ["f5", "f99", "f5", "f7", "f8"]


def test_damaged_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    root = tmp_path / "c"
    records = write_cifar10(root, rng)
    cut = root / "data_batch_3.bin"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(ImagesError, match=r"data_batch_3\.bin has 12291 bytes.*records of 3073"):
        find_cifar(root, ImagesConfig())
    cut.unlink()
    with pytest.raises(ImagesError, match=r"data_batch_3\.bin cannot be read"):
        find_cifar(root, ImagesConfig())
    records[0, 0] = 10
    cut.write_bytes(records[:4].tobytes())
    with pytest.raises(
        ImagesError, match=r"a label 10, but batches\.meta\.txt names only 10 classes"
    ):
        find_cifar(root, ImagesConfig())
    (root / "batches.meta.txt").write_text("one\ntwo\n")
    with pytest.raises(ImagesError, match=r"batches\.meta\.txt should name 10 or 100 classes"):
        find_cifar(root, ImagesConfig())


def test_other_folders_are_none_of_them(tmp_path: Path) -> None:
    assert not is_cifar(tmp_path)
    with pytest.raises(ImagesError, match="does not hold the binary version"):
        find_cifar(tmp_path, ImagesConfig())
