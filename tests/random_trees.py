"""Random folders of images, as people and their tools leave them."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = (
    "train", "Train", "TRAINING", "train_images", "train2017", "test", "Testing", "testset",
    "test-data", "val", "Valid", "validation", "dev", "eval_set", "images_val",
)  # fmt: skip
CLASSES = (
    "cats", "dogs", "Dogs", "trains", "contest", "x.tar", "folder.png", "two words", "-dash", "ün",
    "line\nbreak", os.fsdecode(b"latin\xe4"), "猫", "1", "archive", "testament", "seg_train",
    "testA",
)  # fmt: skip
IMAGES = (
    "1.png", "2.PNG", "3.jpg", "a.b.png", "ü.jpeg", "-.gif", os.fsdecode(b"\xff.png"), "train.png",
    "new\nline.tif", "..png.webp", "x.bmp",
)  # fmt: skip
OTHERS = (
    "labels.csv", "notes.txt", "photo.NEF", "photo.jxl", "backup.zip", "README", "a.", ".png",
    ".DS_Store", "._1.png", "Thumbs.db", "train", "x.JSON", "y.tar.gz", "png",
    os.fsdecode(b"x.\xe4"),
)  # fmt: skip
TARS = ("0.tar", "train-0.tar", "train-1.tar", "my-val.TAR", "Test.tar", "backup.tar", "dev_1.tar")


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 90, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(count: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    return buffer.getvalue()


PNG = _png()
TAR = _tar(2)


def make_tree(place: Path, seed: int) -> Path:
    """Writes the tree of a seed below an empty folder; what links lead to may lie beside it."""
    return _Maker(place, np.random.default_rng(seed)).make()


class _Maker:
    def __init__(self, place: Path, rng: np.random.Generator) -> None:
        self.root, self.outside, self.rng = place / "root", place / "outside", rng
        self.folders = list[Path]()

    def make(self) -> Path:
        self._folder(self.root)
        self._folder(self.outside / "more")
        self._images(self.outside / "more")
        top = self.root
        for _ in range(self.rng.choice([0, 0, 0, 0, 1, 2])):
            top = self._folder(top / self._one(("archive", "dataset", "cats", "folder.png")))
        if self._chance(0.6):
            for name in self.rng.choice(PARTS, self.rng.integers(1, 4), replace=False):
                part = self._folder(top / str(name))
                if self._chance(0.1):
                    part = self._folder(part / str(name))
                self._classes(part, "images" if self._chance(0.85) else "tars")
            if self._chance(0.2):
                self._classes(top, "images")
        else:
            self._classes(top, "images" if self._chance(0.85) else "tars")
        for _ in range(self.rng.poisson(1.2)):
            self._other(self._any())
        for _ in range(self.rng.poisson(0.7)):
            self._link(self._any())
        if self._chance(0.08):
            self._write(self._any() / self._one(TARS), TAR if self._chance(0.8) else b"no tar")
        return self.root

    def _classes(self, folder: Path, kind: str) -> None:
        """Images or shards in a folder: right in it, in class folders, or both."""
        if kind == "tars":
            for name in self.rng.choice(TARS, self.rng.integers(1, 4), replace=False):
                self._write(folder / str(name), TAR)
            return
        for name in self.rng.choice(CLASSES, self.rng.integers(0, 4), replace=False):
            inside = self._folder(folder / str(name))
            if self._chance(0.85):
                self._images(inside)
            if self._chance(0.1):
                self._images(self._folder(inside / self._one((*CLASSES, *PARTS))))
        if self._chance(0.35):
            self._images(folder)

    def _images(self, folder: Path) -> None:
        for name in self.rng.choice(IMAGES, self.rng.integers(1, 4), replace=False):
            self._write(folder / str(name), PNG if self._chance(0.95) else b"junk")

    def _other(self, folder: Path) -> None:
        if self._chance(0.1):
            self._images(self._folder(folder / ".hidden"))
        elif self._chance(0.1):
            self._folder(folder / self._one((*CLASSES, *PARTS)))
        elif self._chance(0.1) and not os.path.lexists(folder / "pipe.png"):
            os.mkfifo(folder / "pipe.png")
        else:
            self._write(folder / self._one(OTHERS), b"whatever")

    def _link(self, folder: Path) -> None:
        """To a folder of the tree or beside it, to one around it, to a file, or to nothing."""
        targets = [self._any(), self.outside, self.outside / "more", folder, folder.parent]
        targets += [self._any() / self._one(IMAGES), Path("nothing"), Path(".."), self.root]
        target = targets[self.rng.integers(len(targets))]
        path = folder / self._one((*CLASSES, *PARTS, *IMAGES, "link"))
        if os.path.lexists(path):
            return
        path.symlink_to(os.path.relpath(target, folder) if target.is_absolute() else target)

    def _folder(self, path: Path) -> Path:
        if not os.path.lexists(path):
            path.mkdir(parents=True)
        if path.is_dir() and not path.is_symlink():
            self.folders.append(path)
            return path
        return path.parent

    def _write(self, path: Path, data: bytes) -> None:
        if not os.path.lexists(path):
            path.write_bytes(data)

    def _any(self) -> Path:
        return self.folders[self.rng.integers(len(self.folders))]

    def _one(self, names: tuple[str, ...]) -> str:
        return names[self.rng.integers(len(names))]

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)
