"""Parts of a data set by their names: which to learn from, and which is held out."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final, Literal

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.escaping import readable
from diptych.images.collection import ImageSet, held_out_config
from diptych.images.inventory import Skipped, listed
from diptych.images.listing import (
    Listing,
    Progress,
    ignore_progress,
    open_listing,
)

Role = Literal["train", "test", "val"]

TRAIN_NAMES: Final = ("train", "training")
TEST_NAMES: Final = ("test", "val", "valid", "validation", "testing", "dev", "eval", "evaluation")

_ROLES: Final[dict[str, Role]] = {
    **dict.fromkeys(TRAIN_NAMES, "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
}
_WORDS: Final = "|".join(sorted(_ROLES, key=len, reverse=True))
_THINGS: Final = "sets?|splits?|images?|imgs?|data|pictures?|photos?"
_WHOLE: Final = re.compile(
    rf"(?:(?:{_THINGS})[-_. ]?)?({_WORDS})(?:[-_. ]?(?:{_THINGS}))?(?:[-_. ]?\d{{4}})?"
)
_IN_FILE: Final = re.compile(rf"(?<![a-z])({_WORDS})(?![a-z])")
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class LocatedImages:
    """What a path holds, before images are decoded.

    Attributes:
        train: the images to learn from; a set where they lie decoded.
        held_out: what could be held out, the likeliest first; listed as it is asked for.
        train_part: what the part to learn from is called; empty where there are no parts.
        test_part: what the held-out part is called where it lies decoded; a listing knows its own.
        left_out: what else was found.
        remarks: sentences on how it was found.
        description: of what is used, in the place of the usual one.
    """

    train: Listing | ImageSet
    held_out: Iterable[Listing | ImageSet] = ()
    train_part: str = ""
    test_part: str = "test"
    left_out: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class ChosenSplits:
    """Parts by what they are for.

    Attributes:
        train: the name of the part to learn from.
        held_out: names of those that could be held out, the likeliest first.
        unused: names of the others.
    """

    train: str
    held_out: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """That the only part is learned from, where its name says something else."""
        if self.held_out or self.unused or role_of(self.train) in (None, "train"):
            return ()
        return (f"The only part is {readable(self.train)}, and it is learned from.",)


def role_of(name: str) -> Role | None:
    """What a part is for by the name of its folder or key; None for any other name.

    Case does not count; ``set``, ``images``, ``data`` and the like, and a year, may stand beside.

    >>> [role_of(name) for name in ("Training", "train_images", "val2017", "TestSet", "trains")]
    ['train', 'train', 'val', 'test', None]
    """
    found = _WHOLE.fullmatch(name.lower())
    return _ROLES[found[1]] if found else None


def part_of(file: str) -> str:
    """The part that a file of a table or shard is of, as it is called there; empty without one.

    The first of its folders that is named as a part says it, else the first such word in its name.

    >>> part_of("data/train-00000-of-00002.parquet"), part_of("Test/0.tar"), part_of("trains.tar")
    ('train', 'Test', '')
    """
    *folders, name = PurePath(file).parts
    found = _IN_FILE.search(name.lower())
    in_name = name[found.start() : found.end()] if found else ""
    return next((folder for folder in folders if role_of(folder)), in_name)


def by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Files grouped by their part; those of none are learned from where no other part is."""
    parts = dict[str, list[str]]()
    for name in names:
        parts.setdefault(part_of(name), []).append(name)
    loose = parts.pop("", [])
    if loose and parts and not any(role_of(name) == "train" for name in parts):
        parts["train"] = loose
    elif loose:
        parts[""] = loose
    return parts


def choose_splits(parts: Iterable[str], origin: str) -> ChosenSplits:
    """Which parts are for what.

    A single part is learned from, whatever its name.

    Raises:
        ImagesError: there are several parts and none is named as one to learn from, or two are
            named for the same.
    """
    names = tuple(parts)
    if len(names) == 1:
        return ChosenSplits(names[0], (), ())
    roles = dict[Role | None, list[str]]()
    for name in names:
        roles.setdefault(role_of(name), []).append(name)
    unused = tuple(roles.pop(None, []))
    for role, several in roles.items():
        if len(several) > 1:
            raise ImagesError(
                f"{origin} has several parts named for {role}: {listed(sorted(several))}. "
                "Wanted one; give the path of one of them, or rename the others."
            )
    if "train" not in roles:
        raise ImagesError(
            f"{origin} has the parts {listed(sorted(names))}; wanted one named "
            f"{' or '.join(TRAIN_NAMES)}. Give the path of one part."
        )
    held_out = [name for role in ("test", "val") for name in roles.get(role, ())]
    return ChosenSplits(roles["train"][0], tuple(held_out), unused)


def refuse_unclear(where: str, parts: Sequence[str], beside: Sequence[str]) -> None:
    """Where folders may be parts or classes, the user says which.

    Args:
        where: they lie, named in errors.
        parts: folders that are named as parts.
        beside: images and shards that lie in none of them.

    Raises:
        ImagesError: it is not clear.
    """
    learned = [name for name in parts if role_of(name) == "train"]
    folders = any("/" in name for name in beside)
    if not beside or (learned and (len(parts) > 1 or not folders)):
        return
    named = " and ".join(map(readable, parts))
    raise ImagesError(
        f"{where} holds {named}, which may be a part of the data or a class, beside "
        f"{len(beside):,} other images or shards, as {readable(beside[0])}. For the part alone, "
        f"give the path of {readable(parts[0])}; if it is a class, give its folder another name; "
        "to hold a part out, put the others into a folder named train."
    )


def refuse_likely(where: str, classes: Sequence[str]) -> None:
    """Where the names of classes have the words of parts in them, the user says which they are.

    Args:
        where: they lie, named in errors.
        classes: folders, none of which is named as a part.

    Raises:
        ImagesError: one has a word for what is learned from, and one for what is held out.
    """
    learned = next((name for name in classes if "train" in _roles_in(name)), None)
    held_out = next((name for name in classes if _roles_in(name) - {"train"}), None)
    if learned is None or held_out is None:
        return
    raise ImagesError(
        f"{where} holds {readable(learned)} and {readable(held_out)}, which may be parts of the "
        "data or classes. If they are parts, call their folders train and test, or give the path "
        "of one; if they are classes, call them otherwise."
    )


def _roles_in(name: str) -> set[Role]:
    """What the words of a name stand for, as in ``seg_train``, ``train_1`` or ``testA``."""
    words = (word.lower() for word in _WORD.findall(name))
    return {_ROLES[word] for word in words if word in _ROLES}


@dataclass(frozen=True)
class HeldOut:
    """The part that is held out, of those that could be.

    Attributes:
        images: of it; None where there is none.
        part: what it is called.
        unused: the others.
    """

    images: Listing | ImageSet | None
    part: str
    unused: tuple[Skipped, ...]


def hold_out(located: LocatedImages) -> HeldOut:
    """The first part with labels (those of a test part are often withheld), else the first."""
    parts = _held_out(located)
    chosen = next(filter(_has_labels, parts), parts[0] if parts else None)
    name = "" if chosen is None else _name(chosen, located)
    why = f"a part that is not used; {readable(name)} is held out"
    unused = [
        Skipped("", why, _name(one, located), _count(one)) for one in parts if one is not chosen
    ]
    return HeldOut(chosen, name, tuple(unused))


def parts_held_out(located: LocatedImages) -> tuple[tuple[str, int], ...]:
    """Name and number of images of each part that is not to be learned from; none is empty."""
    return tuple((_name(one, located), _count(one)) for one in _held_out(located))


def open_located(
    located: LocatedImages,
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress = ignore_progress,
) -> tuple[ImageSet, ImageSet | None]:
    """Opens what to learn from and the best of what could be held out."""
    learned = _opened(located.train, config, executor, on_progress)
    test = hold_out(located).images
    if test is None:
        return learned, None
    config = held_out_config(config, learned)
    return learned, _opened(test, config, executor, on_progress)


def open_every_part(
    located: LocatedImages,
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress = ignore_progress,
) -> list[tuple[str, ImageSet]]:
    """Opens all parts; each with its name, which is empty where there is one alone."""
    first = _opened(located.train, config, executor, on_progress)
    others = _held_out(located)
    config = held_out_config(config, first)
    return [
        (located.train_part if others else "", first),
        *((_name(one, located), _opened(one, config, executor, on_progress)) for one in others),
    ]


def _opened(
    part: Listing | ImageSet, config: ImagesConfig, executor: Executor, on_progress: Progress
) -> ImageSet:
    if isinstance(part, ImageSet):
        return part
    images = open_listing(part, config, executor, on_progress)
    return replace(images, skipped=tuple(replace(one, part=part.part) for one in images.skipped))


def _held_out(located: LocatedImages) -> list[Listing | ImageSet]:
    return [one for one in located.held_out if _count(one)]


def _has_labels(part: Listing | ImageSet) -> bool:
    return part.labels is not None and len(part.classes) > 1 and bool((part.labels >= 0).any())


def _count(part: Listing | ImageSet) -> int:
    return len(part.names)


def _name(part: Listing | ImageSet, located: LocatedImages) -> str:
    return part.part if isinstance(part, Listing) else located.test_part
