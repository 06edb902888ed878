"""What a folder holds by the rules of docs/images.md, written down a second time and plainly."""

import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
)
PURPOSES = {
    "train": ["train", "training"],
    "test": ["test", "testing"],
    "val": ["val", "valid", "validation", "dev", "eval", "evaluation"],
}


def _spellings() -> dict[str, str]:
    things = ["set", "split", "image", "img", "data", "picture", "photo"]
    things += [f"{thing}s" for thing in things if thing != "data"]
    between = ["", "-", "_", ".", " "]
    before = ["", *(thing + one for thing in things for one in between)]
    after = ["", *(one + thing for thing in things for one in between)]
    return {
        head + word + tail: purpose
        for purpose, words in PURPOSES.items()
        for word in words
        for head in before
        for tail in after
    }


SPELLINGS = _spellings()


def purpose(name: str) -> str | None:
    name = name.lower()
    for bare in (name, re.sub(r"[-_. ]?[0-9]{4}$", "", name)):
        if bare in SPELLINGS:
            return SPELLINGS[bare]
    return None


def words_for(name: str) -> set[str]:
    """Purposes of the words in a name: runs of small letters, with a capital before or not, or
    of capitals."""
    spaced = re.sub(r"([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    words = re.split(r"[^a-z]+", spaced.lower())
    return {purpose for purpose, known in PURPOSES.items() if set(known) & set(words)}


class Refused(Exception):
    """By the rules."""


@dataclass
class Part:
    """Names of images in order, with the class of each, and those that are no images inside."""

    name: str
    images: list[str]
    classes: list[str | None]
    unreadable: set[str]


@dataclass
class Plain:
    train: Part
    held_out: Part | None
    left_out: Counter[str]


@dataclass
class _Seen:
    images: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[tuple[str, list[str]]] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


def look_at(root: Path) -> Plain:
    seen = _Seen()
    around = []
    above = os.path.realpath(root)
    while above != "/":
        above = os.path.dirname(above)
        around.append(above)
    _enter(str(root), "", around, seen)
    while seen.links:
        seen.links.sort()
        path, around = seen.links.pop(0)
        _enter(str(root), path, around, seen)
    _count_empty(seen)
    return _arrange(str(root), seen)


def _enter(root: str, path: str, around: list[str], seen: _Seen) -> None:
    real = os.path.realpath(os.path.join(root, path))
    if real in around:
        seen.left_out["loop"] += 1
        return
    part = ""
    pieces = path.split("/")
    for count in range(len(pieces), 0, -1):
        if purpose(pieces[count - 1]):
            part = "/".join(pieces[:count])
    if (part, real) in seen.taken:
        seen.left_out["again"] += 1
        return
    seen.taken.add((part, real))
    if path:
        seen.folders.append(path)
    for name in os.listdir(real):
        inside = f"{path}/{name}" if path else name
        full = os.path.join(root, inside)
        if name[0] == ".":
            seen.left_out["hidden"] += 1
        elif os.path.isdir(full) and os.path.islink(full):
            seen.links.append((inside, [*around, real]))
        elif os.path.isdir(full):
            _enter(root, inside, [*around, real], seen)
        elif name.lower().endswith(ENDINGS) and name.lower() not in ENDINGS:
            seen.images.append(inside)
        elif os.path.islink(full) and not os.path.exists(full):
            seen.left_out["broken"] += 1
        elif name.lower().endswith(".tar"):
            seen.tars.append(inside)
        else:
            seen.left_out["no image"] += 1


def _inside(names: list[str], folder: str) -> list[str]:
    return [name for name in names if not folder or name.startswith(folder + "/")]


def _count_empty(seen: _Seen) -> None:
    content = seen.images + seen.tars
    empty = {one for one in seen.folders if not _inside(content, one)}
    seen.left_out["empty"] += sum(os.path.dirname(one) not in empty for one in empty)


def _arrange(root: str, seen: _Seen) -> Plain:
    content = seen.images + seen.tars
    base = ""
    while True:
        here = [name[len(base) :].strip("/").split("/") for name in _inside(content, base)]
        folders = sorted({pieces[0] for pieces in here if len(pieces) > 1})
        loose = [pieces[0] for pieces in here if len(pieces) == 1]
        parts = [name for name in folders if purpose(name)]
        if parts or loose or len(folders) != 1:
            break
        base = f"{base}/{folders[0]}".strip("/")
    if not parts:
        words = [words_for(name) for name in folders]
        if any("train" in some for some in words) and any(some - {"train"} for some in words):
            raise Refused("parts or classes")
        return _together(root, seen)
    others = [name for name in folders if name not in parts]
    beside = len(loose) + sum(len(_inside(content, f"{base}/{one}".strip("/"))) for one in others)
    by_purpose: dict[str, list[str]] = {}
    for name in parts:
        by_purpose.setdefault(str(purpose(name)), []).append(name)
    if "train" not in by_purpose and (beside or len(parts) > 1):
        raise Refused("none to learn from")
    if len(parts) == 1 and others:
        raise Refused("a part or a class")
    if any(len(some) > 1 for some in by_purpose.values()):
        raise Refused("two for one purpose")
    seen.left_out["beside"] += beside
    order = [by_purpose[one][0] for one in ("train", "test", "val") if one in by_purpose]
    read = [_innermost(content, f"{base}/{one}".strip("/")) for one in order]
    train, *held_out = [_read(root, seen, *pair) for pair in zip(read, order, strict=True)]
    seen.left_out["no image"] += sum(os.path.dirname(name) not in read for name in seen.tars)
    return _plain(train, held_out, seen)


def _innermost(content: list[str], folder: str) -> str:
    inside = [one[len(folder) + 1 :].split("/") for one in _inside(content, folder)]
    names = {pieces[0] for pieces in inside}
    own = os.path.basename(folder)
    if len(names) != 1 or any(len(pieces) == 1 for pieces in inside):
        return folder
    if names.copy().pop().lower() != own.lower():
        return folder
    return _innermost(content, f"{folder}/{names.pop()}")


def _plain(train: Part, held_out: list[Part], seen: _Seen) -> Plain:
    labelled = [one for one in held_out if any(label is not None for label in one.classes)]
    chosen = next(iter([*labelled, *held_out]), None)
    for one in held_out:
        if one is not chosen:
            seen.left_out["unused"] += len(one.images)
    for part in (train, chosen):
        if part is not None and len(part.unreadable) == len(part.images):
            raise Refused("nothing can be read")
    return Plain(train, chosen, +seen.left_out)


def _together(root: str, seen: _Seen) -> Plain:
    shards = sorted(name for name in seen.tars if "/" not in name)
    seen.left_out["no image"] += len(seen.tars) - len(shards)
    if not shards:
        return _plain(_read(root, seen, "", ""), [], seen)
    if seen.images:
        raise Refused("shards and images")
    parts: dict[str, list[str]] = {}
    for name in shards:
        words = [one for one in re.split(r"[^a-z]+", name.lower()) if purpose(one)]
        words = [one for one in words if any(one in some for some in PURPOSES.values())]
        parts.setdefault(words[0] if words else "", []).append(name)
    by_purpose: dict[str, list[str]] = {}
    spelled: dict[str, set[str]] = {}
    for word, names in parts.items():
        by_purpose.setdefault(str(purpose(word) if word else ""), []).extend(names)
        for name in names:
            place = name.lower().index(word) if word else 0
            spelled.setdefault(str(purpose(word) if word else ""), set()).add(
                name[place : place + len(word)]
            )
    loose = by_purpose.pop("", [])
    spelled.pop("", None)
    if not by_purpose or (loose and "train" not in by_purpose):
        by_purpose["train"], loose = loose, []
    if any(len(some) > 1 for some in spelled.values()):
        raise Refused("two for one purpose")
    if len(by_purpose) == 1 and not loose:
        return _plain(_read_tars(root, "", next(iter(by_purpose.values()))), [], seen)
    if "train" not in by_purpose:
        raise Refused("none to learn from")
    order = [one for one in ("train", "test", "val") if one in by_purpose]
    train, *held_out = [_read_tars(root, "", sorted(by_purpose[one])) for one in order]
    seen.left_out["beside"] += len(loose)
    return _plain(train, held_out, seen)


def _read(root: str, seen: _Seen, folder: str, name: str) -> Part:
    images = [one[len(folder) :].lstrip("/") for one in _inside(seen.images, folder)]
    tars = [one[len(folder) :].lstrip("/") for one in _inside(seen.tars, folder)]
    shards = sorted(one for one in tars if "/" not in one)
    if shards and images:
        raise Refused("shards and images")
    if shards:
        part = _read_tars(root, folder, shards)
        return Part(name, part.images, part.classes, part.unreadable)
    if not images:
        raise Refused("no images")
    images.sort()
    tops = {one.split("/")[0] for one in images if "/" in one}
    labels = [one.split("/")[0] if len(tops) > 1 and "/" in one else None for one in images]
    unreadable = set()
    for one in images:
        path = os.path.join(root, folder, one)
        if not os.path.isfile(path) or Path(path).read_bytes()[:4] != b"\x89PNG":
            unreadable.add(one)
    return Part(name, images, labels, unreadable)


def _read_tars(root: str, folder: str, shards: list[str]) -> Part:
    images = []
    for shard in shards:
        try:
            with tarfile.open(os.path.join(root, folder, shard), "r:") as tar:
                images += [f"{shard}/{name}" for name in tar.getnames()]
        except tarfile.TarError as error:
            raise Refused("no tar") from error
    return Part("", images, [None] * len(images), set())
