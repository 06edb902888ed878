"""The callable on batches: the same vectors as the command, whatever an image comes as."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych import Embedder
from diptych.embeddings.vectors import read_vectors
from diptych.errors import ConfigError, UnreadableImage
from embedding_runs import finish, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def test_a_batch_gets_the_vectors_of_the_command(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    finish(run, class_folder, tmp_path / "v.npy", normalize=True)
    wanted = read_vectors(tmp_path / "v.npy")
    files = [class_folder / name for name in wanted.names]
    encoded = [file.read_bytes() for file in files]
    embedder = Embedder(run, normalize=True, threads=1, batch_size=10)
    np.testing.assert_allclose(embedder(encoded), wanted.features, rtol=1e-5, atol=1e-6)
    arrays = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_array_equal(embedder(arrays), embedder(encoded))
    structs = [{"bytes": one, "path": None} for one in encoded]
    found = embedder({"name": wanted.names, "image": structs})
    assert list(found) == ["name", "checksum", "feature"]
    np.testing.assert_array_equal(found["feature"], embedder(encoded))
    assert found["checksum"].tolist() == wanted.checksums
    assert embedder([]).shape == (0, embedder.dim) == (0, wanted.dim)
    # Sent to another process, it holds settings and no network.
    sent = pickle.dumps(embedder)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)(encoded), embedder(encoded))


def test_wrong_batches_are_refused(run: Path, class_folder: Path) -> None:
    good = next(class_folder.rglob("*.png")).read_bytes()
    embedder = Embedder(run, threads=1)
    with pytest.raises(ConfigError, match=r"column= is 'image'; the batch has name, picture"):
        embedder({"name": ["a"], "picture": [good]})
    with pytest.raises(ConfigError, match="image 1 of the batch is a str"):
        embedder([good, "a.png"])
    with pytest.raises(UnreadableImage, match="image 1 of the batch cannot be read: not an image"):
        embedder([good, b"nothing"])
    with pytest.raises(UnreadableImage, match="wanted uint8"):
        embedder([np.zeros((8, 8, 3))])
    with pytest.raises(UnreadableImage, match="image 0 of the batch cannot be read: empty file"):
        embedder([None, good])
    found = Embedder(run, threads=1, unreadable="nan")(
        [good, b"nothing", good, None, {"bytes": None, "path": None}]
    )
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False, True, True]
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)
    with pytest.raises(ConfigError, match="refuse or nan"):
        Embedder(run, unreadable="skip")  # type: ignore[arg-type]
