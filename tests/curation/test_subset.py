"""What to label next, against plain loops over all images."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.curation import subset
from diptych.curation.subset import choose_subset, find_labelled
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError, EmbeddingsError

Features = NDArray[np.float32]


@pytest.fixture
def features(rng: np.random.Generator) -> Features:
    return rng.normal(size=(60, 5)).astype(np.float32)


def cosines(features: Features) -> NDArray[np.float64]:
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("labelled", [[], [3, 17, 40]])
def test_k_centre_takes_the_farthest_each_time(
    labelled: list[int], features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset, "_BLOCK", 2)
    chosen = choose_subset(features, 12, "k-centre", labelled=np.array(labelled, dtype=np.int64))
    there, distance = list(labelled), np.sqrt(np.maximum(2 - 2 * cosines(features), 0))
    for number, (row, score) in enumerate(zip(chosen.rows.tolist(), chosen.scores, strict=True)):
        if number or labelled:
            nearest = distance[:, there].min(axis=1)
            assert row == nearest.argmax()
            assert score == pytest.approx(nearest.max(), abs=1e-5)
        there.append(row)
    assert len(set(there)) == 12 + len(labelled)


@pytest.mark.parametrize("labelled", [[], [3, 17, 40]])
def test_lazy_greedy_is_greedy(
    labelled: list[int], features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset, "_BLOCK", 7)
    monkeypatch.setattr(subset, "_RECOUNTED", 3)
    chosen = choose_subset(
        features, 12, "facility-location", labelled=np.array(labelled, dtype=np.int64)
    )
    similar, there = (1 + cosines(features)) / 2, list(labelled)
    for row, score in zip(chosen.rows.tolist(), chosen.scores, strict=True):
        covered = similar[:, there].max(axis=1) if there else np.zeros(len(similar))
        gains = np.maximum(similar - covered[:, None], 0).mean(axis=0)
        gains[there] = -1
        assert row == gains.argmax()
        assert score == pytest.approx(gains.max(), abs=1e-6)
        there.append(row)
    if not labelled:  # at least 1 - 1/e of the best pair (Nemhauser et al. 1978)
        best = max(
            similar[:, pair].max(axis=1).mean()
            for pair in map(list, itertools.combinations(range(60), 2))
        )
        assert chosen.scores[:2].sum() >= (1 - np.exp(-1)) * best


def test_typical_takes_the_dense_part_of_each_cluster(rng: np.random.Generator) -> None:
    centres = np.eye(4, 8)
    spread = np.concatenate([np.full(10, 0.02), np.full(10, 0.3)])  # a dense core, a loose rest
    parts = [one + spread[:, None] * rng.normal(size=(20, 8)) for one in centres]
    features = np.concatenate(parts).astype(np.float32)
    chosen = choose_subset(features, 4, "typical")
    assert sorted((chosen.rows // 20).tolist()) == [0, 1, 2, 3]
    assert all(row % 20 < 10 for row in chosen.rows.tolist())
    # A cluster with a label is passed over.
    again = choose_subset(features, 3, "typical", labelled=np.array([45]))
    assert sorted((again.rows // 20).tolist()) == [0, 1, 3]
    all_the_rest = choose_subset(features, 79, "typical", labelled=np.array([45]))
    assert sorted([45, *all_the_rest.rows.tolist()]) == list(range(80))


def test_uncertain_takes_the_smallest_margins(features: Features) -> None:
    chances = np.array([[0.9, 0.1, 0.0], [0.5, 0.45, 0.05], [0.34, 0.33, 0.33], [0.6, 0.2, 0.2]])
    chosen = choose_subset(
        features[:4], 2, "uncertain", probabilities=chances, labelled=np.array([2])
    )
    assert chosen.rows.tolist() == [1, 3]
    assert chosen.scores == pytest.approx([0.95, 0.6])
    with pytest.raises(ConfigError, match="--model"):
        choose_subset(features, 2, "uncertain")


@pytest.mark.parametrize("way", ["k-centre", "facility-location", "typical"])
def test_equal_images_and_small_sets_end(way: subset.Way) -> None:
    equal = np.ones((6, 3), dtype=np.float32)
    chosen = choose_subset(equal, 5, way, labelled=np.array([0]))
    assert sorted(chosen.rows.tolist()) == [1, 2, 3, 4, 5]
    assert np.isfinite(chosen.scores).all()
    with pytest.raises(ConfigError, match="between 1 and 5"):
        choose_subset(equal, 6, way, labelled=np.array([0]))
    with pytest.raises(ConfigError, match="from 0 to 5"):
        choose_subset(equal, 1, way, labelled=np.array([6]))


def test_what_is_labelled_is_found_by_name(features: Features, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(60)]
    labels = ["a" if number < 5 else None for number in range(60)]
    vectors = VectorSet(tmp_path / "v", features, names, labels)
    (tmp_path / "done.csv").write_text("name,label\n7.png,a\nother.png,b\n7.png,a\n")
    found = find_labelled(vectors, str(tmp_path / "done.csv"))
    assert (found.rows.tolist(), found.unknown) == ([7], 1)
    (tmp_path / "done.txt").write_text("# diptych subset\n8.png\n\n9.png\n")
    found = find_labelled(vectors, str(tmp_path / "done.txt"))
    assert (found.rows.tolist(), found.unknown) == ([8, 9], 0)
    assert find_labelled(vectors, "labels").rows.tolist() == [0, 1, 2, 3, 4]
    assert not len(find_labelled(vectors, None).rows)
    (tmp_path / "other.csv").write_text("file\n7.png\n")
    for given, error in (
        ("nowhere.csv", ConfigError),
        (tmp_path / "other.csv", ConfigError),
        (tmp_path, ConfigError),
    ):
        with pytest.raises(error, match="--labelled"):
            find_labelled(vectors, str(given))
    (tmp_path / "done.txt").write_text("x.png\n")
    with pytest.raises(EmbeddingsError, match="none of its 1 names"):
        find_labelled(vectors, str(tmp_path / "done.txt"))
