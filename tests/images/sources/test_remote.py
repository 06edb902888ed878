"""Images behind URLs, on a server of this test and in memory; servers that lie are survived."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet
from diptych.images.listing import Listing
from diptych.images.sources import remote
from diptych.images.sources import remote as fetching
from diptych.images.sources.remote import (
    addresses,
    connect,
    fetch,
    find_in_remote_folder,
    is_remote_file,
    names_of,
)
from diptych.images.splits import hold_out, open_located
from diptych.runs.folder import is_url

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


class Server(SimpleHTTPRequestHandler):
    """Serves a folder, and lies where a test says so."""

    gone: frozenset[str] = frozenset()
    short: frozenset[str] = frozenset()
    page: bytes | None = None
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        Server.asked.append(self.path)
        name = self.path.rsplit("/", 1)[-1]
        if name in Server.gone:
            self.send_error(503)
        elif name in Server.short:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"too little")
        elif Server.page is not None and self.path.endswith("/"):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(Server.page)))
            self.end_headers()
            self.wfile.write(Server.page)
        else:
            super().do_GET()


@pytest.fixture
def server(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of ``class_folder``."""
    monkeypatch.setattr(remote, "_PAUSES", (0.0,))
    Server.gone, Server.short, Server.page, Server.asked = frozenset(), frozenset(), None, []
    handler = partial(Server, directory=str(class_folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def config(tmp_path: Path) -> ImagesConfig:
    return ImagesConfig(cache_folder=str(tmp_path / "cache"))


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def pixels_of(found: ImageSet) -> NDArray[Any]:
    batch = found.pixels.gather(np.arange(len(found)))
    return np.stack([batch.image(n) for n in range(len(found))])


def test_a_folder_on_a_server(
    server: str, class_folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    (class_folder / "class0" / "a b.png").write_bytes(
        (class_folder / "class0" / "000.png").read_bytes()
    )
    (class_folder / "notes.txt").write_text("no image")
    train, test = open_located(find_in_remote_folder(server + "/"), config, executor)
    assert test is None
    assert len(train) == 49
    assert train.names[16] == "class0/a b.png"
    assert train.classes == ("class0", "class1", "class2")
    pixels = pixels_of(train)
    assert np.array_equal(pixels[0], pixels[16])


def test_a_bucket_with_train_and_test(
    memory: Any, stripes: Stripes, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    images, _ = stripes(6)
    for number, image in enumerate(images):
        part = "train" if number < 4 else "val"
        memory.pipe(f"/bucket/{part}/c{number % 2}/{number}.png", encoded(image, "PNG"))
    train, test = open_located(find_in_remote_folder("memory://bucket"), config, executor)
    assert train.names == ["c0/0.png", "c0/2.png", "c1/1.png", "c1/3.png"]
    assert np.array_equal(pixels_of(train), images[[0, 2, 1, 3]])
    assert train.classes == ("c0", "c1")
    assert test is not None
    assert np.array_equal(pixels_of(test), images[4:])


def test_a_bucket_is_parted_by_the_rules_for_folders(
    memory: Any, stripes: Stripes, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    data = encoded(stripes(1)[0][0], "PNG")
    for name in ("Training/a", "Training/b", "val/a", "val/b", "test", ".old/a"):
        memory.pipe(f"/bucket/set/{name}/0.png", data)
    memory.pipe("/bucket/labels.csv", b"x")
    found = find_in_remote_folder("memory://bucket")
    held = hold_out(found)
    assert isinstance(found.train, Listing)
    assert list(found.train.names) == ["a/0.png", "b/0.png"]
    assert (found.train_part, held.part) == ("Training", "val")
    assert [(one.part, one.count) for one in held.unused] == [("test", 1)]
    assert {one.name: one.count for one in found.left_out} == {
        "labels.csv": 1,
        "set/.old/a/0.png": 1,
    }
    assert found.remarks == ("The parts lie in set.",)
    memory.pipe("/bucket/set/cats/0.png", data)
    memory.rm("/bucket/set/val", recursive=True)
    memory.rm("/bucket/set/test", recursive=True)
    with pytest.raises(ImagesError, match="a part of the data or a class"):
        find_in_remote_folder("memory://bucket")


def test_images_that_cannot_be_read_are_listed(
    server: str, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    Server.gone, Server.short = frozenset({"003.png"}), frozenset({"005.png"})
    lenient = ImagesConfig(max_unreadable_share=0.5, cache_megabytes=0, cache="none")
    train, _ = open_located(find_in_remote_folder(f"{server}/class1"), lenient, executor)
    reasons = {one.name: one.reason for one in train.skipped}
    assert set(reasons) == {"003.png", "005.png"}
    assert reasons["003.png"] == "the server answers 503"
    assert Server.asked.count("/class1/003.png") == 2  # tried again once, as the test set it
    Server.gone = frozenset({"007.png"})
    with pytest.raises(ImagesError, match=r"007\.png was readable at the start and is not now"):
        pixels_of(train)


def test_an_image_without_end_is_given_up(
    memory: Any,
    stripes: Stripes,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_LARGEST_IMAGE", 20_000)
    memory.pipe("/b/good.png", encoded(stripes(1)[0][0], "PNG"))
    memory.pipe("/b/huge.png", bytes(30_000))
    lenient = ImagesConfig(max_unreadable_share=0.5)
    train, _ = open_located(find_in_remote_folder("memory://b"), lenient, executor)
    assert [one.reason for one in train.skipped] == ["more than 20,000 bytes"]


def test_hostile_listings_stay_names(
    server: str, tmp_path: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"local")
    links = [
        f"file://{secret}", str(secret), "/../../secret.png", "..%2f..%2fsecret.png",
        "http://other.invalid/x.png", "?C=N.png", "class0/../../secret.png", "ok.png",
    ]  # fmt: skip
    Server.page = "".join(f'<a href="{link}">x</a>' for link in links).encode()
    system, root = connect(server + "/class0/")
    found, _ = remote._find(system, root.rstrip("/"), server)
    assert all(entry["name"].startswith(server + "/class0/") for entry in found.values())
    assert "ok.png" in found
    assert not [name for name in found if "C=N" in name or name.startswith("http")]


def test_pages_without_end_are_given_up(
    server: str,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_MOST_FOLDERS", 20)
    Server.page = b'<a href="a/">a</a> <a href="b/">b</a>'
    with pytest.raises(ImagesError, match="without end"):
        open_located(find_in_remote_folder(server), config, executor)


def test_a_file_is_fetched_once(
    server: str, class_folder: Path, config: ImagesConfig, stripes: Stripes
) -> None:
    np.savez(class_folder / "set.npz", images=stripes(3)[0])
    data = (class_folder / "set.npz").read_bytes()
    for _ in range(2):
        (copy,) = fetch([f"{server}/set.npz"], config)
        assert copy.read_bytes() == data
    assert Server.asked.count("/set.npz") == 1
    assert Path(str(config.cache_folder)) in copy.parents
    np.savez(class_folder / "set.npz", images=stripes(4)[0])
    assert fetch([f"{server}/set.npz"], config)[0].read_bytes() != data
    copy.write_bytes(b"damaged since")
    assert fetch([f"{server}/set.npz"], config)[0].stat().st_size > 100


def test_several_files_by_pattern(memory: Any, config: ImagesConfig) -> None:
    for number in range(4):
        memory.pipe(f"/b/s-{number}.tar", b"shard %d" % number)
    for pattern, expected in (("{1..2}", [1, 2]), ("*", [0, 1, 2, 3]), ("{0,3}", [0, 3])):
        copies = fetch(addresses(f"memory://b/s-{pattern}.tar"), config)
        assert [copy.read_bytes() for copy in copies] == [b"shard %d" % n for n in expected]
    with pytest.raises(ImagesError, match="matches no files there"):
        fetch(addresses("memory://b/t-*.tar"), config)


def test_labels_of_idx_files_come_along(memory: Any, config: ImagesConfig) -> None:
    memory.pipe("/m/train-images-idx3-ubyte.gz", b"images")
    memory.pipe("/m/train-labels-idx1-ubyte.gz", b"labels")
    (copy,) = fetch(["memory://m/train-images-idx3-ubyte.gz"], config)
    assert copy.with_name("train-labels-idx1-ubyte.gz").read_bytes() == b"labels"


def test_fetching_stays_within_its_bounds(memory: Any, tmp_path: Path, server: str) -> None:
    config = ImagesConfig(cache_folder=str(tmp_path / "cache"), cache_file_megabytes=1)
    memory.pipe("/b/large.npy", bytes(2**20 + 1))
    with pytest.raises(ImagesError, match=r"large\.npy is larger than .*cache_file_megabytes"):
        fetch(["memory://b/large.npy"], config)
    memory.pipe("/b/half.tar", bytes(600_000))
    memory.pipe("/b/ha2f.tar", bytes(600_000))
    with pytest.raises(ImagesError, match="is larger than"):
        fetch(addresses("memory://b/ha{l,2}f.tar"), config)
    stray = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name.startswith(".")]
    assert not stray


def test_servers_that_fail_are_named(server: str, config: ImagesConfig, class_folder: Path) -> None:
    with pytest.raises(ImagesError, match=r"none\.npz cannot be opened: not found there"):
        fetch([f"{server}/none.npz"], config)
    (class_folder / "set.npz").write_bytes(bytes(100_000))
    Server.short = frozenset({"set.npz"})
    with pytest.raises(ImagesError, match=r"set\.npz could not be fetched into .*Check the conn"):
        fetch([f"{server}/set.npz"], config)
    assert not [p for p in Path(str(config.cache_folder)).rglob("*") if p.is_file()]


def test_addresses(config: ImagesConfig, executor: ThreadPoolExecutor) -> None:
    assert is_url("s3://b/x")
    assert not is_url("a/folder")
    assert is_remote_file("https://h/a/b.tar?key=1")
    assert not is_remote_file("https://h/a.tar/b")
    for wrong in ("filecache::http://h/x", "file:///etc", "nothing://x"):
        with pytest.raises(ImagesError, match=r"wanted one plain URL|cannot be opened"):
            connect(wrong)
    assert fetching._plain("../..%2fx y.tar") == "_.._2fx_y.tar"
    with pytest.raises(ImagesError, match=r"no images listed|cannot be listed"):
        open_located(find_in_remote_folder("memory://empty-bucket"), config, executor)


def test_names_behind_a_question_mark_stay_apart() -> None:
    urls = [f"https://host/a/shard.tar?id={n}" for n in range(3)]
    assert names_of(urls) == [f"{n}/shard.tar" for n in range(3)]
