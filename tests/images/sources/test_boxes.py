"""Boxes from hand-made files of both forms, and from files that mean harm."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.sources.annotations import RefusedXml, find_coco, parse_xml
from diptych.images.sources.boxes import BoxedImages, open_boxes

CONFIG = ImagesConfig(max_unreadable_share=0.9)
LAUGHS = (
    b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'
    b"<annotation><size><width>&c;</width></size></annotation>"
)
OUTSIDE = (
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
    b"<annotation><filename>&x;</filename></annotation>"
)


def xml(
    *objects: tuple[str, float, float, float, float],
    size: tuple[int, int] = (40, 30),
    more: str = "",
) -> str:
    """An annotation of an image of (width, height), objects as VOC counts pixels."""
    inside = "".join(
        f"<object><name>{name}</name>{more}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in objects
    )
    width, height = size
    return (
        f"<annotation><filename>/etc/passwd</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{inside}</annotation>"
    )


def voc(root: Path, annotations: dict[str, str | bytes], part: str = "train") -> Path:
    """A folder in VOC's layout with images of 40 x 30 pixels."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in annotations.items():
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
        data = text.encode() if isinstance(text, str) else text
        (root / "Annotations" / f"{name}.xml").write_bytes(data)
    (root / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(annotations) + "\n")
    return root


def opened(root: Path, *parts: str) -> list[BoxedImages]:
    with ThreadPoolExecutor(1) as executor:
        return open_boxes(root, parts or ("train",), CONFIG, executor)


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    voc(tmp_path, {"b": xml(("dog", 1, 1, 40, 30), ("cat", 11, 6, 20, 15)), "a": xml()})
    [found] = opened(tmp_path)
    assert found.classes == ("cat", "dog")
    assert list(found.images.names) == ["JPEGImages/b.jpg", "JPEGImages/a.jpg"]
    assert found.boxes[0].corners.dtype == np.float32
    assert found.boxes[0].corners.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert found.boxes[0].labels.tolist() == [1, 0]
    assert found.boxes[1].corners.shape == (0, 4)
    assert found.images.heights.tolist() == [30, 30]
    assert not found.remarks


def test_difficult_boxes_do_not_count(tmp_path: Path) -> None:
    marked = xml(("dog", 1, 1, 9, 9), more="<difficult>1</difficult>")
    [found] = opened(voc(tmp_path, {"a": marked, "b": xml(("dog", 1, 1, 9, 9))}))
    assert [boxes.plain.tolist() for boxes in found.boxes] == [[False], [True]]


def test_classes_are_those_of_all_parts(tmp_path: Path) -> None:
    voc(tmp_path, {"a": xml(("dog", 1, 1, 9, 9))})
    voc(tmp_path, {"b": xml(("ape", 1, 1, 9, 9), ("dog", 1, 1, 9, 9))}, "test")
    train, test = opened(tmp_path, "train", "test")
    assert train.classes == test.classes == ("ape", "dog")
    assert train.boxes[0].labels.tolist() == [1]


def test_boxes_over_the_edge_are_clipped_and_empty_ones_left_out(tmp_path: Path) -> None:
    [found] = opened(
        voc(tmp_path, {"a": xml(("dog", -5, 3, 50, 12), ("dog", 8, 8, 7, 20), ("dog", 2, 2, 3, 3))})
    )
    assert found.boxes[0].corners.tolist() == [[0, 2, 40, 12], [1, 1, 3, 3]]
    assert "1 boxes" in found.remarks[0]
    assert "clipped" in found.remarks[0]
    assert "no area" in found.remarks[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (xml(("dog", 1, 1, 9, 9), size=(30, 40)), "of 30 x 40 pixels; it has 40 x 30"),
        (xml(("dog", 30, 9, 10, 20)), "inside out"),
        (xml(("dog", 50, 1, 60, 9)), "outside"),
        (xml(("dog", 1, 1, 9, 9)).replace("<xmin>1<", "<xmin>nan<"), "wanted a number"),
        (xml(("dog", 1, 1, 9, 9)).replace("<xmin>1<", "<xmin>one<"), "wanted a number"),
        (xml(("", 1, 1, 9, 9)), "no name"),
        ("<annotation></annotation>", "no size"),
        ("<annotation><size>", "no XML"),
        (b"", "no XML"),
        (b'<?xml version="1.0" encoding="no-such"?><annotation/>', "no XML"),
        (LAUGHS, "document type"),
        (OUTSIDE, "document type"),
        ("<a>" * 100 + "</a>" * 100, "nested"),
    ],
)
def test_a_bad_annotation_skips_its_image(tmp_path: Path, text: str | bytes, reason: str) -> None:
    [found] = opened(voc(tmp_path, {"good": xml(("dog", 1, 1, 9, 9)), "bad": text}))
    assert len(found) == len(found.images) == 1
    [skipped] = found.images.skipped
    assert "bad" in skipped.name
    assert reason in skipped.reason


def test_a_list_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    root = voc(tmp_path / "data", {"good": xml(("dog", 1, 1, 9, 9))})
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.jpg")
    (root / "ImageSets/Main/train.txt").write_text("good 1\n../../secret\nabsent\n")
    [found] = opened(root)
    assert list(found.images.names) == ["JPEGImages/good.jpg"]
    assert [one.name for one in found.images.skipped] == ["../../secret", "absent"]
    assert {one.part for one in found.images.skipped} == {"train"}


def test_an_annotation_of_two_images_is_of_neither(tmp_path: Path) -> None:
    voc(tmp_path, {name: xml(("dog", 1, 1, 9, 9)) for name in "abcdefghijkl"})
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages/b.png")
    [found] = opened(tmp_path)
    assert len(found) == 11
    [skipped] = found.images.skipped
    assert (skipped.name, skipped.part) == ("b", "train")
    assert skipped.reason == "several images of this name: b.jpg, b.png; leave one"


def test_too_many_bad_images_are_an_error(tmp_path: Path) -> None:
    voc(tmp_path, {"a": LAUGHS, "b": LAUGHS})
    with pytest.raises(ImagesError, match=r"(?s)2 of 2 images .* document type"):
        opened(tmp_path)


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    voc(tmp_path, {"a": xml(("dog", 1, 1, 9, 9))}, "val")
    with pytest.raises(ImagesError, match=r"train\.txt .* the parts there are: val"):
        opened(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImagesError, match=r"no part 'train' in COCO's form"):
        opened(tmp_path / "empty")
    with pytest.raises(ImagesError, match="is no folder"):
        opened(tmp_path / "nowhere")


def test_xml_of_any_size_is_not_read() -> None:
    with pytest.raises(RefusedXml, match="more than"):
        parse_xml(b"<a>" + b" " * 2**24 + b"</a>")


# --- COCO ---------------------------------------------------------------------------------------


def coco() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "x.png", "width": 40, "height": 30},
            {"id": 5, "file_name": "y.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1.5, 2, 10, 4], "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [30, 20, 20, 5]},
        ],
    }


def written(
    root: Path, document: object, where: str = "annotations/instances_train2017.json"
) -> Path:
    for name in ("x", "y"):
        file = root / "train2017" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(file)
    (root / where).parent.mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (root / where).write_text(text)
    return root


def test_coco_gives_corners_and_sizes(tmp_path: Path) -> None:
    [found] = opened(written(tmp_path, coco()))
    assert found.classes == ("cat", "dog")
    assert list(found.images.names) == ["train2017/x.png", "train2017/y.png"]
    assert found.boxes[0].corners.tolist() == [[30, 20, 40, 25]]  # clipped
    assert found.boxes[1].corners.tolist() == [[1.5, 2, 11.5, 6], [0, 0, 40, 30]]
    assert found.boxes[1].labels.tolist() == [1, 0]
    assert found.boxes[1].plain.tolist() == [True, False]


def test_a_part_of_coco_is_not_one_whose_name_begins_alike(tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    years = ("train2007", "train2012", "trainval2014", "val2007", "valminusminival2014")
    for name in years:
        (folder / f"instances_{name}.json").write_text("{}")
    found = {part: find_coco(tmp_path, part) for part in ("train", "val", "trainval", "test")}
    assert {part: file and file.name for part, file in found.items()} == {
        "train": "instances_train2012.json",
        "val": "instances_val2007.json",
        "trainval": "instances_trainval2014.json",
        "test": None,
    }


def test_coco_beside_its_images(tmp_path: Path) -> None:
    written(tmp_path, coco(), "train/_annotations.coco.json")
    (tmp_path / "train2017").rename(tmp_path / "moved")
    for file in (tmp_path / "moved").iterdir():
        file.rename(tmp_path / "train" / file.name)
    [found] = opened(tmp_path)
    assert list(found.images.names) == ["train/x.png", "train/y.png"]


def changed(table: str, index: int, **values: object) -> dict[str, Any]:
    document = coco()
    document[table][index].update(values)
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ([], "a list of objects under 'categories'"),
        ({"categories": [1]}, "a list of objects under 'categories'"),
        (coco() | {"images": []}, r"of image 5 and category 3, not both listed"),
        (changed("images", 0, id="7"), "must be an integer; got '7'"),
        (changed("images", 0, id=5), "same id"),
        (changed("images", 0, file_name="y.png"), "same file_name"),
        (changed("images", 0, file_name="../x.png"), "leads out of its folder"),
        (changed("images", 1, file_name="/etc/passwd"), "leads out of its folder"),
        (changed("images", 0, file_name="z.png"), "z.png is not in"),
        (changed("annotations", 0, category_id=9), "category 9"),
        (changed("annotations", 0, bbox=[1, 2, 3]), "must be"),
        (changed("annotations", 0, bbox=[1, 2, 3, True]), "must be"),
        (changed("annotations", 0, bbox=[1, 2, 3, 10**400]), "must be"),
        (changed("annotations", 0, bbox=[1, 2, 3, float("nan")]), "NaN is no number"),
    ],
)
def test_a_bad_document_is_an_error(tmp_path: Path, document: object, message: str) -> None:
    with pytest.raises(ImagesError, match=message):
        opened(written(tmp_path, document))


def test_coco_of_another_size_is_skipped(tmp_path: Path) -> None:
    [found] = opened(written(tmp_path, changed("images", 0, width=400)))
    assert list(found.images.names) == ["train2017/y.png"]
    assert "400 x 30" in found.images.skipped[0].reason
