"""Search: an image of the set, an image file, a folder; faiss where it is installed."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from diptych.cli.main import main
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.curation.search import (
    FaissIndex,
    embed_queries,
    find_row,
    recall_at,
    search_images,
    search_rows,
)
from diptych.embeddings.embed import embed
from diptych.embeddings.neighbours import nearest
from diptych.embeddings.vectors import VectorSet, read_vectors
from diptych.errors import ConfigError, EmbeddingsError
from diptych.gallery.upload import Search
from diptych.models.weights import save_encoder, untrained_encoder
from embedding_runs import make, write_run

needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="faiss is not installed"
)


def made_up(count: int = 50, dim: int = 6, seed: int = 0) -> VectorSet:
    features = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return VectorSet(Path("v.npy"), features, [f"{row}.png" for row in range(count)])


def test_a_row_finds_the_others_and_not_itself() -> None:
    vectors = made_up()
    result = search_rows(vectors, [7, 3], 4)
    wanted = nearest(vectors.features, vectors.features, 4, exclude_own_row=True)
    np.testing.assert_array_equal(result.found.rows, wanted.rows[[7, 3]])
    np.testing.assert_allclose(result.found.similarities, wanted.similarities[[7, 3]], rtol=1e-6)
    assert result.queries == ["7.png", "3.png"]


def test_a_row_with_more_copies_than_wanted_is_not_found_itself() -> None:
    vectors = made_up()
    vectors.features[:10] = vectors.features[9]
    result = search_rows(vectors, [9], 3)
    assert set(result.found.rows[0].tolist()) <= set(range(9))


def test_images_of_another_encoder_are_refused() -> None:
    with pytest.raises(EmbeddingsError, match="same encoder"):
        search_images(made_up(), made_up(dim=5), 3)


def test_an_image_of_the_set_is_named_by_row_or_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = made_up()
    assert find_row(vectors, "12") == 12
    assert find_row(vectors, "3.png") == 3
    assert find_row(vectors, "elsewhere.png") is None
    with pytest.raises(ConfigError, match="rows 0 to 49"):
        find_row(vectors, "50")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "12").mkdir()  # what is there comes before a number
    assert find_row(vectors, "12") is None


def test_vectors_that_do_not_say_how_they_were_made_take_no_image() -> None:
    with pytest.raises(EmbeddingsError, match="does not say how"):
        embed_queries(made_up(), "runs/x", "query.png")


def test_faiss_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"diptych\[search\]"):
        search_rows(made_up(), [0], 3, index="faiss")


def test_recall_is_the_share_that_was_found() -> None:
    wanted = np.array([[1, 2], [3, 4]])
    assert recall_at(wanted, np.array([[2, 9], [4, 3]])) == 0.75


@needs_faiss
def test_faiss_reaches_the_recall_that_it_says() -> None:
    vectors = made_up(4000, 16)
    index = FaissIndex.of(vectors.features)
    queries = made_up(300, 16, seed=1).features
    found = index.nearest(queries, 10)
    exact = nearest(queries, vectors.features, 10)
    assert index.recall >= 0.95
    assert recall_at(exact.rows, found.rows) == pytest.approx(index.recall, abs=0.05)
    same = found.rows[:, 0] == exact.rows[:, 0]
    np.testing.assert_allclose(found.similarities[same, 0], exact.similarities[same, 0], atol=1e-5)


@pytest.mark.slow
def test_an_image_file_is_embedded_as_the_set_was(
    tmp_path: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, out = tmp_path / "e.safetensors", tmp_path / "v"
    config = RunConfig(encoder=EncoderConfig(width=8, stage_blocks=(1,)))
    save_encoder(encoder, untrained_encoder(config), config)
    embed(encoder, class_folder, out, normalize=True)
    vectors = read_vectors(out)
    file = class_folder / vectors.names[3]
    arguments = ["search", str(out), "--image", str(file), "--source", str(encoder), "--k", "2"]
    assert main([*arguments, "-o", str(tmp_path / "found.csv")]) == 0
    lines = (tmp_path / "found.csv").read_text().splitlines()
    assert lines[1].split(",")[2] == vectors.names[3]
    assert float(lines[1].split(",")[3]) == pytest.approx(1.0, abs=1e-5)
    assert (tmp_path / "found.html").read_text().count("data:image") == 3  # the query too
    other = tmp_path / "other.safetensors"
    save_encoder(other, untrained_encoder(replace(config, seed=9)), replace(config, seed=9))
    arguments[5] = str(other)
    capsys.readouterr()
    assert main(arguments) == 2
    assert "made differently: encoder: " in capsys.readouterr().err


def test_an_image_is_embedded_by_the_map_where_the_set_has_maps(
    tmp_path: Path, class_folder: Path
) -> None:
    run = write_run(tmp_path / "run")
    make(run, class_folder, tmp_path / "v", 1, maps=True)
    vectors = read_vectors(tmp_path / "v")
    file = class_folder / vectors.names[3]
    queries = embed_queries(vectors, str(run), str(file))
    assert search_images(vectors, queries, 1).found.rows.tolist() == [[3]]
    uploaded = Search.of(vectors).embed(file.read_bytes())
    np.testing.assert_allclose(uploaded, vectors.features[3], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_image_is_seen_at_the_side_that_was_chosen_for_foreign_weights(
    tmp_path: Path, class_folder: Path
) -> None:
    weights, out = tmp_path / "theirs.pth", tmp_path / "v.npy"
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), weights)
    embed(weights, class_folder, out, encoder="timm:test_resnet", side_pixels=48)
    vectors = read_vectors(out)
    file = str(class_folder / vectors.names[3])
    found = embed_queries(vectors, str(weights), file, encoder="timm:test_resnet")
    nearest_one = search_images(vectors, found, 1).found
    assert nearest_one.rows.tolist() == [[3]]
    assert nearest_one.similarities[0, 0] == pytest.approx(1.0, abs=1e-5)
