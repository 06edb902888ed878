"""Shapes in signatures are checked while the tests run; small image folders to test on."""

import io
import itertools
import os
import shutil
import signal

# Tests work on tiny arrays, where a second thread only waits for the first, as do two workers that
# have the machine's cores each. Set before a library that counts them is imported; processes that
# tests start take it over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As diptych's commands do, where a test asks for two threads.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from diptych.config.data import ImagesConfig
    from diptych.images.collection import ImageSet
    from diptych.images.listing import Progress

# Before anything of diptych is imported. The compiled loops are left out: numba reads their code.
install_import_hook(
    [
        "diptych.methods.losses",
        "diptych.methods.logits",
        "diptych.methods.dictionaries",
        "diptych.methods.objective",
        "diptych.diagnostics.leak",
        "diptych.evaluation.geometry",
        "diptych.evaluation.knn",
        "diptych.evaluation.linear",
        "diptych.diagnostics.label_free",
    ],
    "beartype.beartype",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: at the end one of them would be waited for by the other workers."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# A shell ignores SIGINT for what it starts in the background, and nohup SIGHUP; all that these
# tests start would inherit that, and could not be interrupted.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# How long an example takes says something of the machine only.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

torch.set_num_threads(1)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261123)


def striped(label: int, rng: np.random.Generator, side: int = 32) -> NDArray[np.uint8]:
    """An image whose class shows in the direction and the colour of its stripes."""
    rows, columns = np.mgrid[:side, :side]
    across = columns if label % 2 else rows
    wave = np.sin(across * rng.uniform(0.7, 1.1) + rng.uniform(0, 6))
    color = np.array([[255, 80, 60], [60, 120, 255], [80, 220, 90]])[label % 3]
    noise = rng.normal(0, 12, (side, side, 3))
    return np.clip((0.6 + 0.4 * wave)[..., None] * color + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def stripes() -> Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Makes (images, labels): so many 32x32 images of so many classes."""

    def make(count: int, classes: int = 3) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        rng = np.random.default_rng(5)
        labels = np.arange(count) % classes
        return np.stack([striped(int(label), rng) for label in labels]), labels

    return make


def write_class_folder(root: Path) -> Path:
    """A folder of 48 PNG files in three class folders."""
    rng = np.random.default_rng(7)
    for label in range(3):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(16):
            Image.fromarray(striped(label, rng)).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def _shared_class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folder(tmp_path_factory.mktemp("class-folder") / "images")


@pytest.fixture
def class_folder(_shared_class_folder: Path, tmp_path: Path) -> Path:
    """A folder of 48 PNG files in three class folders, for this test alone."""
    return Path(shutil.copytree(_shared_class_folder, tmp_path / "images"))


def open_folder(
    root: Path,
    config: "ImagesConfig",
    executor: Executor,
    on_progress: "Progress" = lambda done, total: None,
) -> "ImageSet":
    """The images in a folder, all together, whatever its folders are called."""
    from diptych.images.listing import open_listing
    from diptych.images.sources.image_files import list_folder
    from diptych.images.tree import walk

    return open_listing(list_folder(root, walk(root)), config, executor, on_progress)


def encoded(pixels: NDArray[np.uint8], kind: str, **options: object) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


_TESTS = itertools.count()


@pytest.fixture(autouse=True)
def _no_color_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")
    monkeypatch.setitem(os.environ, "COLUMNS", "100")


@pytest.fixture(autouse=True)
def _no_cache_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A folder for each test, which only those make that keep something in it.
    caches = tmp_path_factory.getbasetemp() / "caches"
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(caches / f"{next(_TESTS)}"))
