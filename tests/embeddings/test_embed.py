"""Embeddings on disk: shards are the whole, done once, and those of another set are refused."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import diptych
from diptych.config.downstream import EmbedSettings
from diptych.curation.thumbnails import Thumbnails
from diptych.embeddings.embed import embed_images
from diptych.embeddings.embed_progress import EmbedProgress
from diptych.embeddings.encode_views import ViewMaker
from diptych.embeddings.shard_files import read_embeddings
from diptych.embeddings.shards import Shard, own_shards, parse_shard
from diptych.embeddings.vectors import read_vectors
from diptych.errors import ConfigError, EmbeddingsError, ImagesError, UnreadableImage
from diptych.evaluation.features import extract_features
from diptych.images.codecs.decode import decode_bytes, read_bytes
from diptych.models.start import open_encoder
from diptych.models.weights import (
    load_encoder,
    load_head,
    save_encoder,
    untrained_encoder,
)
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime
from diptych.runtime.world import World
from embedding_runs import CONFIG, finish, make, write_run

BATCH: Any = {"batch_size": 8, "threads": 1}  # 48 images: six batches, which three shards cut


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("gallery") / "run")


def test_shards_are_the_whole(run: Path, class_folder: Path, tmp_path: Path) -> None:
    make(run, class_folder, tmp_path / "one", 1)
    whole = read_embeddings(tmp_path / "one")
    for index in range(3):
        diptych.embed(run, class_folder, tmp_path / "3", (index, 3), **BATCH)
    make(run, class_folder, tmp_path / "5", 5)
    make(run, class_folder, tmp_path / "60", 60)  # some are empty
    for count in (3, 5, 60):
        found = read_embeddings(tmp_path / str(count))
        assert found.names == whole.names
        assert found.features.tobytes() == whole.features.tobytes()
    # The oracle: features as evaluation has them, whose last batch has another size.
    wanted = extract_features(load_encoder(run), class_folder, threads=1)
    np.testing.assert_allclose(whole.features, wanted.numpy(), rtol=1e-5, atol=1e-6)
    files = sorted(str(file.relative_to(class_folder)) for file in class_folder.rglob("*.png"))
    assert list(whole.names) == files
    assert len(whole) == 48
    assert whole.dim == wanted.shape[1] == CONFIG.encoder.width


@pytest.mark.parametrize("layer", ["h", "g", "blocks.0"])
def test_threads_with_a_batch_each_give_the_same_vectors(
    layer: str, run: Path, class_folder: Path, tmp_path: Path
) -> None:
    images, before = shutil.copytree(class_folder, tmp_path / "some"), torch.get_num_threads()
    sorted(images.rglob("*.png"))[20].write_bytes(b"no image")
    found = []
    try:
        for threads in (1, 5):
            settings: Any = {"batch_size": 4, "threads": threads, "max_unreadable_share": 0.5}
            diptych.embed(run, images, tmp_path / str(threads), layer=layer, **settings)
            assert torch.get_num_threads() == threads
            found.append(read_embeddings(tmp_path / str(threads)))
    finally:
        torch.set_num_threads(before)
    one, several = found
    assert len(one) == 47
    assert one.names == several.names
    assert one.features.tobytes() == several.features.tobytes()


class Lines(EmbedProgress):
    """Keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def say(self, sentence: str) -> None:
        self._said.append(sentence)


def test_what_is_held_out_is_said_once(run: Path, class_folder: Path, tmp_path: Path) -> None:
    """Of a folder with a test part the other one is embedded, and that is no secret."""
    both = tmp_path / "both"
    shutil.copytree(class_folder, both / "train")
    names = sorted(class_folder.rglob("*.png"))[:7]
    for number, name in enumerate(names):
        target = both / "test" / name.parent.name / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)
    said: list[list[str]] = []
    for path, shards in ((both, (0, 1)), (both, (1,)), (both / "test", (0,))):
        said.append([])
        with Runtime(threads=1, batch_size=8) as runtime:
            for _ in embed_images(
                str(run),
                open_encoder(str(run)),
                path,
                tmp_path / f"out-{len(said)}",
                [Shard(index, 2) for index in shards],
                EmbedSettings(),
                runtime,
                Lines(said[-1]),
            ):
                pass
    assert said == [
        [
            f"Not embedded: 7 images of {both} that are held out as test. Name their own folder "
            "or file for those."
        ],
        [],
        [],
    ]
    assert len(read_embeddings(tmp_path / "out-1")) == 48


def test_what_is_not_embedded_is_said(run: Path, class_folder: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(class_folder, tmp_path / "photos"))
    (photos / "notes.docx").write_bytes(b"x")
    _, said = finish(run, photos, tmp_path / "out")
    assert any("docx" in sentence for sentence in said), said


def test_vectors_say_which_pictures_of_a_source_they_are_of(
    tmp_path: Path, class_folder: Path
) -> None:
    run = write_run(tmp_path / "run")
    config = load_encoder(run).config
    images = replace(config.images, exclude=("class0",))
    save_encoder(
        run / "encoder.safetensors", untrained_encoder(config), replace(config, images=images)
    )
    make(run, class_folder, tmp_path / "vectors", 1)
    vectors = read_vectors(tmp_path / "vectors")
    assert vectors.settings is not None
    assert vectors.settings["source"]["exclude"] == ["class0"]
    found = Thumbnails.of(vectors)
    assert found.rows is not None
    assert list(found.rows.names) == list(vectors.names)
    plain = write_run(tmp_path / "plain")
    make(plain, class_folder, tmp_path / "of-all", 1)
    assert "source" not in (read_vectors(tmp_path / "of-all").settings or {})


@pytest.mark.parametrize("rows", [1, 7, 16, 48, 100])
def test_row_groups_of_any_size_hold_the_same_rows(
    rows: int, run: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller than a batch, larger, and cut by its end."""
    [whole] = make(run, class_folder, tmp_path / "whole", 1)
    monkeypatch.setattr("diptych.embeddings.shard_files._MOST_GROUP_ROWS", rows)
    [cut] = make(run, class_folder, tmp_path / "cut", 1)
    file = pq.ParquetFile(cut)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sum(counts) == 48
    assert set(counts[:-1]) <= {rows}
    assert counts[-1] <= rows
    assert file.read().equals(pq.read_table(whole))


def test_files_say_what_they_are(run: Path, class_folder: Path, tmp_path: Path) -> None:
    files = make(run, class_folder, tmp_path / "out", 3, precision="float16", normalize=True)
    assert [file.name for file in files] == [f"features-0000{i}-of-00003.parquet" for i in range(3)]
    table = pq.read_table(files[1])
    assert table.schema.names == ["name", "label", "checksum", "feature"]
    assert str(table.schema.field("feature").type) == "fixed_size_list<element: halffloat>[4]"
    assert table["label"].to_pylist() == ["class1"] * 16
    lengths = np.linalg.norm(np.array(table["feature"].to_pylist(), dtype=np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)
    note = json.loads(pq.read_metadata(files[1]).metadata[b"diptych"])
    assert note["format"] == 2
    assert (note["shard"]["first"], note["shard"]["stop"]) == (16, 32)
    assert note["settings"]["dim"] == 4
    assert note["settings"]["views"]["side_pixels"] == 16
    assert note["made"]["run"] == str(run)
    manifest = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert manifest["settings"] == note["settings"]
    assert manifest["shard"] == {}


def test_another_reader_understands_them(run: Path, class_folder: Path, tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    files = make(run, class_folder, tmp_path / "out", 2)
    found = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=str(tmp_path))
    mine = read_embeddings(tmp_path / "out")
    vectors = np.array(found["feature"][:], dtype=np.float32)
    assert vectors.tobytes() == mine.features.tobytes()
    assert list(found["name"][:]) == list(mine.names)


def test_layers_and_crops(run: Path, class_folder: Path, tmp_path: Path) -> None:
    h = extract_features(load_encoder(run), class_folder, threads=1)
    make(run, class_folder, tmp_path / "g", 1, layer="g")
    found = read_embeddings(tmp_path / "g").features
    np.testing.assert_allclose(found, load_head(run)(h).numpy(), rtol=1e-4, atol=1e-5)
    make(run, class_folder, tmp_path / "hidden", 1, layer="hidden 1")
    assert read_embeddings(tmp_path / "hidden").dim == 6
    make(run / "encoder.safetensors", class_folder, tmp_path / "five", 1, crops="five")
    wanted = extract_features(load_encoder(run), class_folder, crops="five", threads=1)
    found = read_embeddings(tmp_path / "five").features
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="this run has the layers h, hidden 1, g"):
        make(run, class_folder, tmp_path / "x", 1, layer="hidden 2")


def test_finished_shards_are_left_alone(
    run: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first, second = make(run, class_folder, out, 2)
    before, bytes_of_second = first.stat(), second.read_bytes()
    second.write_bytes(bytes_of_second[:-40])  # cut off by a disk: no footer
    read = list[str]()
    original = ViewMaker.make

    def made(self: Any, rows: range, reader: Any) -> Any:
        read.append(str(rows))
        return original(self, rows, reader)

    monkeypatch.setattr(ViewMaker, "make", made)
    make(run, class_folder, out, 2)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert second.read_bytes() == bytes_of_second
    assert read == ["range(24, 32)", "range(32, 40)", "range(40, 48)"]


def test_shards_of_another_set_are_refused(run: Path, class_folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", write_run(tmp_path / "other", seed=1)
    make(run, class_folder, out, 2)

    def refused(match: str, run: Path = run, count: int = 2, **settings: Any) -> None:
        with pytest.raises(EmbeddingsError, match=match):
            make(run, class_folder, out, count, **settings)

    refused("another encoder: encoder: ", run=other)
    refused("precision: float32 there, float16 now", precision="float16")
    refused("shards: 2 there, 4 now", count=4)
    refused(r"layer: h there, g\(h\) now.*head: nothing there", layer="g")
    refused(r"views\.crops: center there, five now", crops="five")
    refused("batch_size: 8 there, 4 now", batch_size=4)
    (out / "embeddings.json").unlink()  # then the shard itself tells
    with pytest.raises(EmbeddingsError, match=r"features-00000-of-00002\.parquet is of other"):
        make(other, class_folder, out, 2)
    (out / "embeddings.json").unlink()
    make(run, class_folder, out, 2)  # the right one still passes
    shutil.copytree(class_folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "class0" / "003.png").unlink()
    with pytest.raises(EmbeddingsError, match=r"vectors of other images: of .*, and now of .*else"):
        make(run, tmp_path / "elsewhere", out, 2)


def test_damaged_images_are_listed(run: Path, class_folder: Path, tmp_path: Path) -> None:
    make(run, class_folder, tmp_path / "good", 1)
    good = read_embeddings(tmp_path / "good")
    (class_folder / "class1" / "005.png").write_bytes(b"no image")
    (class_folder / "class1" / "015.png").write_bytes(b"")
    with pytest.raises(ImagesError, match=r"4% of the 24 images of shard 0 of 2.*\n.*005\.png"):
        make(run, class_folder, tmp_path / "out", 2, max_unreadable_share=0.04)
    make(run, class_folder, tmp_path / "out", 2)
    found = read_embeddings(tmp_path / "out")
    bad = ["class1/005.png", "class1/015.png"]
    kept = [index for index, name in enumerate(good.names) if name not in bad]
    assert list(found.names) == [good.names[index] for index in kept]
    # Nothing else moves, not by a bit.
    assert found.features.tobytes() == good.features[kept].tobytes()
    for shard, name in enumerate(bad):
        with open(tmp_path / "out" / Shard(shard, 2).skipped_name, newline="") as file:
            header, row = csv.reader(file)
        assert header == ["name", "reason"]
        assert row[0] == name
    with open(tmp_path / "out" / Shard(1, 2).skipped_name) as file:
        assert "empty file" in file.read()


def test_arrays_tables_and_tar_give_the_same(
    run: Path,
    stripes: Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]],
    tmp_path: Path,
) -> None:
    import tarfile

    from conftest import encoded

    images, labels = stripes(20, 3)
    data = [encoded(image, "PNG") for image in images]
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    (tmp_path / "tables").mkdir()
    for part in (0, 1):
        some = slice(10 * part, 10 * part + 10)
        table = pa.table({"image": data[some], "label": labels[some].tolist()})
        pq.write_table(table, tmp_path / "tables" / f"{part}.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, (image, label) in enumerate(zip(data, labels, strict=True)):
            for kind, content in (("png", image), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{kind}")
                member.size = len(content)
                import io

                tar.addfile(member, io.BytesIO(content))
    sets = []
    for name in ("a.npz", "tables", "a.tar"):
        make(run, tmp_path / name, tmp_path / f"out-{name}", 3)
        sets.append(read_embeddings(tmp_path / f"out-{name}"))
    for found in sets:
        assert found.features.tobytes() == sets[0].features.tobytes()
        chunks = list(found.chunks(4))
        assert [name for chunk in chunks for name in chunk.names] == list(found.names)
        assert [one for chunk in chunks for one in chunk.labels or []] == [str(n) for n in labels]
        assert np.concatenate([chunk.features for chunk in chunks]).shape == (20, 4)
        assert max(len(chunk.names) for chunk in chunks) == 4
    mapped = sets[0].mapped(tmp_path / "whole.npy")
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, sets[0].features)


def test_a_shard_copies_its_own_tables_only(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import encoded
    from diptych.images.sources import parquet

    rng, opened = np.random.default_rng(0), list[str]()
    for part in range(4):
        images = rng.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
        table = pa.table({"image": [encoded(image, "PNG") for image in images]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    original = parquet._images

    def images_of(files: Any, columns: Any) -> Any:
        opened.extend(Path(file).name for file in files)
        return original(files, columns)

    monkeypatch.setattr(parquet, "_images", images_of)
    diptych.embed(run, tmp_path / "*.parquet", tmp_path / "out", (2, 4), **BATCH)
    assert opened == ["2.parquet"]
    opened.clear()
    diptych.embed(run, tmp_path / "*.parquet", tmp_path / "other", (1, 3), **BATCH)
    assert opened == ["1.parquet", "2.parquet"]


def test_incomplete_and_mixed_sets_are_refused(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(EmbeddingsError, match=r"holds no embeddings.*embeddings\.json"):
        read_embeddings(tmp_path)
    files = make(run, class_folder, out, 3)
    kept = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(EmbeddingsError, match=r"incomplete: features-00001-of-00003\.parquet of 3"):
        read_embeddings(out)
    other = make(write_run(tmp_path / "r", seed=1), class_folder, tmp_path / "other", 3)
    shutil.copy(other[1], files[1])
    with pytest.raises(
        EmbeddingsError, match=r"00001-of-00003\.parquet is not of the same set.*en"
    ):
        read_embeddings(out)
    files[1].write_bytes(kept)
    shutil.copy(files[0], out / "features-00000-of-00009.parquet")
    with pytest.raises(EmbeddingsError, match="more than one set: features-00000-of-00009"):
        read_embeddings(out)
    (out / "features-00000-of-00009.parquet").unlink()
    place = kept.index(read_embeddings(out).features[16].tobytes())
    files[1].write_bytes(kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :])
    with pytest.raises(EmbeddingsError, match=r"00001-of-00003\.parquet is damaged"):
        _ = read_embeddings(out).features
    files[1].write_bytes(kept[: len(kept) // 2])
    with pytest.raises(EmbeddingsError, match=r"00001-of-00003\.parquet is damaged"):
        read_embeddings(out)


def test_a_failure_leaves_nothing_that_counts(
    run: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("diptych.embeddings.shard_files.ShardWriter.flush", full)
        with pytest.raises(OSError, match="No space left"):
            make(run, class_folder, tmp_path / "out", 1)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["embeddings.json"]
    make(run, class_folder, tmp_path / "out", 1)
    assert len(read_embeddings(tmp_path / "out")) == 48


def test_large_numbers_do_not_fit_in_sixteen_bits(
    run: Path, class_folder: Path, tmp_path: Path
) -> None:
    big = write_run(tmp_path / "big")
    encoder = untrained_encoder(CONFIG)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1e4)
    save_encoder(RunFolder(big).encoder, encoder, CONFIG)
    with pytest.raises(ConfigError, match="too large for --precision float16"):
        make(big, class_folder, tmp_path / "out", 1, precision="float16")


def bmp(folder: Path, colors: Sequence[int]) -> None:
    """Images whose files all have the same size, of one colour each."""
    folder.mkdir(exist_ok=True)
    for number, color in enumerate(colors):
        Image.new("RGB", (16, 16), (color, 90, 255 - color)).save(folder / f"{number:02d}.bmp")


def test_changed_pixels_are_embedded_anew(run: Path, tmp_path: Path) -> None:
    """Names and sizes are as they were. Shards whose images stayed are left alone."""
    images, out, colors = tmp_path / "images", tmp_path / "out", list(range(0, 240, 20))
    bmp(images, colors)
    files = make(run, images, out, 2)
    before, inodes = read_embeddings(out).features, [file.stat().st_ino for file in files]
    assert len({one.stat().st_size for one in images.iterdir()}) == 1
    colors[7] = 250
    bmp(tmp_path / "others", colors)
    (images / "07.bmp").write_bytes((tmp_path / "others" / "07.bmp").read_bytes())
    make(run, images, out, 2)
    [wanted] = make(run, tmp_path / "others", tmp_path / "wanted", 1)
    found = read_embeddings(out)
    now = read_embeddings(tmp_path / "wanted").features
    np.testing.assert_allclose(found.features, now, rtol=1e-5)  # it was encoded by itself
    assert np.flatnonzero((found.features != before).any(axis=1)).tolist() == [7]
    assert files[0].stat().st_ino == inodes[0]
    assert files[1].stat().st_ino != inodes[1]
    checksums = [value for file in files for value in pq.read_table(file)["checksum"].to_pylist()]
    assert checksums == pq.read_table(wanted)["checksum"].to_pylist()
    encoded = (images / "07.bmp").read_bytes()
    assert checksums[7] == hashlib.blake2b(encoded, digest_size=16).digest()


def test_changed_labels_are_written_and_no_image_is_encoded_again(
    run: Path, tmp_path: Path
) -> None:
    """Those of the second half; the first shard is of the same labels and stays."""
    bmp(tmp_path / "images", range(0, 240, 20))
    rows = [file.read_bytes() for file in sorted((tmp_path / "images").iterdir())]
    table, out = tmp_path / "table.parquet", tmp_path / "out"
    labels: list[str | None] = ["cat", "dog"] * 6
    pq.write_table(pa.table({"image": rows, "label": labels}), table)
    files = make(run, table, out, 2)
    before, inode = read_vectors(out), files[0].stat().st_ino
    labels[7], labels[8] = "cat", None
    pq.write_table(pa.table({"image": rows, "label": labels}), table)
    done, said = finish(run, table, out, 2)
    assert [(one.was_there, one.kept, one.images) for one in done] == [(True, 0, 6), (False, 6, 6)]
    assert said == [f"{files[1]} is made anew: its labels are others now, or not known."]
    after = read_vectors(out)
    assert list(after.labels or ()) == labels
    assert after.features.tobytes() == before.features.tobytes()
    assert files[0].stat().st_ino == inode
    pq.write_table(pa.table({"image": rows}), table)
    assert not any(one.was_there for one in finish(run, table, out, 2)[0])
    assert read_vectors(out).labels is None
    assert all(one.was_there for one in finish(run, table, out, 2)[0])


class Eleven:
    """Twelve images of which the fourth cannot be read, or decoded, while this says so."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.missing = ""
        bmp(folder, range(0, 240, 20))
        fourth = (folder / "03.bmp").read_bytes()

        def decoded(data: bytes, config: Any) -> Any:
            if self.missing == "decoder" and data == fourth:
                raise UnreadableImage("needs pip install")
            if self.missing == "memory" and data == fourth:
                raise UnreadableImage("does not fit in memory") from MemoryError()
            return decode_bytes(data, config)

        def found(file: str) -> bytes:
            if self.missing == "disk" and file.endswith("03.bmp"):
                raise UnreadableImage("Input/output error")
            return read_bytes(file)

        monkeypatch.setattr("diptych.embeddings.shards.decode_bytes", decoded)
        monkeypatch.setattr("diptych.images.sources.image_files.read_bytes", found)
        monkeypatch.setattr(
            "diptych.embeddings.embed.decoders", lambda: "none" if self.missing else "all"
        )


@pytest.mark.parametrize("missing", ["decoder", "memory", "disk"])
def test_what_could_not_be_read_is_tried_again_when_it_may_be(
    missing: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no file has changed: a package was installed, or the machine lacked something."""
    images, out = tmp_path / "images", tmp_path / "out"
    eleven = Eleven(images, monkeypatch)
    eleven.missing = missing
    finish(run, images, out, 2, max_unreadable_share=0.5)
    kept = read_embeddings(out).features
    [first, second], _ = finish(run, images, out, 2, max_unreadable_share=0.5)
    assert second.was_there
    # What memory did not suffice for is tried each time.
    assert first.was_there == (missing != "memory")
    assert (first.images, first.skipped) == (5, 1)
    eleven.missing = ""
    if missing != "decoder":
        monkeypatch.setattr("diptych.embeddings.embed.decoders", lambda: "none")
    [first, second], _ = finish(run, images, out, 2, max_unreadable_share=0.5)
    assert (first.images, first.kept, first.skipped, first.was_there) == (6, 5, 0, False)
    assert second.was_there
    found = read_embeddings(out).features
    assert np.delete(found, 3, axis=0).tobytes() == kept.tobytes()
    assert all(one.was_there for one in finish(run, images, out, 2, max_unreadable_share=0.5)[0])


def test_a_repaired_image_is_embedded(run: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    bmp(images, range(0, 240, 20))
    good = (images / "03.bmp").read_bytes()
    (images / "03.bmp").write_bytes(b"\0" * len(good))
    make(run, images, out, 1)
    assert len(read_embeddings(out)) == 11
    (images / "03.bmp").write_bytes(good)
    make(run, images, out, 1)
    assert len(read_embeddings(out)) == 12
    assert not list(out.glob("skipped*"))


def test_copies_with_other_times_are_the_same_images(run: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    bmp(images, range(0, 240, 20))
    files = make(run, images, out, 2)
    before = [file.stat().st_ino for file in files]
    for file in images.iterdir():
        os.utime(file, ns=(1, 1))
    make(run, images, out, 2)
    assert [file.stat().st_ino for file in files] == before


def test_rows_without_paths_are_told_apart_by_content(run: Path, tmp_path: Path) -> None:
    """ImageRows of a table that change places keep their names, which are their places."""
    bmp(tmp_path / "images", range(0, 240, 20))
    rows = [file.read_bytes() for file in sorted((tmp_path / "images").iterdir())]
    table, out = tmp_path / "table.parquet", tmp_path / "out"
    pq.write_table(pa.table({"image": rows}), table, compression="none", use_dictionary=False)
    make(run, table, out, 1)
    before, size = read_embeddings(out), table.stat().st_size
    names, features = list(before.names), before.features
    rows[2], rows[9] = rows[9], rows[2]
    pq.write_table(pa.table({"image": rows}), table, compression="none", use_dictionary=False)
    assert table.stat().st_size == size
    make(run, table, out, 1)
    after = read_embeddings(out)
    assert list(after.names) == names
    assert after.features[[2, 9]].tobytes() == features[[9, 2]].tobytes()


@pytest.mark.parametrize(
    ("shard", "shards", "here", "wanted"),
    [
        (None, None, World(), [Shard(0, 1)]),
        ("3/16", None, World(), [Shard(3, 16)]),
        (None, None, World(rank=2, count=4), [Shard(2, 4)]),
        (None, 5, World(rank=1, count=2), [Shard(1, 5), Shard(3, 5)]),
        (None, 3, World(rank=3, count=4), []),
    ],
)
def test_each_process_has_its_shards(
    shard: str | None, shards: int | None, here: World, wanted: list[Shard]
) -> None:
    assert own_shards(shard, shards, here) == wanted


def test_wrong_shards_are_refused() -> None:
    for text, match in (("16/16", "counted from 0 to 15"), ("a", "wanted i/N"), ("0/0", "1 to 99")):
        with pytest.raises(ConfigError, match=match):
            parse_shard(text)
    with pytest.raises(ConfigError, match="give one of the two"):
        own_shards("0/2", 2, World())
    with pytest.raises(ConfigError, match="there are 4 processes"):
        own_shards("0/2", None, World(rank=1, count=4))
    with pytest.raises(ConfigError, match="got 0"):
        own_shards(None, 0, World())


def start(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "diptych", "embed", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_make_all_shards(run: Path, class_folder: Path, tmp_path: Path) -> None:
    """Started by torch's own launcher, which gives each its rank and a place to say it."""
    out, logs = tmp_path / "out", tmp_path / "logs"
    flags = (run, class_folder, "-o", out, "--shards", 5, "--batch-size", 8, "--threads", 2)
    options = ("--nproc-per-node", "2", "--log-dir", logs, "--redirects", "3")
    command = [sys.executable, "-m", "diptych", "launch", *options, "--", "embed", *flags]
    launched = subprocess.run(list(map(str, command)), timeout=200, capture_output=True, text=True)
    assert launched.returncode == 0, launched.stderr
    said = [next(logs.glob(f"**/{rank}/stdout.log")).read_text() for rank in range(2)]
    assert [text.count("done: ") for text in said] == [3, 2]
    make(run, class_folder, tmp_path / "one", 1)
    whole = read_embeddings(tmp_path / "one")
    assert read_embeddings(out).features.tobytes() == whole.features.tobytes()


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(
    run: Path,
    stripes: Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]],
    tmp_path: Path,
) -> None:
    images, _ = stripes(300, 3)
    np.save(tmp_path / "a.npy", np.concatenate([images] * 8))  # 2,400 images
    out = tmp_path / "out"
    flags = (run, tmp_path / "a.npy", "-o", out, "--shards", 4, "--batch-size", 1, "--threads", 1)
    killed = start(*flags)
    try:
        deadline = time.monotonic() + 200
        # Killed while the second shard is written.
        while not list(out.glob(".features-00001-*.aside")) and killed.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.kill()
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    done = [file.name for file in out.glob("features-*.parquet")]
    assert done == ["features-00000-of-00004.parquet"]
    assert list(out.glob(".*.aside"))
    with pytest.raises(EmbeddingsError, match="incomplete: features-00001"):
        read_embeddings(out)
    again = start(*flags)
    text, _ = again.communicate(timeout=200)
    assert again.returncode == 0, text
    assert text.count("was there: 600 images") == 1
    assert text.count("done: 600 images") == 3
    assert not list(out.glob(".*.aside"))
    found = read_embeddings(out)
    assert len(found) == 2400
    assert found.features[:300].tobytes() == found.features[-300:].tobytes()
