"""The map: near what is near, the same at every call, kept until the vectors change."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diptych.embeddings.neighbours import nearest
from diptych.embeddings.vectors import VectorSet
from diptych.gallery import contents
from diptych.gallery.contents import open_gallery
from diptych.gallery.map import MapProcess, first_directions, fit_square, umap_of
from diptych.gallery.pieces import Failed
from served_gallery import QuickMap, small_set, two_groups


def test_points_fill_the_square() -> None:
    points = fit_square(np.array([[10.0, 5.0], [30.0, 10.0], [20.0, 7.0]]))
    np.testing.assert_allclose(points, [[-1, -0.25], [1, 0.25], [0, -0.05]], atol=1e-6)
    assert fit_square(np.ones((3, 2))).tolist() == [[0, 0]] * 3


def test_the_map_begins_along_the_directions_of_most_variance() -> None:
    features = two_groups()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    _, _, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    wanted = centred @ directions[:2].T
    np.testing.assert_allclose(np.abs(first_directions(features)), np.abs(wanted), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_images_are_drawn_without_a_graph(count: int) -> None:
    features = two_groups()[:count]
    found = nearest(features, features, 14, exclude_own_row=True)
    points = umap_of(found, first_directions(features))
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()


def test_maps_are_kept_until_vectors_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[int]()

    class Counted(QuickMap):
        def draw(self, features, found, progress):  # type: ignore[no-untyped-def]
            drawn.append(len(features))
            return super().draw(features, found, progress)

    monkeypatch.setattr(contents, "MapProcess", Counted)
    vectors = small_set(tmp_path)
    other = VectorSet(vectors.source, two_groups(1), vectors.names, vectors.labels)
    for one in (vectors, vectors, other, other, vectors):
        gallery = open_gallery(one)
        gallery.maps["A"].make()
        gallery.close()
    assert len(drawn) == 3
    assert len(list(gallery.folder.glob("umap-A-*"))) == 1


def test_a_second_run_is_put_beside_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MapProcess", QuickMap)
    vectors = small_set(tmp_path)
    rows = [9, 3, 5, 60]
    some = VectorSet(tmp_path / "other", two_groups(1)[rows], [vectors.names[row] for row in rows])
    gallery = open_gallery(vectors, against=some)
    points = gallery.maps["B"].make()
    assert np.flatnonzero(np.isfinite(points[:, 0])).tolist() == sorted(rows)
    for row in rows:
        np.testing.assert_array_equal(points[row], np.clip(two_groups(1)[row, :2], -1, 1))
    assert set(gallery.runs.by_name()["B"].nearest_to_row(9, 10).rows.tolist()) == {3, 5, 60}
    gallery.close()


@pytest.mark.slow
def test_umap_puts_groups_apart_in_the_same_way_each_time() -> None:
    features = two_groups()
    found = nearest(features, features, 20, exclude_own_row=True)
    maps, shares = [], list[float]()
    for _ in range(2):
        process = MapProcess()
        maps.append(process.draw(features, found, shares.append))
        process.close()
    np.testing.assert_array_equal(maps[0], maps[1])
    assert shares[-1] == 1.0
    assert np.abs(maps[0]).max() == 1.0
    groups = [maps[0][start::2] for start in (0, 1)]
    apart = np.linalg.norm(groups[0].mean(axis=0) - groups[1].mean(axis=0))
    assert apart > 2 * max(group.std(axis=0).max() for group in groups)


@pytest.mark.slow
def test_a_map_that_cannot_be_drawn_is_said() -> None:
    process = MapProcess()
    features = two_groups()
    found = nearest(features, features, 20, exclude_own_row=True)
    process._process.kill()
    with pytest.raises(Failed, match="could not be drawn"):
        process.draw(features, found, lambda share: None)
    process.close()


@pytest.mark.slow
def test_the_process_ends_with_its_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diptych.gallery.map", str(tmp_path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 1
