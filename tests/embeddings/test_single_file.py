"""One file of vectors: as a folder of shards has them, kept by checksum, and nothing is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from diptych.embeddings.shard_files import MANIFEST, read_embeddings
from diptych.embeddings.vectors import VectorSet, read_vectors
from diptych.errors import ConfigError, EmbeddingsError
from diptych.models.weight_files import file_checksum
from embedding_runs import finish, make, write_run

FORMS = ("v.parquet", "v.npy", "v.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def same(one: VectorSet, other: VectorSet) -> bool:
    return (
        one.features.tobytes() == other.features.tobytes()
        and list(one.names) == list(other.names)
        and list(one.labels or ()) == list(other.labels or ())
        and list(one.checksums or ()) == list(other.checksums or ())
        and one.root == other.root
    )


def test_a_folder_of_shards_is_read_as_vectors(
    run: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(class_folder.parent)
    make(run, class_folder.name, tmp_path / "out", 3)
    monkeypatch.chdir(tmp_path)  # the images are found from anywhere
    found, stored = read_vectors(tmp_path / "out"), read_embeddings(tmp_path / "out")
    np.testing.assert_array_equal(found.features, stored.features)
    assert list(found.names) == list(stored.names)
    assert found.labels is not None
    assert all(
        name.startswith(f"{label}/") for name, label in zip(found.names, found.labels, strict=True)
    )
    assert [one for chunk in stored.chunks() for one in chunk.checksums] == found.checksums
    assert found.settings is not None
    assert found.settings["encoder"] == file_checksum(run / "encoder.safetensors")
    assert found.settings["layer"] == "h"
    assert found.root == class_folder
    assert all((found.root / name).is_file() for name in found.names)
    # Vectors of others may name anything; only what is on this machine is opened.
    manifest = tmp_path / "out" / MANIFEST
    for named, kept in (("https://example.invalid/a.tar", None), ("photographs", "photographs")):
        note = json.loads(manifest.read_text())
        note["made"]["path"] = named
        manifest.write_text(json.dumps(note))
        assert read_vectors(tmp_path / "out").path == kept


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_holds_what_a_folder_does(
    form: str, precision: str, run: Path, class_folder: Path, tmp_path: Path
) -> None:
    make(run, class_folder, tmp_path / "folder", 1, precision=precision)
    [done], _ = finish(run, class_folder, tmp_path / form, precision=precision)
    found = read_vectors(tmp_path / form)
    assert same(found, read_vectors(tmp_path / "folder"))
    assert (done.images, done.kept, done.was_there) == (48, 0, False)
    if form == "v.npy":
        assert np.load(tmp_path / form).dtype == precision
    before = {file: file.stat().st_ino for file in tmp_path.glob("v.*")}
    [again], _ = finish(run, class_folder, tmp_path / form, precision=precision)
    assert again.was_there
    assert {file: file.stat().st_ino for file in tmp_path.glob("v.*")} == before


@pytest.mark.parametrize("form", [*FORMS, "folder", "three"])
def test_only_new_images_are_embedded(
    form: str, run: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, count = tmp_path / form, 3 if form == "three" else 1
    finish(run, class_folder, out, count)
    before = read_vectors(out)
    renamed, gone, changed = (class_folder / f"class0/00{i}.png" for i in (1, 2, 3))
    renamed.rename(class_folder / "class2" / "zzz.png")
    gone.unlink()
    shutil.copy(class_folder / "class1" / "000.png", changed)  # there already, as another
    (class_folder / "class1" / "bad.png").write_bytes(b"none")
    from PIL import Image

    Image.new("RGB", (40, 30), (9, 200, 90)).save(class_folder / "class1" / "new.png")
    from diptych.embeddings.encode_views import ViewEncoder

    seen = list[int]()
    original = ViewEncoder.vectors

    def vectors(self: ViewEncoder, views: tuple) -> np.ndarray:  # type: ignore[type-arg]
        seen.append(len(views[0]))
        return original(self, views)

    monkeypatch.setattr(ViewEncoder, "vectors", vectors)
    done, said = finish(run, class_folder, out, count)
    # A blank one to learn the length, the new one, and a blank one for the bad.
    assert sum(seen) == 3
    assert sum(one.images for one in done) == 48
    assert sum(one.kept for one in done) == 47
    assert sum(one.skipped for one in done) == 1
    assert "2 vectors are dropped: the images are gone or have changed." in said
    after, old = read_vectors(out), dict(zip(before.names, before.features, strict=True))
    now = dict(zip(after.names, after.features, strict=True))
    assert (now["class2/zzz.png"] == old["class0/001.png"]).all()
    assert (now["class0/003.png"] == old["class1/000.png"]).all()
    monkeypatch.undo()
    finish(run, class_folder, tmp_path / "fresh.npy")
    fresh = read_vectors(tmp_path / "fresh.npy")
    assert list(fresh.names) == list(after.names)
    assert fresh.checksums == after.checksums
    assert fresh.labels == after.labels
    np.testing.assert_allclose(after.features, fresh.features, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", [*FORMS, "folder", "three"])
def test_images_that_moved_are_found_where_they_are(
    form: str, run: Path, class_folder: Path, tmp_path: Path
) -> None:
    out, count, moved = tmp_path / form, 3 if form == "three" else 1, tmp_path / "moved"
    finish(run, class_folder, out, count)
    before = read_vectors(out)
    class_folder.rename(moved)
    done, _ = finish(run, moved, out, count)
    assert sum(one.kept for one in done) == 48
    after = read_vectors(out)
    assert after.root == moved
    assert after.features.tobytes() == before.features.tobytes()
    assert all(one.was_there for one in finish(run, moved, out, count)[0])
    (moved / "class0" / "003.png").unlink()
    done, _ = finish(run, moved, out, count)
    assert sum(one.images for one in done) == 47


@pytest.mark.parametrize("form", FORMS)
def test_the_list_of_skipped_images_is_that_of_the_last_call(
    form: str, run: Path, class_folder: Path, tmp_path: Path
) -> None:
    listed, bad = tmp_path / "v.skipped.csv", class_folder / "class0" / "bad.png"
    bad.write_bytes(b"none")
    finish(run, class_folder, tmp_path / form)
    said = listed.read_bytes()
    listed.unlink()
    [done], _ = finish(run, class_folder, tmp_path / form)
    assert (done.was_there, done.skipped) == (True, 1)
    assert listed.read_bytes() == said
    bad.unlink()
    finish(run, class_folder, tmp_path / form)
    assert not listed.exists()
    settings = read_vectors(tmp_path / form).settings
    assert settings is not None
    assert settings["images"] == 48


@pytest.mark.parametrize("form", FORMS)
def test_files_of_others_are_not_replaced(
    form: str, run: Path, class_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / form).write_bytes(b"mine")
    with pytest.raises(EmbeddingsError, match=r"diptych embed. did not write it"):
        finish(run, class_folder, tmp_path / form)
    assert (tmp_path / form).read_bytes() == b"mine"
    (tmp_path / form).unlink()
    finish(run, class_folder, tmp_path / form)
    kept = (tmp_path / form).read_bytes()
    with pytest.raises(EmbeddingsError, match="normalized: False there, True now"):
        finish(run, class_folder, tmp_path / form, normalize=True)
    other = tmp_path / "other"
    shutil.copytree(class_folder, other)
    (other / "class0" / "003.png").unlink()
    with pytest.raises(EmbeddingsError, match=r"has vectors of the images of .*; these are of"):
        finish(run, other, tmp_path / form)
    assert (tmp_path / form).read_bytes() == kept


def test_a_table_beside_is_not_replaced_either(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "v.csv").write_text("name,label\n")
    with pytest.raises(EmbeddingsError, match=r"v\.csv is there"):
        finish(run, class_folder, tmp_path / "v.npy")
    (tmp_path / "v.csv").unlink()
    finish(run, class_folder, tmp_path / "v.npy")
    with pytest.raises(EmbeddingsError, match=r"v\.csv is there"):
        finish(run, class_folder, tmp_path / "v.csv")


def test_a_list_of_skipped_images_of_others_stays(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "v.skipped.csv"
    for form in FORMS:
        listed.write_text("frame,why\n1,blurred\n")
        with pytest.raises(ConfigError, match=r"v\.skipped\.csv is there.* no list of this"):
            finish(run, class_folder, tmp_path / form)
    listed.write_text("name,reason\na.png,damaged\n")  # of predictions
    (tmp_path / "v.csv").write_text("name,label,predicted\n")
    with pytest.raises(ConfigError, match=r"may belong to v\.csv"):
        finish(run, class_folder, tmp_path / "v.parquet")
    assert listed.read_text().endswith("damaged\n")
    (tmp_path / "v.csv").unlink()
    finish(run, class_folder, tmp_path / "v.parquet")  # as of an earlier call that was killed
    assert not listed.exists()


def test_no_table_is_written_that_an_array_would_take_for_its_own(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, 3)))
    with pytest.raises(EmbeddingsError, match=r"v\.npy is there"):
        finish(run, class_folder, tmp_path / "v.csv")
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["v.npy"]


def test_what_was_cut_off_is_made_anew(run: Path, class_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    finish(run, class_folder, out)
    whole = read_vectors(out)
    rows = (tmp_path / "v.csv").read_text().splitlines(keepends=True)
    # The table of others, as after a kill between two files.
    (tmp_path / "v.csv").write_text("".join([rows[0], *reversed(rows[1:])]))
    with pytest.raises(EmbeddingsError, match=r"are not those of v\.json"):
        read_vectors(out)
    _, said = finish(run, class_folder, out)
    assert "is damaged and made anew" in said[0]
    assert same(read_vectors(out), whole)
    note = json.loads((tmp_path / "v.json").read_text())
    assert note["shard"]["file"] == "v.npy"


def test_a_file_is_made_by_one_process(run: Path, class_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is one file, which one process makes"):
        finish(run, class_folder, tmp_path / "v.npy", 2)
    (tmp_path / "d.csv").mkdir()
    finish(run, class_folder, tmp_path / "d.csv", 2)  # a folder of that name is a folder
    assert len(read_vectors(tmp_path / "d.csv")) == 48


def test_damaged_shards_are_not_kept(run: Path, class_folder: Path, tmp_path: Path) -> None:
    [file] = make(run, class_folder, tmp_path / "out", 1)
    whole, vector = file.read_bytes(), read_embeddings(tmp_path / "out").features[20].tobytes()
    place = whole.index(vector)
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    (class_folder / "class0" / "003.png").unlink()
    with pytest.raises(EmbeddingsError, match="an earlier call wrote are damaged"):
        make(run, class_folder, tmp_path / "out", 1)
