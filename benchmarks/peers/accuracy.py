"""What is learned in some minutes of this machine, and how soon: CIFAR-10, all images.

Each peer runs twice, with our settings and with those of its own documents. Of ours only those
encoders count that were there within the minutes; a peer goes on to the end of the epoch that it
is in, and its last encoder counts however late it is: an epoch takes it more than a minute, and its
learning rate reaches zero at the end alone. The same protocol measures the encoders afterwards,
outside the time.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from peers.contenders import OURS, Run, settings_of_docs
from peers.knn import Course, Snapshot, course
from peers.results import Row
from peers.settings import IMAGES, IMAGES_QUICK, Settings, do, images_for, limited, once
from peers.timing import EPOCHS_QUICK, Times, times_of, warm_up

MINUTES: Final = (10.0, 60.0)
"""After which accuracies are compared, where no others are asked for."""
TIME_MINUTES: Final = (20.0,)
"""Of runs whose time to an accuracy is measured, and of a record, likewise."""
LENGTHS: Final = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Of our runs in the search for the time to an accuracy, as shares of the peers' minutes."""
TIME_GOAL: Final = 0.5
CURVE: Final = 8  # snapshots of a run
EPOCHS: Final = (1, 3)
FILLED: Final = 0.97
"""Share of the minutes that our epochs are to fill: what comes too late does not count."""
FIGURE: Final = "learning"  # of all figures here, which share their runs


class Learner(NamedTuple):
    """A library with its settings, and the seconds that a run of it takes."""

    name: str
    settings_of: str
    run: Run
    times: Times = Times(1.0, 0.0)

    @property
    def title(self) -> str:
        """For the table."""
        return self.name if self.name == OURS else f"{self.name}, {self.settings_of} settings"

    def lasting(self, seconds: float, seed: int) -> Run:
        """A run of as many epochs as fit; of a peer, to the end of the last that begins."""
        if self.name == OURS:
            epochs = math.floor((FILLED * seconds - self.times.around) / self.times.epoch)
        else:
            epochs = math.ceil((seconds - self.times.around) / self.times.epoch)
        epochs = max(1, epochs)
        return replace(self.run, epochs=epochs, seed=seed, snapshot_seconds=seconds / CURVE)


def learners(settings: Settings) -> list[Learner]:
    """All of them, with their measured times."""
    count = IMAGES_QUICK if settings.quick else IMAGES
    folder = images_for(settings, 32, count)
    few = limited(settings, folder, count)
    run = Run(
        images=str(folder / "train"),
        out=str(settings.scratch / "run"),
        workers=settings.workers,
        batch=64 if settings.quick else 128,
        strength=0.25,
    )
    found = list[Learner]()
    for name in settings.contenders(run.method):
        for settings_of in ("our",) if name == OURS else ("our", "its own"):
            own = settings_of_docs(name, run) if settings_of == "its own" else run
            found.append(timed(settings, Learner(name, settings_of, own), few))
    return found


def timed(settings: Settings, one: Learner, few: Path) -> Learner:
    """The same with its times, which are kept for the next figure.

    Args:
        settings: of the harness.
        one: whose run is on all images.
        few: a folder with `train/` of fewer, as an epoch of all takes a peer more than a minute.
            Ours, which comes first, is timed on all of them: what it must not exceed is exact, and
            all files are in the machine's cache for those that follow.
    """
    images = one.run.images if one.name == OURS else str(few / "train")
    short = replace(one.run, images=images)
    epochs = EPOCHS_QUICK if settings.quick else EPOCHS

    def measure() -> Times:
        warm_up(settings, one.name, short)
        return times_of(settings, one.name, short, epochs)

    times = Times(*once(settings, FIGURE, f"{one.title} times", one.name, one.run, measure))
    times = times._replace(epoch=times.epoch * count_of(one.run.images) / count_of(images))
    print(f"{one.title}: {times.epoch:.1f} s an epoch", flush=True)
    return one._replace(times=times)


def count_of(folder: str) -> int:
    """Images in class folders."""
    return sum(1 for _ in Path(folder).glob("*/*"))


def learn(settings: Settings, one: Learner, minutes: float, seed: int) -> list[Snapshot]:
    """The course of a run of so many minutes; of ours, as far as it lies within them."""
    run = one.lasting(60 * minutes, seed)
    limit = 60 * minutes if one.name == OURS else math.inf

    def measure() -> Course:
        begun = do(settings, one.name, run).begun
        found = course(one.name, run, begun, limit)
        shutil.rmtree(run.out)
        return found

    title = f"{one.title} {minutes:g} minutes seed {seed}"
    snapshots, late = Course(*once(settings, FIGURE, title, one.name, run, measure))
    snapshots = [Snapshot(*values) for values in snapshots]
    say(f"{one.title}, {minutes:g} minutes, seed {seed}", snapshots, late)
    return snapshots


def say(run: str, snapshots: Sequence[Snapshot], late: int) -> None:
    """What a run reached, and whether it went over its minutes."""
    if snapshots:
        last = snapshots[-1]
        print(f"{run}: {last.knn:.2f}% in {last.seconds / 60:.2f} min", flush=True)
    if late:
        print(f"{run}: it went over them; encoders that came too late: {late}", flush=True)


def last_of(settings: Settings, one: Learner, minutes: float, seed: int) -> Snapshot:
    """The last encoder that counts.

    Raises:
        RuntimeError: there is none.
    """
    found = learn(settings, one, minutes, seed)
    if not found:
        raise RuntimeError(
            f"{one.title} has no encoder after {minutes:g} minutes, of which one epoch takes "
            f"{one.times.epoch / 60:.2f}: give more --minutes, or fewer images."
        )
    return found[-1]


def after_minutes(settings: Settings) -> Iterator[Row]:
    """Accuracy at the end of the minutes, by neighbours and linearly, means over seeds."""
    some = learners(settings)
    for minutes in settings.minutes or MINUTES:
        ends = {
            one.title: [last_of(settings, one, minutes, seed) for seed in range(settings.seeds)]
            for one in some
        }
        seeds = f"{settings.seeds} seed{'s' * (settings.seeds != 1)}"
        case = f"small_resnet, {minutes:g} minutes, {seeds}"
        knn = {name: [one.knn for one in last] for name, last in ends.items()}
        linear = {name: [one.linear or 0.0 for one in last] for name, last in ends.items()}
        epochs = {one.title: one.lasting(60 * minutes, 0).epochs for one in some}
        yield of_means("kNN accuracy", case, knn, epochs)
        yield of_means("linear accuracy", case, linear, epochs)


def of_means(
    figure: str, case: str, values: Mapping[str, Sequence[float]], epochs: Mapping[str, int]
) -> Row:
    """The row of means over seeds, ours over the best of the others."""
    means = {name: sum(some) / len(some) for name, some in values.items()}
    ours = means.pop(OURS)
    notes = {"seeds": values, "epochs": epochs}
    if not means:
        return Row(figure, case, "%", ours, {}, None, None, notes=notes)
    return Row(figure, case, "%", ours, means, ours / max(means.values()), 1.0, notes=notes)


def time_to_accuracy(settings: Settings) -> Iterator[Row]:
    """The time in which we reach what the best peer has after the minutes."""
    if settings.alone:
        print("time-to-accuracy: left out, as no other library was asked for")
        return
    found = learners(settings)
    for minutes in settings.minutes or TIME_MINUTES:
        yield soonest(settings, found, minutes)


def soonest(settings: Settings, found: Sequence[Learner], minutes: float) -> Row:
    """The same of one length."""
    peers = [one for one in found if one.name != OURS]
    curves = {one.title: learn(settings, one, minutes, 0) for one in peers}
    if not any(curves.values()):
        raise RuntimeError(f"no library has an encoder after {minutes:g} minutes: give more.")
    best = max((title for title in curves if curves[title]), key=lambda one: curves[one][-1].knn)
    target = curves[best][-1].knn
    theirs = {title: reached(curve, target) for title, curve in curves.items()}
    ours = next(one for one in found if one.name == OURS)
    seconds = float("inf")
    for share in LENGTHS:
        curve = learn(settings, ours, share * minutes, 0)
        curves[f"{OURS}, {share:g}"] = curve
        seconds = reached(curve, target)
        if seconds < float("inf"):
            break
    shown = {title: value / 60 for title, value in theirs.items() if value < float("inf")}
    case = f"small_resnet, to {target:.1f}% kNN, which {best} has after {minutes:g} minutes"
    ratio = seconds / 60 / shown[best]
    notes = {"curves": curves}
    return Row(
        *("time to accuracy", case, "min", seconds / 60, shown, ratio, TIME_GOAL, "at most"), notes
    )


def record(settings: Settings) -> Iterator[Row]:
    """Minutes to a given accuracy, for docs/leaderboard.md: a mean over seeds, each of which must.

    The length of the run (`--minutes`) is the record's own choice.
    """
    for one in learners(settings):
        for length in settings.minutes or TIME_MINUTES:
            minutes = [
                reached(learn(settings, one, length, seed), settings.target) / 60
                for seed in range(settings.seeds)
            ]
            mean = sum(minutes) / len(minutes)
            case = f"{one.title}, to {settings.target:g}% kNN in a run of {length:g} minutes"
            notes = {"minutes of each seed": minutes}
            yield Row("record", case, "min", mean, {}, None, length, "at most", notes)


def reached(curve: Sequence[Snapshot], target: float) -> float:
    """Seconds until a course first has an accuracy; infinity where it never does."""
    return next((one.seconds for one in curve if one.knn >= target), float("inf"))
