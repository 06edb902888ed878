"""On which images: whatever the set looks like, the split says what is true of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.errors import ImagesError, RunFolderError
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.split import split_words, unlabelled_split, unseen_split
from diptych.images.collection import Collection, ImageSet, present_classes
from diptych.images.inventory import Skipped
from diptych.images.pixels import HeldPixels, PixelBatch
from diptych.models.weights import (
    TrainedOn,
    load_trained_on,
    save_trained_on,
    trained_on,
)


def image_set(
    labels: Sequence[str | None], contents: Sequence[int], names: Sequence[str] | None = None
) -> ImageSet:
    """Images of named classes, or of none; images of the same content have the same number."""
    count = len(labels)
    batch = PixelBatch.of_stack(np.zeros((count, 8, 8, 3), dtype=np.uint8))
    classes = tuple(sorted({label for label in labels if label is not None}))
    numbers = np.array([-1 if one is None else classes.index(one) for one in labels])
    found, present = present_classes(numbers, classes)
    return ImageSet(
        pixels=HeldPixels(batch),
        names=list(names or map(str, contents)),
        heights=batch.heights,
        widths=batch.widths,
        channels=3,
        checksums=np.array([[one, one % 3] for one in contents], dtype=np.uint64).reshape(-1, 2),
        labels=found,
        classes=present,
    )


def opened(train: ImageSet, test: ImageSet | None, group_by: str | None = None) -> Labelled:
    """As an evaluation of a run that learned from ``train``."""
    seen = trained_on([train], labels_used=False)
    found = labelled_parts(Collection(train, test, ""), group_by=group_by, seen=seen)
    assert found is not None
    return found


def contents(images: ImageSet) -> list[int]:
    assert images.checksums is not None
    return images.checksums[:, 0].tolist()


def test_images_learned_from_are_not_called_held_out() -> None:
    train = image_set(["a"] * 10 + ["b"] * 10, range(20))
    test = image_set([None] * 5, range(100, 105))
    found = opened(train, test)
    assert (len(found.train), len(found.test), found.whole is not None) == (16, 4, True)
    assert "measured on 4 images that pretraining saw (without labels), cut from" in found.words
    assert "The 5 held-out images have no labels" in found.words
    assert "held out" not in found.words
    told = replace(found, labels_used=True)
    assert "saw (with labels)" in told.words


def test_labelled_images_held_out_from_unlabelled_ones_are_cut() -> None:
    train = image_set([None] * 9, range(9))
    test = image_set(["a"] * 10 + ["b"] * 10, range(100, 120))
    found = opened(train, test)
    assert {*contents(found.train), *contents(found.test)} == set(range(100, 120))
    assert "measured on 4 images that pretraining did not see" in found.words


def test_one_image_without_a_label_costs_only_itself() -> None:
    train = image_set(["a", "a", None, "b", "b"], range(5), ["u", "v", "loose", "x", "y"])
    test = image_set(["a", None, "b", None], range(10, 14))
    found = opened(train, test)
    assert (len(found.train), len(found.test)) == (4, 2)
    assert "1 training images without a label (loose)" in found.words
    assert "2 test images without a label (11, 13)" in found.words
    assert found.as_dict()["left_out"][0]["images"] == 1


def test_classes_are_matched_by_name_and_unknown_ones_are_counted_apart() -> None:
    train = image_set(["cat", "cat", "dog", "dog"], range(4))
    test = image_set(["Cat", "dog", "lynx", "lynx", "cat"], range(10, 15))
    found = opened(train, test)
    assert [found.classes[i] for i in found.test_labels.tolist()] == ["dog", "cat"]
    assert "3 test images of classes that the training images lack (Cat, lynx)" in found.words
    assert "Nearly alike: 'Cat' and 'cat'" in found.words
    with pytest.raises(ImagesError, match=r"none in common.*Nearly alike: 'CAT' and 'cat'"):
        opened(train, image_set(["CAT", "lynx"], range(10, 12)))


def test_what_pretraining_saw_is_told_by_content_not_by_name() -> None:
    train = image_set(["a", "a", "b", "b"], [1, 2, 3, 4], ["1", "2", "3", "4"])
    test = image_set(["a", "b", "b"], [2, 8, 9], ["moved", "1", "2"])
    found = opened(train, test)
    assert found.test_seen is not None
    assert found.test_seen.tolist() == [True, False, False]
    assert "3 images, 1 of which pretraining saw" in found.words
    assert "1 of the 3 measured on are also among those fitted on" in found.words
    unknown = labelled_parts(Collection(train, test, ""))
    assert unknown is not None
    assert "whether pretraining saw them is not known" in unknown.words
    assert unknown.as_dict()["test_images_seen"] is None
    elsewhere = labelled_parts(
        Collection(train, test, ""), seen=TrainedOn(np.array([[99, 0]], dtype=np.uint64))
    )
    assert elsewhere is not None
    assert "3 images that pretraining did not see" in elsewhere.words


def frames(patients: int, each: int, classes: int) -> ImageSet:
    """Each patient's frames are of one class."""
    names = [f"p{p}_{k}.png" for p in range(patients) for k in range(each)]
    labels = [f"c{p % classes}" for p in range(patients) for _ in range(each)]
    return image_set(labels, range(len(names)), names)


def test_intervals_say_of_how_many_groups_they_are() -> None:
    found = opened(frames(12, 5, 3), None, "name:(p[0-9]+)_")
    assert found.test_units is not None
    patients = [name.split("_")[0] for name in found.test.names]
    pairs = {*zip(patients, found.test_units.tolist(), strict=True)}
    assert len(pairs) == len(set(patients)) == len({unit for _, unit in pairs}) == 3
    said = found.as_resampled()
    assert said["test_units"] == 3
    assert "(images.group_by), as one: 3 of these 15 images" in said["words"]
    assert said["tested"] == found.tested
    few = found.select(np.arange(len(found.train)), np.array([0, 5, 6]))
    assert few.as_resampled()["test_units"] == 2
    copies = opened(image_set(["a", "b"], [1, 2]), image_set(["a", "b", "b"], [7, 9, 9]))
    assert copies.as_resampled()["test_units"] == 2
    alone = opened(image_set(["a", "b"], [1, 2]), image_set(["a", "b", "b"], [7, 8, 9]))
    assert alone.as_resampled() == alone.as_dict() | {"test_units": 3}


def test_frames_of_a_patient_are_on_one_side() -> None:
    images = frames(12, 5, 3)
    found = opened(images, None, "name:(p[0-9]+)_")
    sides = [{name.split("_")[0] for name in part.names} for part in (found.train, found.test)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3
    assert set(found.test_labels.tolist()) == {0, 1, 2}
    assert "No group (images.group_by) has images in both." in found.words
    assert found.units is not None
    assert len(np.unique(found.units)) == 9  # for cuts within the training images
    alone = opened(images, None)
    sides = [{name.split("_")[0] for name in part.names} for part in (alone.train, alone.test)]
    assert sides[0] & sides[1]  # without groups they would be on both


def test_a_class_of_one_group_is_fitted_on_only() -> None:
    images = frames(5, 4, 2)  # c0 has three patients, c1 two
    rare = image_set(
        [*(images.classes[i] for i in np.array(images.labels)), "rare"],
        range(21),
        [*images.names, "p99_0.png"],
    )
    found = opened(rare, None, "name:(p[0-9]+)_")
    assert "Fitted on only, with too few groups of images for both sides: rare." in found.words
    assert 2 in found.train_labels.tolist()
    assert 2 not in found.test_labels.tolist()


def test_groups_on_both_given_sides_are_counted() -> None:
    images = frames(12, 5, 3)
    train, test = images.select(np.arange(42)), images.select(np.arange(42, 60))
    found = opened(train, test, "name:(p[0-9]+)_")
    assert "3 of the 18 measured on are of groups (images.group_by)" in found.words


def test_groups_that_say_no_more_than_the_class_are_said_to() -> None:
    found = opened(frames(3, 6, 3), None, "name:(p[0-9]+)_")
    assert len(found.test) == 3
    assert "each class is one group, so groups lie on both sides" in found.words


def test_groups_that_cannot_be_found_are_said_to_be_unknown() -> None:
    found = opened(frames(6, 4, 3), None, "name:patient([0-9]+)")
    assert found.shared is None
    assert "Groups are not known, and may lie on both sides: images.group_by" in found.words


def test_copies_of_an_image_are_on_one_side() -> None:
    found = opened(image_set(["a"] * 12 + ["b"] * 12, [*range(4)] * 3 + [*range(4, 8)] * 3), None)
    assert not set(contents(found.train)) & set(contents(found.test))
    assert found.repeated is not None
    assert not found.repeated.any()
    with pytest.raises(ImagesError, match="none of the 2 classes has two images that differ"):
        opened(image_set(["a", "a", "b"], [1, 1, 2]), None)


@pytest.mark.parametrize("seed", range(60))
def test_every_image_is_on_one_side_or_left_out(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(start: int, classes: NDArray[np.str_]) -> ImageSet:
        count = int(rng.integers(8, 40))
        labels = [None if rng.random() < 0.1 else str(rng.choice(classes)) for _ in range(count)]
        names = [f"g{rng.integers(0, 12)}-{start + k}" for k in range(count)]
        found = image_set(labels, rng.integers(start, start + 30, count).tolist(), names)
        return replace(found, skipped=(Skipped("x", "torn"),) * int(rng.integers(0, 2)))

    train = some(0, np.array(["a", "b", "c"]))
    test = some(20, np.array(["a", "b", "z"])) if seed % 2 else None
    try:
        found = opened(train, test, "name:(g[0-9]+)-")
    except ImagesError:
        return
    left_out = sum(one.images for one in found.left_out if "cannot be used" not in one.why)
    both = len(train) + (0 if test is None else len(test))
    assert len(found.train) + len(found.test) + left_out == both
    assert set(found.test_labels.tolist()) <= set(found.train_labels.tolist()) | (
        set(range(len(found.classes))) if test is not None else set()
    )
    sides = [{name.split("-")[0] for name in part.names} for part in (found.train, found.test)]
    assert found.shared is not None
    assert found.shared.sum() == sum(n.split("-")[0] in sides[0] for n in found.test.names)
    if test is None:
        assert not sides[0] & sides[1]
        assert not set(contents(found.train)) & set(contents(found.test))
    for skipped, what in ((train, "training images"), (test, "test images")):
        if test is not None and skipped is not None and skipped.skipped:
            assert f"{what} that cannot be used (x)" in found.words


def test_some_of_both_parts_keep_what_is_known_of_them() -> None:
    train = image_set(["a", "a", "b", "b"], [1, 2, 3, 4])
    found = opened(train, image_set(["a", "b", "b"], [2, 8, 9]))
    few = found.select(np.array([0, 3]), np.array([0, 2]))
    assert few.test_seen is not None
    assert (few.test_seen.tolist(), few.test_labels.tolist()) == ([True, False], [0, 1])
    assert "2 images, 1 of which pretraining saw" in few.words


def test_of_fewer_images_it_says_what_is_true_of_these() -> None:
    # A copy and the rest of a group, beside the one image that is no longer fitted on.
    names = ["p0_0", "p1_0", "p2_0", "p3_0"]
    train = image_set(["a", "b", "a", "b"], [1, 2, 3, 4], names)
    test = image_set(["a", "b", "b"], [2, 8, 9], ["p1_1", "p3_1", "p9_1"])
    found = opened(train, test, "name:(p[0-9]+)_")
    assert found.as_counts()["test_images_in_train"] == 1
    assert found.as_counts()["test_images_of_shared_groups"] == 2
    few = found.limited(2, None)  # the first and the last
    assert (list(few.train.names), few.as_counts()["test_images_in_train"]) == (["p0_0", "p3_0"], 0)
    assert few.as_counts()["test_images_of_shared_groups"] == 1
    assert few.shared is not None
    assert few.shared.tolist() == [False, True, False]


def test_the_whole_of_fewer_images_is_these() -> None:
    found = opened(image_set(["a"] * 20 + ["b"] * 20, range(40)), None)
    few = found.limited(13, 5)
    for one in (found, few):
        assert one.whole is not None
        assert contents(one.whole) == contents(one.train) + contents(one.test)


def test_measures_without_labels_have_a_split_too() -> None:
    train, test = image_set([None] * 6, range(6)), image_set([None] * 4, range(4, 8))
    seen = trained_on([train], labels_used=False)
    assert unseen_split(Collection(train, None, ""), seen, most=5).words == (
        "Measured on 5 images that pretraining saw (without labels)."
    )
    assert "4 images, 2 of which" in unseen_split(Collection(train, test, ""), seen, most=9).words
    pair = unlabelled_split(train, test, seen).words
    assert pair.startswith("Fitted on 6 images and measured on 4 images, 2 of which pretraining")
    assert "2 of the 4 measured on are also among those fitted on" in pair
    assert split_words(None) == "On images not recorded."


def test_what_was_learned_from_is_kept_beside_the_encoder(tmp_path: Path) -> None:
    path = tmp_path / "trained_on.safetensors"
    assert load_trained_on(path) is None
    train = image_set([None] * 3, [2**64 - 1, 7, 7])
    save_trained_on(path, trained_on([train, train], labels_used=True))
    found = load_trained_on(path)
    assert found is not None
    assert found.checksums.dtype == np.uint64
    assert found.checksums.tolist() == 2 * np.array(train.checksums).tolist()
    assert found.labels_used
    path.write_bytes(b"junk")
    with pytest.raises(RunFolderError, match="is damaged"):
        load_trained_on(path)
    unknown = replace(train, checksums=None)
    assert trained_on([train, unknown], labels_used=False) is None
    save_trained_on(tmp_path / "none", None)
    assert not (tmp_path / "none").exists()
