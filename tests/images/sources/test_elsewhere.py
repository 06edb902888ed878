"""Each kind of name reaches its opener, and a run on a handed-over data set can be resumed."""

import io
import tarfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.config.files import load_run_config
from diptych.errors import ImagesError
from diptych.images.collection import Collection
from diptych.images.open import from_any_folder, open_images

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def opened(tmp_path: Path, executor: ThreadPoolExecutor) -> Callable[[str | Path], Collection]:
    cache = str(tmp_path / "cache")
    return lambda name: open_images(ImagesConfig(path=str(name), cache_folder=cache), executor)


def write_parquet(file: Path, images: NDArray[np.uint8]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [encoded(image, "PNG") for image in images]}), file)
    return file


def pixels_of(found: Collection) -> NDArray[Any]:
    batch = found.train.pixels.gather(np.arange(len(found.train)))
    return np.stack([batch.image(n) for n in range(len(found.train))])


def test_parquet_by_file_folder_and_pattern(
    tmp_path: Path, stripes: Stripes, opened: Callable[[str | Path], Collection]
) -> None:
    images, _ = stripes(5)
    file = write_parquet(tmp_path / "set" / "data" / "train-0.parquet", images)
    for name in (file, tmp_path / "set", tmp_path / "set" / "*" / "*.parquet"):
        found = opened(name)
        assert np.array_equal(pixels_of(found), images)
        assert found.description.startswith(f"5 images in {name}")


def test_metadata_beside_images_is_no_set_of_images(
    class_folder: Path, opened: Callable[[str | Path], Collection]
) -> None:
    pq.write_table(pa.table({"file_name": ["a"], "label": [1]}), class_folder / "metadata.parquet")
    assert len(opened(class_folder).train) == 48


def test_remote_files_are_opened_as_local_ones(
    tmp_path: Path,
    stripes: Stripes,
    memory: Any,
    opened: Callable[[str | Path], Collection],
) -> None:
    images, _ = stripes(6)
    np.save(tmp_path / "set.npy", images)
    memory.pipe("/b/set.npy", (tmp_path / "set.npy").read_bytes())
    memory.pipe("/b/some.png", encoded(images[0], "PNG"))
    for number in range(2):
        part = write_parquet(tmp_path / "part.parquet", images[3 * number : 3 * number + 3])
        memory.pipe(f"/b/part-{number}.parquet", part.read_bytes())
    for name in ("memory://b/set.npy", "memory://b/part-{0..1}.parquet"):
        found = opened(name)
        assert np.array_equal(pixels_of(found), images)
        assert name in found.description
    assert len(opened("memory://b").train) == 1
    memory.pipe("/b/set2.npy", b"x")
    with pytest.raises(ImagesError, match=r"stands for 2 files\. Only \.tar and \.parquet"):
        opened("memory://b/set*.npy")


def test_parts_of_remote_files_are_those_of_their_own_names(
    tmp_path: Path,
    stripes: Stripes,
    memory: Any,
    opened: Callable[[str | Path], Collection],
) -> None:
    images, _ = stripes(6)
    table = write_parquet(tmp_path / "part.parquet", images).read_bytes()
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number, image in enumerate(images):
            data = encoded(image, "PNG")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for part in ("train", "val"):
        memory.pipe(f"/b/{part}-0.parquet", table)
        memory.pipe(f"/b/{part}/000.tar", shard.getvalue())
    for name in ("memory://b/{train,val}-0.parquet", "memory://b/{train,val}/000.tar"):
        found = opened(name)
        assert len(found.train) == 6
        assert found.test is not None
        assert len(found.test) == 6


def test_names_of_data_sets(opened: Callable[[str | Path], Collection]) -> None:
    with pytest.raises(ImagesError, match="wanted one of CLEVR"):
        opened("torchvision:Nothing")
    with pytest.raises(ImagesError, match="hand it over again"):
        opened("datasets:0123")
    with pytest.raises(ImagesError, match=r"'nowhere' does not exist.*a URL"):
        opened("nowhere")


def test_names_mean_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_any_folder("torchvision:MNIST:here") == f"torchvision:MNIST:{tmp_path}/here"
    for name in ("torchvision:MNIST", "datasets:0123", "https://host/images"):
        assert from_any_folder(name) == name
    assert from_any_folder("a/folder") is None


def test_a_run_on_a_handed_over_data_set(tmp_path: Path, stripes: Stripes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    import diptych

    images, labels = stripes(24)
    rows = [{"bytes": encoded(image, "PNG"), "path": None} for image in images]
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    dataset = datasets.Dataset.from_dict({"image": rows, "label": labels.tolist()}, features=kinds)
    small: dict[str, Any] = {"epochs": 1, "batch_size": 8, "threads": 1}
    run = diptych.pretrain(dataset, out=tmp_path / "run", scale="tiny", quiet=True, **small)
    named = load_run_config(run / "config.toml").images.path
    assert named.startswith("datasets:")
    encoder = diptych.load_encoder(run)
    features = diptych.extract_features(encoder, dataset, threads=1)
    assert len(features) == 24
    assert "knn" in diptych.evaluate(run, train=dataset, threads=1)
    assert diptych.pretrain(dataset, out=run, resume=True, quiet=True) == run
    del dataset
    with pytest.raises(ImagesError, match="hand it over again"):
        diptych.pretrain(out=run, resume=True, quiet=True)
