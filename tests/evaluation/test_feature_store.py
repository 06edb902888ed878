"""Features are extracted once, and what is read has the bits that were extracted."""

import errno
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import diptych
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.diagnostics.ranking import rank_runs
from diptych.evaluation import feature_store
from diptych.evaluation.feature_store import FeatureStore
from diptych.evaluation.features import encode
from diptych.evaluation.protocols import evaluate
from diptych.images.collection import ImageSet
from diptych.images.open import from_array
from diptych.models import weights
from diptych.models.final_features import IntermediateLayer, WithIntermediate
from diptych.report.page import write_report
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import Runtime
from evaluated_runs import finished_run

VIEWS = ViewsConfig(side_pixels=8)
OPENED = ImagesConfig()


class Counted(nn.Module):
    """Counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 5)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        found: Tensor = self.layer(images.flatten(1))
        return found


class Heard(ProgressReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.counts: list[tuple[str, int, int]] = []

    def images(self, what: str, done: int, total: int) -> None:
        self.counts.append((what, done, total))

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.fixture
def images(rng: np.random.Generator) -> ImageSet:
    return from_array(rng.integers(0, 256, (40, 9, 9, 3), dtype=np.uint8), None, OPENED)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def store(tmp_path: Path, heard: Heard) -> Iterator[FeatureStore]:
    with Runtime("cpu", 1, batch_size=16, progress=heard) as runtime:
        yield FeatureStore(tmp_path / "features", runtime)


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "features").iterdir())


def test_the_same_bits_are_read_and_nothing_is_extracted(
    store: FeatureStore, images: ImageSet, heard: Heard
) -> None:
    network = Counted()
    first = store.features(network, images, OPENED, VIEWS, of="a network")
    again = store.features(network, images, OPENED, VIEWS)
    assert network.seen == 40
    assert torch.equal(first, again)
    assert first.dtype == again.dtype == torch.float32
    assert heard.counts == [("Features of a network", done, 40) for done in (16, 32, 40)]


def test_a_network_is_not_asked_again_where_a_layer_of_it_was_read_too(
    store: FeatureStore, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(encoder=EncoderConfig(width=4), views=VIEWS)
    network = weights.untrained_encoder(config).eval()
    both = store.features(
        WithIntermediate(network, IntermediateLayer("blocks.0", 2)), images, OPENED, VIEWS
    )
    with Runtime("cpu", 1) as runtime:
        alone = encode(network, images, VIEWS, runtime.executor, batch_size=16)
    monkeypatch.setattr(feature_store, "encode", None)
    found = store.features(weights.untrained_encoder(config).eval(), images, OPENED, VIEWS)
    assert torch.equal(found, alone)
    assert torch.equal(found, both[:, :16])
    assert both.shape[1] == 16 + 4 * 2**2


def test_any_part_of_what_is_kept_is_read_in_its_own_order(
    store: FeatureStore, images: ImageSet
) -> None:
    network, halves = Counted(), (np.arange(0, 25), np.arange(25, 40))
    kept = torch.cat(
        [store.features(network, images.select(half), OPENED, VIEWS) for half in halves]
    )
    mixed = np.array([39, 3, 24, 25, 3])
    found = store.features(network, images.select(mixed), OPENED, VIEWS)
    assert network.seen == 40
    assert torch.equal(found, kept[torch.from_numpy(mixed)])


def test_a_set_of_which_one_image_is_new_is_extracted_as_a_whole(
    store: FeatureStore, images: ImageSet, tmp_path: Path
) -> None:
    """So its bits are those that it has without a store."""
    network = Counted()
    store.features(network, images.select(np.arange(39)), OPENED, VIEWS)
    found = store.features(network, images, OPENED, VIEWS)
    assert network.seen == 39 + 40
    with Runtime("cpu", 1, batch_size=16) as runtime:
        alone = FeatureStore(tmp_path / "another", runtime)
        assert torch.equal(found, alone.features(network, images, OPENED, VIEWS))


@pytest.mark.parametrize(
    ("opened", "views", "crops"),
    [
        (OPENED, replace(VIEWS, pixel_mean=(0.5, 0.5, 0.5)), "center"),
        (OPENED, VIEWS, "five"),
        (replace(OPENED, decoded_side=8), VIEWS, "center"),
        (replace(OPENED, bits=16), VIEWS, "center"),
    ],
)
def test_other_settings_are_other_features(
    store: FeatureStore, images: ImageSet, opened: Any, views: Any, crops: Any
) -> None:
    network = Counted()
    store.features(network, images, OPENED, VIEWS)
    store.features(network, images, opened, views, crops=crops)
    assert network.seen == 40 + 40 * (5 if crops == "five" else 1)


def test_other_weights_another_structure_and_other_images_are_other_features(
    store: FeatureStore, images: ImageSet
) -> None:
    network = Counted()
    store.features(network, images, OPENED, VIEWS)
    with torch.no_grad():
        network.layer.bias[0] += 1e-6
    store.features(network, images, OPENED, VIEWS)
    assert network.seen == 80
    padded = nn.Sequential(network, nn.Dropout(0.0))
    store.features(padded, images, OPENED, VIEWS)
    assert network.seen == 120
    pixels = images.pixels.gather(np.arange(40))
    changed = np.stack([pixels.image(row) for row in range(40)])
    changed[7, 0, 0, 0] ^= 1
    store.features(network, from_array(changed, None, OPENED), OPENED, VIEWS)
    assert network.seen == 160


def damaged(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb()))


def foreign(file: Path) -> None:
    save_file(load_file(file), file, metadata={"key": "0" * 64, "sum": "", "format": "1"})


class Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (3,)


@pytest.mark.parametrize("spoil", [damaged, cut_short, pickled, foreign])
def test_a_file_in_doubt_is_extracted_anew(
    store: FeatureStore, images: ImageSet, tmp_path: Path, spoil: Any
) -> None:
    network = Counted()
    first = store.features(network, images, OPENED, VIEWS)
    (file,) = files(tmp_path)
    spoil(file)
    assert torch.equal(store.features(network, images, OPENED, VIEWS), first)
    assert network.seen == 80
    assert torch.equal(load_file(file)["features"], first)
    assert torch.equal(store.features(network, images, OPENED, VIEWS), first)
    assert network.seen == 80


def test_the_least_recently_used_make_room(tmp_path: Path, rng: np.random.Generator) -> None:
    sets = [
        from_array(rng.integers(0, 256, (40, 9, 9, 3), dtype=np.uint8), None, OPENED)
        for _ in range(3)
    ]
    network = Counted()
    with Runtime("cpu", 1) as runtime:
        store = FeatureStore(tmp_path / "features", runtime, most_bytes=4500)
        for number, some in enumerate(sets[:2]):
            store.features(network, some, OPENED, VIEWS)
            for file in files(tmp_path):
                os.utime(file, ns=(number, number))
        store.features(network, sets[0], OPENED, VIEWS)  # used last now
        store.features(network, sets[2], OPENED, VIEWS)
        assert network.seen == 120
        assert sum(file.stat().st_size for file in files(tmp_path)) <= 4500
        assert len(files(tmp_path)) == 2
        store.features(network, sets[0], OPENED, VIEWS)
        assert network.seen == 120
        store.features(network, sets[1], OPENED, VIEWS)
        assert network.seen == 160


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path, images: ImageSet) -> None:
    with Runtime("cpu", 1) as runtime:
        FeatureStore(tmp_path / "features", runtime, most_bytes=100).features(
            Counted(), images, OPENED, VIEWS
        )
    assert not (tmp_path / "features").exists()


def test_a_full_disk_is_told_once_and_features_come_all_the_same(
    store: FeatureStore, images: ImageSet, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(feature_store, "atomic_write", full)
    network = Counted()
    first = store.features(network, images, OPENED, VIEWS)
    assert torch.equal(first, store.features(network, images, OPENED, VIEWS))
    (sentence,) = heard.sentences
    assert "No space left on device" in sentence
    assert "features" in sentence


@pytest.fixture
def run(class_folder: Path, tmp_path: Path) -> Path:
    return finished_run(class_folder, tmp_path / "run")


@pytest.mark.slow
def test_evaluate_report_and_rank_extract_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict.fromkeys(("trained", "untrained"), 0)
    extract = encode

    def counted(network: nn.Module, images: ImageSet, *rest: Any, **more: Any) -> Tensor:
        seen["untrained" if "untrained" in more["of"] else "trained"] += len(images)
        return extract(network, images, *rest, **more)

    monkeypatch.setattr(feature_store, "encode", counted)
    found = evaluate(run, ["knn", "linear"], threads=1)
    assert seen == {"trained": 48, "untrained": 48}
    write_report(run, threads=1)
    rank_runs([run], checkpoints=False, labels=True, threads=1)
    assert evaluate(run, ["knn", "linear"], threads=1) == found
    assert seen == {"trained": 48, "untrained": 48}
    for file in (run / "features").iterdir():
        file.unlink()
    assert evaluate(run, ["knn", "linear"], threads=1) == found
    assert seen == {"trained": 96, "untrained": 96}


def test_an_evaluation_goes_on_where_nothing_can_be_kept(run: Path) -> None:
    found = evaluate(run, ["knn"], threads=1)
    for file in (run / "features").iterdir():
        file.unlink()
    (run / "features").rmdir()
    (run / "features").write_text("in the way")
    heard = Heard()
    assert evaluate(run, ["knn"], threads=1, progress=heard) == found
    assert len(heard.sentences) == 1


def test_features_depend_on_the_batch_size_by_rounding_only(run: Path, class_folder: Path) -> None:
    encoder = weights.load_encoder(run)
    few = diptych.extract_features(encoder, class_folder, threads=1, batch_size=7)
    many = diptych.extract_features(encoder, class_folder, threads=1, batch_size=256)
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-5)
