"""Random trees of folders: the same images, labels and parts as by a second implementation."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet
from diptych.images.inventory import Skipped
from diptych.images.listing import Listing
from diptych.images.open import locate_images, open_images
from diptych.images.splits import hold_out, role_of
from plain_folder import SPELLINGS, Part, Plain, Refused, look_at, purpose
from random_trees import CLASSES, PARTS, make_tree

KINDS = (
    ("loop", "a link that leads back"),
    ("again", "the same folder as"),
    ("broken", "broken symbolic link"),
    ("hidden", "begins with a dot"),
    ("empty", "a folder without images"),
    ("beside", "beside the parts"),
    ("beside", "a shard of no part"),
    ("unused", "a part that is not used"),
)


def kind_of(row: Skipped) -> str:
    return next((kind for kind, words in KINDS if words in row.reason), "no image")


def labels_of(listing: Listing | ImageSet) -> list[str | None]:
    if listing.labels is None:
        return [None] * len(listing.names)
    return [None if label < 0 else listing.classes[label] for label in listing.labels]


def require_same(listing: Listing | ImageSet, opened: ImageSet, wanted: Part) -> None:
    assert list(listing.names) == wanted.images
    assert labels_of(listing) == wanted.classes
    assert {one.name for one in opened.skipped} == wanted.unreadable
    assert list(opened.names) == [one for one in wanted.images if one not in wanted.unreadable]


def check(place: Path, seed: int, executor: ThreadPoolExecutor) -> str:
    root = make_tree(place, seed)
    config = ImagesConfig(path=str(root), cache="memory", max_unreadable_share=1.0)
    try:
        wanted: Plain | Refused = look_at(root)
    except Refused as refused:
        wanted = refused
    if isinstance(wanted, Refused):
        with pytest.raises(ImagesError) as raised:
            open_images(config, executor)
        assert str(root) in str(raised.value)
        return str(wanted)
    found, opened = locate_images(config), open_images(config, executor)
    require_same(found.train, opened.train, wanted.train)
    held = hold_out(found)
    assert (held.images is None) == (wanted.held_out is None) == (opened.test is None)
    if held.images is not None and opened.test is not None and wanted.held_out is not None:
        require_same(held.images, opened.test, wanted.held_out)
        assert wanted.held_out.name in ("", opened.test_part)
    counted = Counter[str]()
    for row in opened.left_out:
        counted[kind_of(row)] += row.count
    assert counted == wanted.left_out
    listed = Counter(row.part for row in opened.inventory.rows() if row in opened.train.skipped)
    assert set(listed) <= {opened.train_part}
    opened.description.encode()  # whatever the names, it can be printed
    return "opened"


def check_many(seeds: range, tmp_path: Path) -> Counter[str]:
    ends = Counter[str]()
    with ThreadPoolExecutor(1) as executor:
        for seed in seeds:
            place = tmp_path / str(seed)
            try:
                ends[check(place, seed, executor)] += 1
            except BaseException as error:
                error.add_note(f"tree of seed {seed} in {place}")
                raise
    return ends


def test_a_hundred_random_trees(tmp_path: Path) -> None:
    ends = check_many(range(100), tmp_path)
    assert ends["opened"] > 40
    assert len(ends) > 3


@pytest.mark.slow
def test_five_thousand_random_trees(tmp_path: Path) -> None:
    ends = check_many(range(100, 5100), tmp_path)
    assert ends["opened"] > 2000
    assert {"a part or a class", "two for one purpose", "shards and images"} <= ends.keys()


def test_parts_are_known_by_the_names_in_the_documents() -> None:
    for name in (*SPELLINGS, *PARTS, *CLASSES):
        for spelled in (name, name.upper(), f"{name}_2017", f"{name}s", f"x{name}", f"{name}17"):
            assert role_of(spelled) == purpose(spelled), spelled
