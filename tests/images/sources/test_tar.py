"""Shards give what the same files in a folder give; hostile ones are refused or listed."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import open_folder
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet
from diptych.images.inventory import Tally
from diptych.images.open import open_images
from diptych.images.sources import tar_shards as shards_module
from diptych.images.sources.tar_shards import expand_braces, list_tar, read_samples

Files = Sequence[tuple[str, bytes]]


def png(color: int = 0, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side + 1), (color, 2 * color % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path | str, executor: ThreadPoolExecutor, **options: Any) -> ImageSet:
    return open_images(ImagesConfig(path=str(path), **options), executor).train


def test_shards_give_what_the_folder_gives(
    class_folder: Path, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    wanted = open_folder(class_folder, ImagesConfig(), executor)
    for number in range(3):
        files = [(name, (class_folder / name).read_bytes()) for name in wanted.names[number::3]]
        write_tar(tmp_path / f"shard-{number:02d}.tar", files)
    everywhere = np.concatenate([np.arange(48)[number::3] for number in range(3)])
    pattern, braces = tmp_path / "shard-*.tar", tmp_path / "shard-{00..02}.tar"
    for path in (pattern, braces):
        for cache in ("memory", "none", "file"):
            found = opened(path, executor, cache=cache)
            gathered = found.pixels.gather(np.arange(48))
            reference = wanted.pixels.gather(everywhere)
            for place in range(48):
                assert np.array_equal(gathered.image(place), reference.image(place))
            names = [name.partition("/")[2] for name in found.names]
            assert names == [wanted.names[i] for i in everywhere]
    assert found.names[0] == f"shard-00.tar/{wanted.names[0]}"


def test_any_number_of_readers_gets_the_same(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """With more shards than may stay open, read by several threads at once."""
    for number in range(100):
        write_tar(tmp_path / f"{number:03d}.tar", [(f"{number}.png", png(number))])
    found = opened(tmp_path, executor, cache="none")
    whole = found.pixels.gather(np.arange(100))
    with ThreadPoolExecutor(8) as many:
        rows = np.random.default_rng(0).integers(0, 100, (200, 3))
        for some, batch in zip(rows, many.map(found.pixels.gather, rows), strict=True):
            for place, row in enumerate(some):
                assert np.array_equal(batch.image(place), whole.image(row))
    assert whole.image(3)[0, 0].tolist() == [3, 6, 7]


def test_descriptors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_MOST_OPEN", 2)
    paths = [write_tar(tmp_path / f"{n}.tar", [(f"{n}.png", png(n))]) for n in range(5)]
    shards = shards_module.Shards(paths)
    for number in (0, 1, 2, 3, 4, 0):
        assert shards.read(number, 0, 5) == f"{number}.png".encode()
        assert len(shards._open) <= 2


LABELS: list[tuple[str, list[Files], list[int] | None, tuple[str, ...]]] = [
    ("cls", [[("cls", b"10\n")], [("cls", b"9")], [("cls", b" 10")]], [1, 0, 1], ("9", "10")),
    (
        "json",
        [
            [("json", json.dumps({"label": "dog"}).encode())],
            [("json", json.dumps({"class": "cat"}).encode())],
            [("json", json.dumps({"cls": "dog", "size": 3}).encode())],
        ],
        [1, 0, 1],
        ("cat", "dog"),
    ),
    ("one is missing", [[("cls", b"1")], [("cls", b"2")], []], [0, 1, -1], ("1", "2")),
    ("no number", [[("cls", b"1")], [("cls", b"2")], [("cls", b"x")]], [0, 1, -1], ("1", "2")),
    ("no label", [[("cls", b"1")], [("cls", b"-1")], [("cls", b"3")]], [0, -1, 1], ("1", "3")),
    ("no table", [[("json", b"[1]")], [("cls", b"2")], [("cls", b"1")]], [-1, 1, 0], ("1", "2")),
    ("deep", [[("json", b"[" * 100_000)], [("cls", b"2")], []], [-1, 0, -1], ("2",)),
    ("half a pair", [[("json", b'{"cls": "\\ud800"}')], [], []], [0, -1, -1], ("\\ud800",)),
    ("none", [[], [], []], None, ()),
]


@pytest.mark.parametrize(
    ("files", "numbers", "classes"), [case[1:] for case in LABELS], ids=[c[0] for c in LABELS]
)
def test_labels(
    files: list[Files],
    numbers: list[int] | None,
    classes: tuple[str, ...],
    tmp_path: Path,
) -> None:
    content = []
    for number, some in enumerate(files):
        content += [(f"a/{number}.{kind}", data) for kind, data in some]
        content.append((f"a/{number}.rgb.PNG", png(number)))
    found = list_tar([write_tar(tmp_path / "a.tar", content)], "", Tally())
    assert len(found.names) == 3
    assert found.classes == classes
    assert (None if found.labels is None else found.labels.tolist()) == numbers


def test_a_limit_keeps_names_labels_and_pixels_together(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    files = [
        (f"{n}.{kind}", data)
        for n in range(30)
        for kind, data in (("png", png(n)), ("cls", str(n).encode()))
    ]
    found = opened(write_tar(tmp_path / "a.tar", files), executor, limit=7, cache="none")
    assert found.labels is not None
    for row, name in enumerate(found.names):
        number = int(name.removeprefix("a.tar/").removesuffix(".png"))
        assert found.pixels.gather(np.array([row])).image(0)[0, 0, 0] == number
        assert found.classes[found.labels[row]] == str(number)


@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT], ids=str
)
def test_every_plain_format_and_long_names(form: int, tmp_path: Path) -> None:
    name = "/".join(["folder"] * (12 if form == tarfile.USTAR_FORMAT else 60)) + "/ünï.png"
    (sample,) = read_samples(write_tar(tmp_path / "a.tar", [(name, png())], form), Tally())
    assert sample.image is not None
    assert sample.image.name == name
    with open(tmp_path / "a.tar", "rb") as file:
        file.seek(sample.image.offset)
        assert file.read(sample.image.size) == png()


def test_members_that_are_no_plain_files_are_listed(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("device.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../outside.png")
        info.size = len(png())
        tar.addfile(info, io.BytesIO(png()))
        info = tarfile.TarInfo("folder.png")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    found = opened(path, executor, max_unreadable_share=0.3)
    assert len(found) == 20
    reasons = {one.name.removeprefix("hostile.tar/"): one.reason for one in found.skipped}
    assert set(reasons) == {"link.png", "hard.png", "pipe.png", "device.png", "../../outside.png"}
    assert "leads out" in reasons.pop("../../outside.png")
    assert all("no plain file" in reason for reason in reasons.values())


def test_a_shard_that_is_cut_off_says_so(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", png(n, 90)) for n in range(20)])
    samples = read_samples(path, Tally())
    last = samples[10].image
    assert last is not None
    path.write_bytes(path.read_bytes()[: last.offset + 20])
    found = opened(path, executor)
    assert len(found) == 10
    (skipped,) = found.skipped
    assert "cut off" in skipped.reason
    assert skipped.name == "a.tar/10.png"


def header_of(data: bytearray, number: int) -> int:
    return [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"][number]


def with_size(path: Path, number: int, field: bytes) -> None:
    """Changes the size in a header, with a right sum."""
    data = bytearray(path.read_bytes())
    at = header_of(data, number)
    data[at + 124 : at + 136] = field
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(bytes(data))


def damage_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[header_of(data, 2)] ^= 0xFF
    path.write_bytes(bytes(data))


def pax_bomb(path: Path) -> None:
    """A header of headers that claims a petabyte of records."""
    data = bytearray(path.read_bytes())
    data[156] = ord("x")
    path.write_bytes(bytes(data))
    with_size(path, 0, b"\x80" + (2**50).to_bytes(11, "big"))


HOSTILE: list[tuple[str, Callable[[Path], object], str]] = [
    ("compressed", lambda p: p.write_bytes(gzip.compress(p.read_bytes())), r"compressed \(gzip\)"),
    ("empty", lambda p: p.write_bytes(b""), "not a readable tar|no images in"),
    ("text", lambda p: p.write_text("no tar at all" * 100), "not a readable tar"),
    ("zeros", lambda p: p.write_bytes(bytes(10240)), "no images in|not a readable tar"),
    ("damaged header", damage_header, "header at byte .* is damaged"),
    ("negative size", lambda p: with_size(p, 1, b"\xff" * 11 + b"\x00"), "not a readable tar"),
    ("pax bomb", pax_bomb, "not a readable tar"),
]


@pytest.mark.parametrize(("damage", "words"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_hostile_shards_are_refused(
    damage: Callable[[Path], object], words: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(4)])
    damage(path)
    with pytest.raises(ImagesError, match=words) as raised:
        opened(path, executor)
    assert "a.tar" in str(raised.value)


def test_a_size_beyond_the_file_is_listed(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(20)])
    with_size(path, 19, b"77777777777\0")
    found = opened(path, executor)
    assert (len(found), len(found.skipped)) == (19, 1)
    assert "cut off" in found.skipped[0].reason


def test_random_bytes_never_crash(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}/ü{n}.png", png(n)) for n in range(4)])
    original = path.read_bytes()
    for _ in range(200):
        data = bytearray(original)
        for place in rng.integers(0, len(data), size=12):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data[: rng.integers(1, len(data))]))
        try:
            assert len(read_samples(path, Tally())) <= 20
        except ImagesError:
            continue


def test_a_sample_with_two_images_is_refused(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    files = [("a/1.left.png", png()), ("a/2.png", png()), ("a/1.left.jpg", png())]
    path = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(ImagesError, match=r"two images for the sample a/1\.left: a/1\.left\.png"):
        opened(path, executor)


def test_a_shard_that_changed_is_named(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(4)])
    shards = shards_module.Shards([path])
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(ImagesError, match="has changed since"):
        shards.read(0, 0, 5)
    path.unlink()
    with pytest.raises(ImagesError, match="No such file"):
        shards.read(0, 0, 5)


def test_train_and_test_folders_of_shards(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    for part, count in (("train", 5), ("val", 3)):
        (tmp_path / part).mkdir()
        write_tar(tmp_path / part / "0.tar", [(f"{n}.png", png(n)) for n in range(count)])
    found = open_images(ImagesConfig(path=str(tmp_path), limit=4), executor)
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (4, 3)
    (tmp_path / "train" / "loose.jpg").write_bytes(png())
    with pytest.raises(ImagesError, match=r"0\.tar, 5 images in .* as loose\.jpg, 1 file"):
        opened(tmp_path, executor)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{a,b}-{1..2}.tar", ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]),
        ("{099..101}", ["099", "100", "101"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..999999999}.tar", "{5..1}.tar", "{0..999}{0..999}.tar"])
def test_too_many_braces_are_refused(pattern: str) -> None:
    with pytest.raises(ImagesError, match="names"):
        expand_braces(pattern)


def test_a_missing_shard_is_named(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    write_tar(tmp_path / "0.tar", [("1.png", png())])
    with pytest.raises(ImagesError, match=r"there is no shard .*/1\.tar"):
        opened(tmp_path / "{0..1}.tar", executor)
    with pytest.raises(ImagesError, match="there is no shard"):
        opened(tmp_path / "x*.tar", executor)


def test_the_column_says_which_file_of_a_sample_is_its_image(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    files = [(f"{number}.{end}", png(color)) for number in range(3) for end, color in ENDS.items()]
    labels = [(f"{number}.cls", str(number % 2).encode()) for number in range(3)]
    path = write_tar(tmp_path / "a.tar", [*files, *labels])
    with pytest.raises(ImagesError, match=r"two images for .* images\.column takes one"):
        opened(path, executor)
    for place in (path, tmp_path, tmp_path / "*.tar"):
        for end, color in ENDS.items():
            found = opened(place, executor, column=end)
            assert list(found.names) == [f"a.tar/{number}.{end}" for number in range(3)]
            assert found.labels is not None
            assert found.labels.tolist() == [0, 1, 0]
            assert found.pixels.gather(np.arange(1)).image(0)[0, 0, 0] == color
    left_out = open_images(ImagesConfig(path=str(path), column="jpg"), executor).left_out
    assert [(one.reason, one.count) for one in left_out] == [
        ("images.column takes the .jpg of a sample", 6)
    ]
    with pytest.raises(ImagesError, match=r"Wanted members named \.tif \(images\.column\)"):
        opened(path, executor, column="tif")


ENDS = {"jpg": 10, "left.png": 20, "PNG": 30}
