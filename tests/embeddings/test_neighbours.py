"""Exact neighbours: the same as sorting all cosines, whatever the blocks."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from diptych.embeddings import neighbours as module
from diptych.embeddings.neighbours import nearest

RNG = np.random.default_rng(3)


def made_up(count: int, dim: int = 8) -> np.ndarray:
    return RNG.normal(size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("blocks", [(1 << 26, 1024), (400, 7)])
@pytest.mark.parametrize("own", [False, True])
def test_neighbours_are_those_of_all_cosines(
    blocks: tuple[int, int], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", blocks[0])
    monkeypatch.setattr(module, "_ROWS", blocks[1])
    searched = made_up(50)
    queries = searched if own else made_up(20)
    found = nearest(queries, searched, 5, exclude_own_row=own)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        searched / np.linalg.norm(searched, axis=1, keepdims=True)
    ).T
    if own:
        np.fill_diagonal(cosines, -np.inf)
    wanted = np.argsort(-cosines, axis=1)[:, :5]
    np.testing.assert_array_equal(found.rows, wanted)
    np.testing.assert_allclose(
        found.similarities, np.take_along_axis(cosines, wanted, axis=1), atol=1e-6
    )


def test_of_equal_ones_the_first_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 1024 * 3)
    same = np.tile(made_up(1), (10, 1))
    assert nearest(same[:2], same, 4).rows.tolist() == [[0, 1, 2, 3]] * 2
    monkeypatch.undo()  # in one block too, of many equal ones
    many = np.tile(made_up(1), (100, 1))
    assert nearest(many[:2], many, 4).rows.tolist() == [[0, 1, 2, 3]] * 2
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 1024 * 3)
    assert nearest(same, same, 2, exclude_own_row=True).rows[:3].tolist() == [
        [1, 2],
        [0, 2],
        [0, 1],
    ]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_among_many_columns_too_and_where_cosines_are_equal(k: int) -> None:
    searched = np.sign(made_up(4001, dim=6)).astype(np.float32)  # 64 different ones at most
    searched[1000:2500] = made_up(1500, dim=6)
    found = nearest(searched[990:1010], searched, k)
    unit = functional.normalize(torch.from_numpy(searched), dim=1)
    cosines = (unit[990:1010] @ unit.T).numpy()
    wanted = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.rows, wanted)


def test_fewer_than_wanted_are_all_there_are() -> None:
    assert nearest(made_up(3), made_up(2), 9).rows.shape == (3, 2)
    assert nearest(made_up(1), made_up(1), 3, exclude_own_row=True).rows.shape == (1, 0)
