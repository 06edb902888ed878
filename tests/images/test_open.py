"""Every kind of source gives the same images; every wrong one a sentence that helps."""

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images import open as open_module
from diptych.images.collection import Collection, spread_indices
from diptych.images.open import SOURCES, Source, from_any_folder, from_array, open_images
from diptych.images.pixels import DecodedPixels, HeldPixels, KeptPixels
from diptych.images.sources.known_sets import CELL_PIXELS, PHOTOGRAPHS
from diptych.images.splits import LocatedImages

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


def opened(path: Path | str, executor: ThreadPoolExecutor, **options: Any) -> Collection:
    return open_images(ImagesConfig(path=str(path), **options), executor)


def pixels_of(collection: Collection) -> NDArray[np.uint8]:
    train = collection.train
    batch = train.pixels.gather(np.arange(len(train)))
    return np.stack([batch.image(i) for i in range(len(train))])


def idx_bytes(array: NDArray[Any]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_class_folders_are_noticed(class_folder: Path, executor: ThreadPoolExecutor) -> None:
    train = opened(class_folder, executor).train
    assert train.classes == ("class0", "class1", "class2")
    assert train.labels is not None
    assert train.labels.tolist() == [0] * 16 + [1] * 16 + [2] * 16


def test_images_beside_folders_have_no_label(
    class_folder: Path, executor: ThreadPoolExecutor
) -> None:
    Image.new("RGB", (8, 8)).save(class_folder / "loose.png")
    train = opened(class_folder, executor).train
    assert train.labels is not None
    without = np.flatnonzero(train.labels < 0).tolist()
    assert [train.names[i] for i in without] == ["loose.png"]
    assert train.classes == ("class0", "class1", "class2")


def test_minus_one_in_an_array_is_no_class(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    pixels = np.zeros((6, 8, 8), np.uint8)
    np.savez(tmp_path / "some.npz", images=pixels, labels=np.array([3, -1, 5, -1, 3, 5]))
    train = opened(tmp_path / "some.npz", executor).train
    assert train.classes == ("3", "5")
    assert train.labels is not None
    assert train.labels.tolist() == [0, -1, 1, -1, 0, 1]
    np.savez(tmp_path / "one.npz", images=pixels, labels=np.array([3, -1, 3, -1, 3, 3]))
    assert opened(tmp_path / "one.npz", executor).train.labels is None


def test_a_part_of_the_photographs_keeps_their_names(executor: ThreadPoolExecutor) -> None:
    whole = open_images(ImagesConfig(path="photographs"), executor).train
    some = open_images(ImagesConfig(path="photographs", limit=12), executor).train
    assert whole.labels is not None
    assert some.labels is not None
    assert 2 <= len(some.classes) < 16
    for name, label in zip(some.names, some.labels.tolist(), strict=True):
        assert some.classes[label] == whole.classes[whole.labels[int(name)]]


def test_train_and_test_folders_are_noticed(
    class_folder: Path, executor: ThreadPoolExecutor
) -> None:
    root = class_folder.parent / "both"
    root.mkdir()
    (root / "train").symlink_to(class_folder)
    (root / "val").symlink_to(class_folder)
    found = opened(root, executor, limit=10)
    assert len(found.train) == 10
    assert found.test is not None
    assert len(found.test) == 48
    assert "3 classes" in found.description


def test_large_sets_are_decoded_at_each_use(
    class_folder: Path, executor: ThreadPoolExecutor
) -> None:
    kept = opened(class_folder, executor)
    decoded = opened(class_folder, executor, cache="none")
    assert isinstance(kept.train.pixels, KeptPixels)
    assert isinstance(decoded.train.pixels, DecodedPixels)
    assert np.array_equal(pixels_of(kept), pixels_of(decoded))
    assert kept.train.fingerprint() == decoded.train.fingerprint()
    (class_folder / "class1" / "003.png").unlink()
    with pytest.raises(ImagesError, match=r"003\.png was readable at the start and is not now"):
        pixels_of(decoded)


def test_arrays(tmp_path: Path, stripes: Stripes, executor: ThreadPoolExecutor) -> None:
    images, labels = stripes(30)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "images.npz", images=images, labels=labels + 5)
    np.savez_compressed(
        tmp_path / "parts.npz",
        train_images=images,
        train_labels=labels[:, None],
        test_images=images[:6],
        test_labels=labels[:6, None],
    )
    for name in ("images.npy", "images.npz", "parts.npz"):
        found = opened(tmp_path / name, executor)
        assert np.array_equal(pixels_of(found), images), name
    found = opened(tmp_path / "images.npz", executor)
    assert found.train.classes == ("5", "6", "7")
    parts = opened(tmp_path / "parts.npz", executor, limit=7)
    assert parts.test is not None
    assert (len(parts.train), len(parts.test)) == (7, 6)


@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize(
    ("color", "bits", "channels", "dtype", "order"),
    [
        ("rgb", 8, 1, np.uint8, "C"),
        ("gray", 8, 3, np.uint8, "C"),
        ("rgb", 8, 3, np.uint16, "C"),
        ("rgb", 16, 1, np.uint8, "C"),
        ("raw", 16, 5, np.uint8, "C"),
        ("rgb", 8, 3, np.uint8, "F"),
        ("gray", 16, 3, np.uint16, "C"),
    ],
)
def test_a_mapped_array_gives_the_same_in_another_form(
    color: str,
    bits: int,
    channels: int,
    dtype: Any,
    order: Any,
    cache: str,
    tmp_path: Path,
    rng: np.random.Generator,
    executor: ThreadPoolExecutor,
) -> None:
    """As one in memory, which is converted at once, and as the formulas have it."""
    white = np.iinfo(dtype).max
    stack = rng.integers(0, white, (9, 13, 11, channels), dtype=dtype, endpoint=True)
    stack[0, :, :, :1], stack[0, :, :, -1:] = 3, 2
    np.save(tmp_path / "a.npy", np.asarray(stack, order=order))
    np.savez(tmp_path / "a.npz", images=stack)
    form: Any = {"color": color, "bits": bits}
    mapped = opened(tmp_path / "a.npy", executor, cache=cache, **form)
    whole = opened(tmp_path / "a.npz", executor, **form)
    assert not isinstance(mapped.train.pixels, HeldPixels)
    assert pixels_of(mapped).tobytes() == pixels_of(whole).tobytes()
    assert mapped.train.fingerprint() == whole.train.fingerprint()
    if color == "gray":
        luma = stack.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        wanted = np.rint(luma)[..., None]
    else:
        wanted = np.repeat(stack, 3, axis=3) if (color, channels) == ("rgb", 1) else stack
    wanted = wanted.astype(np.float64) * (2**bits - 1) / white
    found = pixels_of(mapped).astype(np.float64)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 0.5


def test_a_mapped_array_is_not_converted_as_a_whole(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((600, 64, 64), dtype=np.uint8))
    tracemalloc.start()
    found = opened(tmp_path / "a.npy", executor, cache="none").train
    batch = found.pixels.gather(np.array([7, 599, 7]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert batch.image(1).shape == (64, 64, 3)
    assert peak < 600 * 64 * 64  # bytes; converted it has three times as many


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (48, 7), (999, 500)])
def test_spread_indices_reach_from_end_to_end_in_even_steps(count: int, most: int) -> None:
    found = spread_indices(count, most)
    assert found.dtype == np.int64
    assert len(found) == min(count, most)
    assert found[:1].tolist() == [0][:count]
    assert found[-1:].tolist() == [count - 1][:count]
    steps = set(np.diff(found).tolist())
    assert not steps or max(steps) - min(steps) <= 1
    assert min(steps, default=1) >= 1


def test_a_spread_keeps_names_and_labels(class_folder: Path, executor: ThreadPoolExecutor) -> None:
    train = opened(class_folder, executor).train
    few = train.spread(3)
    assert list(few.names) == [train.names[i] for i in (0, 23, 47)]
    assert few.labels is not None
    assert few.labels.tolist() == [0, 1, 2]
    assert len(train.spread(1000)) == 48


@pytest.mark.parametrize("compress", [False, True])
def test_idx(
    compress: bool, tmp_path: Path, stripes: Stripes, executor: ThreadPoolExecutor
) -> None:
    images, labels = stripes(30)
    gray = images[..., 1]
    pack = gzip.compress if compress else bytes
    end = ".gz" if compress else ""
    for part, some in (("train", slice(None)), ("t10k", slice(5))):
        images_file = tmp_path / f"{part}-images-idx3-ubyte{end}"
        images_file.write_bytes(pack(idx_bytes(gray[some])))
        labels_file = tmp_path / f"{part}-labels-idx1-ubyte{end}"
        labels_file.write_bytes(pack(idx_bytes(labels[some])))
    folder = opened(tmp_path, executor)
    file = opened(tmp_path / f"train-images-idx3-ubyte{end}", executor, color="gray")
    assert folder.test is not None
    assert len(folder.test) == 5
    assert np.array_equal(pixels_of(folder), np.repeat(gray[..., None], 3, axis=3))
    assert np.array_equal(pixels_of(file), gray[..., None])
    for found in (folder, file):
        assert found.train.labels is not None
        assert found.train.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.npy", b"not numpy", "not a readable .npy"),
        ("a.npz", b"not a zip", "not a readable .npz"),
        ("a.bin", b"whatever", "a file of another kind"),
        ("a-idx3", bytes([0, 0, 8, 3]) + struct.pack(">3I", 9, 9, 9) + b"short", "damaged"),
        (
            "b-idx3",
            bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**31] * 3),
            "is refused: its header",
        ),
    ],
)
def test_damaged_arrays_are_refused(
    name: str, data: bytes, words: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImagesError, match=words):
        opened(tmp_path / name, executor)


def test_packed_arrays_with_a_wrong_byte_are_refused(
    tmp_path: Path, executor: ThreadPoolExecutor, rng: np.random.Generator
) -> None:
    pixels = rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=pixels)
    (tmp_path / "a-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
    np.savez(tmp_path / "b.npz", images=pixels)
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(ImagesError, match=r"is an \.npz file by its content"):
        opened(tmp_path / "b.npy", executor)
    for name in ("a.npz", "a-images-idx3-ubyte.gz"):
        good = (tmp_path / name).read_bytes()
        for place in range(12, len(good) - 8, 37):
            changed = bytearray(good)
            changed[place] ^= 0xFF
            (tmp_path / name).write_bytes(changed)
            with suppress(ImagesError):  # or it is still right
                opened(tmp_path / name, executor)


def test_wrong_arrays_are_refused(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, "wanted uint8 or uint16 images"),
        ({"images": np.zeros((4, 8), np.uint8)}, "wanted uint8 or uint16 images of shape"),
        ({"images": np.zeros((4, 8, 8, 7), np.uint8)}, "1 or 3 channels"),
        ({"pictures": np.zeros((4, 8, 8), np.uint8)}, "holds pictures; wanted an array named"),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)},
            "one integer label for each of 4 images",
        ),
        ({"images": np.array([{"a": 1}], dtype=object)}, "not a readable .npz"),
    ]
    for arrays, words in cases:
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(ImagesError, match=words):
            opened(tmp_path / "wrong.npz", executor)


def test_nothing_is_unpickled(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ImagesError, match="Python objects"):
        opened(tmp_path / "evil.npy", executor)


def test_missing_and_empty_paths(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(ImagesError, match="does not exist"):
        opened(tmp_path / "nothing", executor)
    with pytest.raises(ImagesError, match="no images in"):
        opened(tmp_path, executor)


def test_a_new_kind_of_source_is_one_line(
    monkeypatch: pytest.MonkeyPatch, executor: ThreadPoolExecutor
) -> None:
    def find_noise(path: str, config: ImagesConfig) -> LocatedImages:
        count = int(path.partition(":")[2])
        pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        return LocatedImages(from_array(pixels, None, config))

    noise = Source("noise:COUNT", lambda path: path.startswith("noise:"), find_noise, str)
    monkeypatch.setattr(open_module, "SOURCES", [noise, *SOURCES])
    assert len(opened("noise:7", executor).train) == 7
    assert from_any_folder("noise:7") == "noise:7"
    assert from_any_folder("photographs") == "photographs"
    with pytest.raises(ImagesError, match=r"'nowhere' does not exist. Wanted noise:COUNT, .*IDX"):
        opened("nowhere", executor)


def test_photographs_are_whole_and_disjoint(executor: ThreadPoolExecutor) -> None:
    found = opened("photographs", executor)
    assert found.test is not None
    assert found.train.classes == found.test.classes == tuple(PHOTOGRAPHS)
    assert len(PHOTOGRAPHS) == 16
    assert found.train.labels is not None
    assert np.bincount(found.train.labels).tolist() == [len(found.train) // 16] * 16
    again = opened("photographs", executor)
    assert np.array_equal(pixels_of(found), pixels_of(again))


def test_no_patch_of_the_test_part_shares_a_pixel_with_training() -> None:
    from diptych.images.sources import known_sets

    places = np.arange(300 * 400).reshape(300, 400, 1)
    generator = np.random.default_rng(0)
    train_cells, test_cells = known_sets._cells(places, generator)  # type: ignore[arg-type]
    parts = [
        set(known_sets._patches(places, cells, 400, generator).ravel().tolist())  # type: ignore[arg-type]
        for cells in (train_cells, test_cells)
    ]
    assert parts[0]
    assert parts[1]
    assert not parts[0] & parts[1]
    assert len(test_cells) == (300 // CELL_PIXELS) * (400 // CELL_PIXELS) // 4


@pytest.mark.parametrize("side", [8, 83, 200])
def test_the_photographs_are_the_same_images_for_every_run(
    side: int, executor: ThreadPoolExecutor
) -> None:
    """A run reduces large JPEGs; an evaluation or a resume opens its set with that setting."""
    asked = ImagesConfig(path="photographs")
    before = open_images(asked, executor)
    after = open_images(replace(asked, decoded_side=side), executor)
    assert after.train.fingerprint() == before.train.fingerprint()
    assert before.test is not None
    assert after.test is not None
    assert after.test.fingerprint() == before.test.fingerprint()
