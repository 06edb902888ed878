"""Groups by folder, name and table; partners are drawn evenly and follow from seed and epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diptych.config.consistency import require_consistent
from diptych.config.data import ImagesConfig
from diptych.config.method import MethodConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.images.frame_times import times_of
from diptych.images.groups import Groups, find_groups, groups_of

NAMES = ["cats/tom/1.png", "cats/tom/2.png", "cats/kit/1.png", "dogs/rex/9.png"]


@pytest.mark.parametrize(
    ("group_by", "numbers"),
    [
        ("folder", [0, 0, 1, 2]),
        ("folder:1", [0, 0, 0, 1]),
        ("folder:2", [0, 0, 1, 2]),
        (r"name:/(\d+)\.png$", [0, 1, 0, 2]),
    ],
)
def test_groups_by_folder_and_name(group_by: str, numbers: list[int]) -> None:
    assert find_groups(NAMES, group_by).numbers.tolist() == numbers


def test_groups_by_a_table(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    rows = ["patient,name", "p1,cats/tom/1.png", "p2,cats/tom/2.png", "p2,cats/kit/1.png"]
    table.write_text("\n".join([*rows, "p1,dogs/rex/9.png", "p7,another.png"]))
    assert find_groups(NAMES, f"{table}:patient").numbers.tolist() == [0, 1, 1, 0]
    with pytest.raises(
        ConfigError, match=r"needs the columns 'name' and 'hospital'; it has patient"
    ):
        find_groups(NAMES, f"{table}:hospital")
    with pytest.raises(ConfigError, match=r"no row for 1 of 1 images, as 'new\.png'"):
        find_groups(["new.png"], f"{table}:patient")


def test_a_table_that_says_two_things_of_an_image_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("name,patient\na.png,p1\nb.png,p2\na.png,p1\nb.png,p3\n")
    with pytest.raises(ConfigError, match=r"two rows for 'b\.png', with 'p2' and 'p3' as patient"):
        find_groups(["a.png", "b.png"], f"{table}:patient")


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("patient", "must be 'folder'"),
        ("name:", "must be 'folder'"),
        ("folder:3", "needs a level between 1 and 2 for 'cats/tom/1.png'"),
        ("folder:0", "needs a level between 1 and 2"),
        ("folder:x", "needs a level between 1 and 2"),
        ("name:tom", "needs a parenthesis"),
        ("name:(", "no regular expression"),
        ("name:(tom)", r"not found in 2 of 4 names, as 'cats/kit/1\.png'"),
        ("name:(.)ng$", "puts all 4 images into one group"),
        ("missing.csv:patient", "there is no table missing.csv. Wanted a CSV file with the"),
    ],
)
def test_what_cannot_be_grouped_is_refused(group_by: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_groups(NAMES, group_by)


def test_an_image_of_which_nothing_is_known_is_a_group_of_its_own(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("name,patient\na.png,\nb.png,7\nc.png, \nd.png,7\ne.png\n")
    groups = find_groups(["a.png", "b.png", "c.png", "d.png", "e.png"], f"{table}:patient")
    assert groups.numbers.tolist() == [0, 1, 2, 1, 3]
    assert find_groups(["x1.png", "x.png", "y.png"], "name:(\\d?)").numbers.tolist() == [0, 1, 2]


def test_partners_are_other_images_of_the_group_equally_often() -> None:
    numbers = np.array([3, 0, 3, 1, 3, 0, 3, 2])
    groups = Groups.of(np.unique(numbers, return_inverse=True)[1])
    met: Counter[int] = Counter()
    everything = np.arange(8)
    for epoch in range(3000):
        shown = groups.partners(everything, seed=1, epoch=epoch, views=3)
        assert shown.shape == (3, 8)
        assert (shown[0] == everything).all()
        assert (numbers[shown] == numbers[None, :]).all()
        assert (shown[1:, [0, 2, 4, 6, 1, 5]] != everything[[0, 2, 4, 6, 1, 5]]).all()
        assert (shown[:, [3, 7]] == everything[[3, 7]]).all()
        met.update(shown[1:, 0].tolist())
    assert set(met) == {2, 4, 6}
    assert sum((met[i] - 2000) ** 2 / 2000 for i in (2, 4, 6)) < 13.8  # chi-squared, 2, p = 0.001


def test_a_partner_does_not_depend_on_the_batch() -> None:
    groups = Groups.of(np.arange(40) // 5)
    whole = groups.partners(np.arange(40), seed=7, epoch=2, views=2)
    some = np.array([31, 4, 17])
    assert (groups.partners(some, seed=7, epoch=2, views=2) == whole[:, some]).all()
    assert (groups.partners(some, seed=8, epoch=2, views=2) != whole[:, some]).any()
    assert (groups.partners(np.arange(40), seed=7, epoch=3, views=2) != whole).any()


# --- partners near in time ----------------------------------------------------------------------


def test_times_are_those_of_frames() -> None:
    names = ["v/walk.mp4#3", "v/walk.mp4", "cam2/frame_00017.png", "9_x.tif#4", "take 3 0040 b.jpg"]
    assert times_of(names, 0.5).tolist() == [1.0, 0.0, 17.0, 4.0, 40.0]
    assert times_of(["walk.mp4#3"], None).tolist() == [3.0]
    with pytest.raises(ConfigError, match=r"'cats2/tom\.png' has none"):
        times_of(["cats2/tom.png"], None)


def test_partners_are_near_in_time_and_equally_often() -> None:
    """Against every pair, for images in any order, with gaps and two at one time."""
    rng = np.random.default_rng(3)
    numbers = rng.permutation(np.repeat(np.arange(3), 8))
    times = rng.choice(40, 24).astype(np.float64)
    groups = Groups.of(numbers).near(times, 5.0)
    some = np.array([19, 4, 11])
    whole, part = (groups.partners(one, seed=2, epoch=3, views=2) for one in (np.arange(24), some))
    assert np.array_equal(whole[:, some], part)  # so each process draws its share of the whole
    everything, met = np.arange(24), np.zeros((24, 24))
    for epoch in range(2000):
        shown = groups.partners(everything, seed=1, epoch=epoch, views=2)
        met[shown[0], shown[1]] += 1
    for i in range(24):
        near = [
            j
            for j in range(24)
            if j != i and numbers[j] == numbers[i] and abs(times[j] - times[i]) <= 5.0
        ] or [i]
        assert set(np.flatnonzero(met[i])) == set(near)
        assert np.abs(met[i, near] - 2000 / len(near)).max() < 5 * (2000 / len(near)) ** 0.5


def test_seconds_between_frames_are_exact() -> None:
    """0.1 and 0.2 are no binary fractions, and 3 x 0.1 is not 0.3."""
    names = [f"v.mp4#{number}" for number in range(1, 11)] + ["w.mp4#1"]
    config = ImagesConfig(group_by="name:(.*)#", group_within=0.3, video_seconds=0.1)
    groups = groups_of(names, config)
    assert groups is not None
    assert groups.counts.tolist() == [4, 5, 6, 7, 7, 7, 7, 6, 5, 4, 1]


def test_the_whole_group_is_near_enough_for_a_long_time() -> None:
    names = [f"{video}/{frame}.png" for video in "ab" for frame in range(20)]
    near = groups_of(names, ImagesConfig(group_by="folder", group_within=100))
    plain = groups_of(names, ImagesConfig(group_by="folder"))
    assert near is not None
    assert plain is not None
    everything = np.arange(40)
    ours, theirs = (one.partners(everything, seed=1, epoch=2, views=2) for one in (near, plain))
    assert np.array_equal(ours, theirs)
    assert near.fingerprint() == plain.fingerprint() == find_groups(names, "folder").fingerprint()
    close = groups_of(names, ImagesConfig(group_by="folder", group_within=3))
    closer = groups_of(names, ImagesConfig(group_by="folder", group_within=2))
    assert close is not None
    assert closer is not None
    assert len({one.fingerprint() for one in (plain, close, closer)}) == 3
    assert groups_of(names, ImagesConfig()) is None


def test_a_time_in_which_nothing_happens_is_refused() -> None:
    names = [f"{video}/{10 * frame}.png" for video in "ab" for frame in range(5)]
    with pytest.raises(ConfigError, match=r"group_within = 9: no image has another .* so near"):
        groups_of(names, ImagesConfig(group_by="folder", group_within=9))
    with pytest.raises(ConfigError, match=r"images\.group_within must be positive; got 0"):
        ImagesConfig(group_within=0.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(images=ImagesConfig(group_within=2)), r"give images\.group_by.*got 2"),
        (
            RunConfig(
                images=ImagesConfig(group_by="folder", group_within=2), method=MethodConfig(views=3)
            ),
            r"positives of each other, near or not: .* got 3",
        ),
    ],
)
def test_what_does_not_go_with_near_partners_is_refused(config: RunConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_consistent(config)
