"""What the gallery answers over HTTP, on a small set."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from diptych.embeddings.neighbours import nearest
from diptych.embeddings.vectors import VectorSet, read_vectors
from diptych.errors import ConfigError
from diptych.gallery.atlas import Atlas
from diptych.gallery.exports import _folders_of
from embedding_runs import make, write_run
from served_gallery import CLASSES, COUNT, Served, served, small_gallery, two_groups, write_images


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("gallery")
    table = folder / "table.csv"
    lines = [f"{CLASSES[row % 2]}/{row:03}.png,{row / 7},{row % 3}" for row in range(0, COUNT, 2)]
    table.write_text("name,depth,camera\n" + "\n".join(lines))
    with served(small_gallery(folder, table=table)) as page:
        yield page


def json_of(page: Served, path: str, body: Any = None) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    status, _, found = page.ask(path, sent)
    assert status == 200, found
    return json.loads(found)


def refused(page: Served, path: str, body: bytes | None = None) -> str:
    status, headers, found = page.ask(path, body)
    assert 400 <= status < 500
    assert headers["Content-Type"] == "application/json"
    return str(json.loads(found)["error"])


def column_index(page: Served, name: str) -> int:
    columns = json_of(page, "/api/set")["columns"]
    return next(place for place, one in enumerate(columns) if one["name"] == name)


def column(page: Served, name: str, kind: str) -> Any:
    return np.frombuffer(page.ask(f"/api/columns/{column_index(page, name)}")[2], kind)


def test_the_set_is_described(page: Served) -> None:
    found = json_of(page, "/api/set")
    assert (found["count"], found["runs"]) == (COUNT, ["A"])
    assert found["maps"] == [{"run": "A", "ready": True, "progress": 1.0, "why": ""}]
    assert [one["name"] for one in found["columns"]] == [
        *("label", "given label", "cluster", "outlier score", "contradicted", "copies"),
        *("depth", "camera"),
    ]
    assert found["columns"][0]["classes"] == list(CLASSES)
    assert found["thumbnails"] | {"why": ""} == {
        "side": 64,
        "columns": 8,
        "rows": 8,
        "pages": 2,
        "ready": 2,
        "why": "",
    }
    assert found["search"]["upload"] is False
    assert found["subset"]["ways"] == ["typical", "k-centre", "facility-location"]


def test_maps_and_columns_are_binary(page: Served) -> None:
    status, headers, body = page.ask("/api/maps/A")
    points = np.frombuffer(body, "<f4").reshape(COUNT, 2)
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    assert np.abs(points).max() <= 1
    assert column(page, "label", "<i2").tolist() == [row % 2 for row in range(COUNT)]
    depth = column(page, "depth", "<f4")
    assert np.isnan(depth[1::2]).all()
    np.testing.assert_allclose(depth[::2], np.arange(0, COUNT, 2) / 7, rtol=1e-6)
    assert column(page, "camera", "<i2").tolist() == [
        -1 if row % 2 else row % 3 for row in range(COUNT)
    ]
    assert page.ask("/api/maps/B")[0] == 404
    assert page.ask("/api/columns/99")[0] == 400


def test_what_has_not_changed_is_not_sent_again(page: Served) -> None:
    for path in ("/api/maps/A", "/api/columns/0", "/api/thumbnails/1", "/api/labels/codes"):
        tag = page.ask(path)[1]["ETag"]
        status, _, body = page.ask(path, headers={"If-None-Match": tag})
        assert (status, body) == (304, b""), path


def test_columns_are_zipped_where_it_helps(tmp_path: Path) -> None:
    from starlette.requests import Request

    from diptych.gallery.server.requests import binary

    request = Request({"type": "http", "headers": [(b"accept-encoding", b"br, gzip")]})
    body = np.zeros(5000, "<i2").tobytes()
    answer = binary(request, body, zipped=True)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(bytes(answer.body)) == body
    noise = np.random.default_rng(0).bytes(5000)
    assert "Content-Encoding" not in binary(request, noise, zipped=True).headers


def test_pictures_that_were_missing_are_drawn_when_they_are_there(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images").rename(tmp_path / "moved")
    empty, _ = Atlas(vectors_of(tmp_path), None, tmp_path / "g", "d")._draw(0)
    lost = Atlas(vectors_of(tmp_path), None, tmp_path / "g", "d")
    assert lost.missing
    lost.make_all(lambda share: None)
    assert lost.page(0) == empty
    found = Atlas(vectors_of(tmp_path), str(tmp_path / "moved"), tmp_path / "g", "d")
    assert found.page(0) != empty
    # One that cannot be read now may be there later.
    file = tmp_path / "moved" / "blue" / "000.png"
    whole = found.page(0)
    for kept in (tmp_path / "g").rglob("*.webp"):
        kept.unlink()
    data = file.read_bytes()
    file.unlink()
    assert found.page(0) != whole
    file.write_bytes(data)
    assert found.page(0) == whole


def vectors_of(folder: Path) -> VectorSet:
    names = [f"{CLASSES[row % 2]}/{row:03}.png" for row in range(COUNT)]
    return VectorSet(folder / "v", two_groups(), names, path=str(folder / "images"))


def test_classes_that_would_share_a_folder_are_not_linked() -> None:
    assert _folders_of({"a/b", "c"}) == {"a/b": "a_b", "c": "c"}
    with pytest.raises(ConfigError, match=r"a/b and a:b would share|a:b and a/b would share"):
        _folders_of({"a/b", "a:b"})
    with pytest.raises(ConfigError, match="would be read as a part of the set"):
        _folders_of({"train", "c"})


def test_thumbnails_and_pictures_are_images_of_the_set(page: Served) -> None:
    status, headers, body = page.ask("/api/thumbnails/1")
    assert (status, headers["Content-Type"]) == (200, "image/webp")
    atlas = np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)
    assert atlas.shape == (512, 512, 3)
    # Row 65 is the second of page 1: red, 24 x 16 pixels, which fill the width of its square of 64.
    for y, x in ((32, 68), (32, 124), (14, 96), (50, 96)):
        assert np.abs(atlas[y, x] - (200, 65, 0)).max() < 30
    assert np.abs(atlas[2, 66] - 128).max() < 12  # above the picture
    assert np.abs(atlas[400, 400] - 128).max() < 12  # behind the last row
    picture = Image.open(io.BytesIO(page.ask("/api/pictures/64")[2]))
    assert (picture.format, picture.size) == ("WEBP", (24, 16))
    assert page.ask("/api/thumbnails/2")[0] == 400
    assert page.ask("/api/pictures/70")[0] == 400


def test_rows_are_described(page: Served) -> None:
    first = json_of(page, "/api/rows?first=2&count=2")
    body = np.array([3, 2], "<i4").tobytes()
    status, _, found = page.ask("/api/rows", body)
    assert (status, json.loads(found)) == (200, first[::-1])
    assert (first[0]["name"], first[0]["label"], first[0]["given"]) == (
        "blue/002.png",
        "blue",
        None,
    )
    assert first[0]["values"]["camera"] == "2"
    assert first[1]["values"]["depth"] is None
    assert "0 to 69" in refused(page, "/api/rows", np.array([70], "<i4").tobytes())
    assert "4 bytes" in refused(page, "/api/rows", b"abc")
    assert page.ask("/api/rows?count=1001")[0] == 400


def test_neighbours_are_exact(page: Served) -> None:
    found = json_of(page, "/api/neighbours", {"row": 5, "k": 7, "run": "A"})
    features = two_groups()
    near = nearest(features, features, 7, exclude_own_row=True)
    assert found["rows"] == near.rows[5].tolist()
    np.testing.assert_allclose(found["similarities"], near.similarities[5], rtol=1e-5)
    assert "run should be" in refused(page, "/api/neighbours", b'{"row": 5, "run": "B"}')


def test_panels_say_how_they_were_found(page: Served) -> None:
    for name in ("copies", "outliers", "contradicted", "clusters"):
        found = json_of(page, f"/api/panels/{name}?count=1000")
        assert found["words"]
        assert len(found["items"]) == found["total"]
    outliers = json_of(page, "/api/panels/outliers?first=1&count=2")["items"]
    scores = column(page, "outlier score", "<f4")
    assert outliers[0]["rows"] == [int(np.argsort(-scores)[1])]
    clusters = json_of(page, "/api/panels/clusters")["items"]
    codes = column(page, "cluster", "<i2")
    assert all((codes[item["rows"]] == place).all() for place, item in enumerate(clusters))
    assert page.ask("/api/panels/others")[0] == 404


def test_a_subset_leaves_out_what_is_labelled(page: Served) -> None:
    mask = mask_of([0, 1])
    page.ask("/api/labels?class=cat", mask)
    try:
        found = json_of(page, "/api/subset", {"budget": 68, "way": "k-centre"})
        assert sorted(found["rows"]) == list(range(2, COUNT))
        assert "budget" in refused(page, "/api/subset", b'{"budget": 0}')
        assert "--budget" in refused(page, "/api/subset", b'{"budget": 69}')
    finally:
        page.ask("/api/labels/undo", b"")


def mask_of(rows: list[int]) -> bytes:
    bits = np.zeros(COUNT, np.uint8)
    bits[rows] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def test_labels_are_given_spread_accepted_and_exported(page: Served) -> None:
    begun = json_of(page, "/api/labels")["version"]
    status, _, body = page.ask(f"/api/labels?class=warm&version={begun}", mask_of([1, 3, 69]))
    assert (status, json.loads(body)["changed"]) == (200, 3)
    assert page.ask(f"/api/labels?class=warm&version={begun}", mask_of([1]))[0] == 409
    page.ask("/api/labels?class=cold", mask_of([0]))
    codes = np.frombuffer(page.ask("/api/labels/codes")[2], "<i2")
    named = json_of(page, "/api/labels")
    assert [named["classes"][codes[row]] for row in (1, 3, 69, 0)] == ["warm"] * 3 + ["cold"]
    assert sum(named["counts"]) == 4
    proposals = json_of(page, "/api/labels/spread", {"class": "warm", "confidence": 0.3})
    assert len(proposals["rows"]) > 10
    assert set(proposals["classes"]) == {"warm"}
    assert json_of(page, "/api/labels")["version"] == begun + 2
    by_hand = proposals["rows"][0]  # corrected before the proposals are accepted
    page.ask("/api/labels?class=cold", mask_of([by_hand]))
    accepted = json_of(page, "/api/labels/accept", proposals)
    assert accepted["changed"] == len(proposals["rows"]) - 1
    assert np.frombuffer(page.ask("/api/labels/codes")[2], "<i2")[by_hand] == codes[0]
    exports_hold_the_labels(page, 5 + accepted["changed"])
    changes = json_of(page, f"/api/labels/changes?since={begun}")
    assert (changes["version"], len(changes["words"])) == (begun + 4, 4)
    for _ in range(4):
        json_of(page, "/api/labels/undo", {})
    assert (np.frombuffer(page.ask("/api/labels/codes")[2], "<i2") == -1).all()


def exports_hold_the_labels(page: Served, count: int) -> None:
    _, headers, body = page.ask("/api/export?format=csv")
    assert headers["Content-Disposition"] == 'attachment; filename="labels.csv"'
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    given = {row["name"]: row["given"] for row in rows if row["given"]}
    assert (len(rows), len(given)) == (COUNT, count)
    packed = io.BytesIO(page.ask("/api/export?format=parquet")[2])
    # With threads the process may abort at its end, as a worker drops what Python holds.
    table = parquet.read_table(packed, use_threads=False).to_pylist()
    assert {row["name"]: row["given"] for row in table if row["given"]} == given
    coco = json_of(page, "/api/export?format=coco")
    names = {one["id"]: one["name"] for one in coco["categories"]}
    files = {one["id"]: one["file_name"] for one in coco["images"]}
    assert {files[x["image_id"]]: names[x["category_id"]] for x in coco["annotations"]} == given
    other = json_of(page, "/api/export?format=fiftyone")
    assert {f"{k}.png": other["classes"][v] for k, v in other["labels"].items()} == given
    links = json_of(page, "/api/export", {"format": "links"})
    folder = page.gallery.folder / "links"
    assert (links["links"], links["left_out"]) == (count, 0)
    found = {one.name: one for one in folder.rglob("*.png")}
    assert len(found) == count
    assert all(one.is_symlink() and one.resolve().is_file() for one in found.values())
    assert found["blue__000.png"].parent.name == "cold"
    assert "format should be" in refused(page, "/api/export?format=zip")


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/api/labels?class=x", b"abc", "9 bytes"),
        ("/api/labels?class=%0A", bytes([1]) + bytes(8), "1 to 200 letters"),
        ("/api/labels/spread", b'{"confidence": 2}', "confidence"),
        ("/api/labels/spread", b'{"class": "nobody", "confidence": 0.5}', "no such class"),
        ("/api/labels/accept", b'{"rows": [1], "classes": []}', "one for each"),
        ("/api/labels/accept", b'{"rows": [1, 1], "classes": ["a", "b"]}', "twice"),
        ("/api/labels/accept", b'{"rows": [true], "classes": ["a"]}', "whole numbers"),
        ("/api/labels/accept", b"[[", "no JSON"),
        ("/api/neighbours", b'{"row": NaN}', "no JSON"),
        ("/api/neighbours", b"[]", "JSON object"),
        ("/api/export", b'{"format": "csv"}', "format should be one of links"),
        ("/api/search?k=3", b"GIF89a", "encoder"),
        ("/api/moved?row=1", None, "--against"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    page: Served, path: str, body: bytes | None, sentence: str
) -> None:
    assert sentence in refused(page, path, body)


@pytest.mark.slow
def test_an_uploaded_image_finds_itself(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    make(write_run(tmp_path / "run"), str(tmp_path / "images"), tmp_path / "vectors", 1)
    from diptych.gallery.contents import open_gallery

    gallery = open_gallery(read_vectors(tmp_path / "vectors"))
    assert gallery.search.source is not None
    with served(gallery) as page:
        names = list(gallery.runs.names)
        image = (tmp_path / "images" / names[10]).read_bytes()
        found = json.loads(page.ask("/api/search?k=2", image)[2])
        assert found["similarities"][0] == pytest.approx(1, abs=1e-5)
        assert found["rows"][0] == 10
        svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
        for bad in (b"", b"no image", svg, image[:60]):
            assert "no image that can be read" in refused(page, "/api/search", bad)
        assert page.ask("/api/search", bytes(20 * 1024 * 1024 + 1))[0] == 413


def test_maps_are_waited_for(tmp_path: Path) -> None:
    from diptych.gallery.contents import open_gallery
    from served_gallery import small_set

    with served(open_gallery(small_set(tmp_path))) as page:
        status, _, body = page.ask("/api/maps/A")
        assert (status, json.loads(body)) == (202, {"progress": 0.0})
        assert page.ask("/api/panels/copies")[0] == 202
        assert json_of(page, "/api/set")["columns"][2] == {
            "name": "cluster",
            "kind": "class",
            "ready": False,
        }
        # A page of thumbnails that is asked for is made at once.
        assert page.ask("/api/thumbnails/1")[0] == 200
