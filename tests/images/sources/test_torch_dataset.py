"""A user's own data set: every form of image, its labels, and that a run knows it again."""

import gc
import io
import signal
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

import diptych
from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.config.files import load_run_config
from diptych.errors import ImagesError, Interrupted
from diptych.images.collection import Collection
from diptych.images.open import open_images
from diptych.images.sources.handed_over import as_file, path_of
from diptych.views.batches import Batch, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
SMALL: dict[str, Any] = {"batch_size": 8, "threads": 1, "scale": "tiny", "quiet": True}


def cut_off() -> Image.Image:
    """An image that Pillow opened, and will find to be cut off when its pixels are wanted."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, "JPEG")
    return Image.open(io.BytesIO(data[: len(data) // 2]))


class Own(Dataset[Any]):
    """Items as they are given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.fixture
def opened(tmp_path: Path, executor: ThreadPoolExecutor) -> Callable[..., Collection]:
    def opened(dataset: Any, **settings: Any) -> Collection:
        cache = str(tmp_path / "cache")
        config = ImagesConfig(path=path_of(dataset), cache_folder=cache, **settings)
        return open_images(config, executor)

    return opened


def image(found: Collection, index: int) -> NDArray[Any]:
    return found.train.pixels.gather(np.array([index])).image(0)


def test_every_form_of_an_image_gives_its_pixels(
    stripes: Stripes, opened: Callable[..., Collection]
) -> None:
    pixels = stripes(1)[0][0]
    gray = pixels[..., 0]
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    forms = [Image.fromarray(pixels), pixels, planes, planes.float() / 255, planes.double() / 255]
    grays = [Image.fromarray(gray), gray, gray[..., None], torch.from_numpy(gray.copy())]
    found = opened(Own([*forms, *grays, torch.from_numpy(gray.copy())[None] / 255]))
    for number in range(len(forms)):
        assert np.array_equal(image(found, number), pixels), number
    for number in range(len(forms), len(found.train)):
        assert np.array_equal(image(found, number), np.repeat(gray[..., None], 3, axis=2)), number


def test_sixteen_bits_and_many_channels(
    rng: np.random.Generator, opened: Callable[..., Collection]
) -> None:
    deep = rng.integers(0, 2**16, (9, 11, 5), dtype=np.uint16)
    found = opened(
        Own([deep, torch.from_numpy(deep.transpose(2, 0, 1).copy())]), color="raw", bits=16
    )
    assert found.train.channels == 5
    for number in range(2):
        assert np.array_equal(image(found, number), deep)
    floats = opened(Own([(deep[..., :3] / 65535).astype(np.float64)]), bits=16)
    assert np.array_equal(image(floats, 0), deep[..., :3])


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "PA", "CMYK", "YCbCr", "I", "I;16"])
def test_every_mode_of_pillow_is_read_as_from_a_file(
    mode: str, rng: np.random.Generator, opened: Callable[..., Collection]
) -> None:
    made = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    if mode.startswith("I"):
        picture = Image.fromarray(rng.integers(0, 2**16, (9, 11), dtype=np.uint16))
        picture = picture.convert(mode) if mode == "I" else picture
    else:
        picture = made.convert("RGBA" if mode == "PA" else mode)
        picture = picture.quantize().convert("PA") if mode == "PA" else picture
    assert picture.mode == mode
    assert image(opened(Own([picture])), 0).shape == (9, 11, 3)


def test_transparency_is_laid_on_white(opened: Callable[..., Collection]) -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert image(opened(Own([clear])), 0).tolist() == [[[255] * 3] * 4] * 4


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"image": 1}, "a dict; wanted a PIL image"),
        ((), "a NoneType; wanted a PIL image"),
        ("a.png", "a str; wanted a PIL image"),
        (torch.randn(3, 8, 8), r"floats from -\S+ to \S+; wanted 0 .. 1. Leave a normalisation"),
        (torch.full((3, 8, 8), float("nan")), "floats from nan to nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "numbers of type int64; wanted uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), "an image of shape"),
        (np.zeros((0, 8, 3), np.uint8), "an image of shape"),
        (np.zeros((8, 8, 4), np.uint8), "channels are neither gray nor RGB"),
        (cut_off(), "damaged: .*truncated"),
    ],
)
def test_what_is_no_image_is_skipped_with_the_reason(
    item: Any, reason: str, stripes: Stripes, opened: Callable[..., Collection]
) -> None:
    found = opened(Own([*stripes(2)[0], item]), max_unreadable_share=0.5)
    assert list(found.train.names) == ["0", "1"]
    [skipped] = found.train.skipped
    assert skipped.name == "2"
    with pytest.raises(ImagesError, match=reason):
        opened(Own([item]))


def test_what_the_data_set_raises_is_the_reason(
    stripes: Stripes, opened: Callable[..., Collection]
) -> None:
    class Broken(Own):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index) if index else 1 / 0

    with pytest.raises(ImagesError, match="the data set raised ZeroDivisionError: division by"):
        opened(Broken(list(stripes(4)[0])))


@pytest.mark.parametrize(
    ("labels", "names", "classes", "numbers"),
    [
        ([2, 0, -1, 2], None, ("0", "2"), [1, 0, -1, 1]),
        ([np.int64(2), torch.tensor(0), None, 2], ["a", "b", "c"], ("a", "c"), [1, 0, -1, 1]),
        (["x", "y", "", "x"], None, ("x", "y"), [0, 1, -1, 0]),
        ([7, 1, 1, 1], ["a", "b"], ("1", "7"), [1, 0, 0, 0]),  # no name for 7
        ([np.array([2]), torch.tensor([0]), None, 2], ["a", "b", "c"], ("a", "c"), [1, 0, -1, 1]),
        ([0.5, 0.25, 1.0, 0.0], None, (), None),
        ([0.5, 1, 2, 3], None, (), None),
        ([torch.tensor([1, 0]), torch.tensor([-1, -1]), None, 2], None, (), None),
        ([np.zeros((9, 9)), {"boxes": 1}, [1, 2], np.ones(2)], ["a", "b"], (), None),
        ([None] * 4, ["a", "b"], (), None),
    ],
)
def test_labels_are_the_second_of_a_tuple(
    labels: list[Any],
    names: list[str] | None,
    classes: tuple[str, ...],
    numbers: list[int] | None,
    stripes: Stripes,
    opened: Callable[..., Collection],
) -> None:
    dataset = Own([(one, label, "more") for one, label in zip(stripes(4)[0], labels, strict=True)])
    if names is not None:
        dataset.classes = names  # type: ignore[attr-defined]
    found = opened(dataset).train
    assert found.classes == classes
    assert (None if found.labels is None else found.labels.tolist()) == numbers


def test_masks_are_not_kept(stripes: Stripes, opened: Callable[..., Collection]) -> None:
    masks = list[weakref.ref[Any]]()

    class Masked(Own):
        def __getitem__(self, index: int) -> Any:
            mask = np.zeros((32, 32), np.uint8)
            masks.append(weakref.ref(mask))
            return super().__getitem__(index), mask

    dataset = Masked(list(stripes(6)[0]))
    assert opened(dataset).train.labels is None
    gc.collect()
    assert len(masks) >= 6
    assert not any(one() is not None for one in masks)


def test_a_subset_is_a_data_set_of_its_own(
    stripes: Stripes, opened: Callable[..., Collection]
) -> None:
    images = stripes(6)[0]
    whole = Own(list(images))
    found = opened(some := Subset(whole, [4, 1]))
    assert np.array_equal(image(found, 0), images[4])
    assert path_of(some) != path_of(whole)


def test_the_name_is_of_the_content(stripes: Stripes) -> None:
    images, labels = stripes(4)
    first, tuples = Own(list(images)), Own(list(zip(images, labels.tolist(), strict=True)))
    name = path_of(first)
    assert name.startswith("torch:")
    assert name == path_of(tuples)
    changed = images.copy()
    changed[3, 0, 0, 0] ^= 1
    assert name != path_of(Own(list(changed)))
    assert name != path_of(Own(list(images[::-1])))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ()


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return index


class Augmented(Own):
    def __getitem__(self, index: int) -> Any:
        return np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), "Endless is read in one order only"),
        (NoLength(), "NoLength has no length"),
        (Augmented([0] * 9), "another image each time that its item 0 is asked for"),
        ([np.zeros((8, 8, 3))], "got a list for images; wanted a path"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_at_once(dataset: Any, message: str) -> None:
    with pytest.raises(ImagesError, match=message):
        path_of(dataset)


def test_it_is_asked_for_one_item_at_a_time(stripes: Stripes, tmp_path: Path) -> None:
    busy = list[int]()

    class Fragile(Own):
        def __getitem__(self, index: int) -> Any:
            busy.append(index)
            assert len(busy) == 1
            busy.remove(index)
            return super().__getitem__(index)

    dataset = Fragile(list(stripes(64)[0]))
    config = ImagesConfig(path=path_of(dataset), cache_folder=str(tmp_path), cache="none")
    with ThreadPoolExecutor(4) as executor:
        found = open_images(config, executor)
        list(executor.map(lambda n: image(found, n), range(64)))
    assert not found.train.skipped


def test_it_is_known_again_without_another_look_at_the_pixels(
    stripes: Stripes, opened: Callable[..., Collection]
) -> None:
    asked = list[int]()

    class Counted(Own):
        def __getitem__(self, index: int) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    images = list(stripes(12)[0])
    dataset = Counted(images)
    before = opened(dataset).train.fingerprint()
    asked.clear()
    assert opened(dataset).train.fingerprint() == before
    assert not asked  # neither for its name nor for its index
    assert opened(Own(images)).train.fingerprint() == before


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        if wanted == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, wanted)

    patch.setattr(ViewBatches, "at", at)


def test_a_run_on_an_own_data_set_resumes_to_the_same_bits(
    tmp_path: Path, stripes: Stripes, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = stripes(24)
    items = list(zip(images, labels.tolist(), strict=True))
    dataset = Own(items)
    whole = diptych.pretrain(dataset, out=tmp_path / "whole", epochs=2, **SMALL)
    assert load_run_config(whole / "config.toml").images.path == path_of(dataset)
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            diptych.pretrain(dataset, out=cut, epochs=2, **SMALL)
    again = Own(items)
    diptych.pretrain(again, out=cut, resume=True, quiet=True)
    assert (cut / "encoder.safetensors").read_bytes() == (
        whole / "encoder.safetensors"
    ).read_bytes()
    assert "knn" in diptych.evaluate(whole, train=again, threads=1)
    assert len(diptych.extract_features(diptych.load_encoder(whole), again, threads=1)) == 24
    (cut / "encoder.safetensors").unlink()
    changed = images.copy()
    changed[3] = 255 - changed[3]
    with pytest.raises(ImagesError, match="not those that this run began with"):
        diptych.pretrain(Own(list(changed)), out=cut, resume=True, quiet=True)
    del dataset, again
    gc.collect()
    with pytest.raises(ImagesError, match="hand it over again"):
        diptych.pretrain(out=cut, resume=True, quiet=True)


def test_a_file_in_memory_is_not_compressed(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert len(as_file(pixels, 8)) <= pixels.nbytes + 20
