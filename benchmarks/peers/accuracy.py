"""What is learned in some minutes of this machine, and how soon: CIFAR-10, all images.

Each peer runs twice, with our settings and with those of its own documents, and each run is as
many epochs as fit into the minutes; runs of one and two epochs, which are not counted, say how
many. The same protocol of kNN measures every encoder afterwards, outside the time.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from peers.contenders import OURS, Run, settings_of_docs
from peers.knn import Snapshot, course
from peers.results import Row
from peers.settings import Settings, do, images_for

LENGTHS: Final = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Of our runs in the search for the time to an accuracy, as shares of the peers' minutes."""
TIME_GOAL: Final = 0.5
CURVE: Final = 12  # snapshots of a run
IMAGES_QUICK: Final = 320


class Learner(NamedTuple):
    """A library with its settings, and the seconds that a run of it takes."""

    name: str
    settings_of: str
    run: Run
    start: float
    epoch: float

    @property
    def title(self) -> str:
        """For the table."""
        return self.name if self.name == OURS else f"{self.name}, {self.settings_of} settings"

    def lasting(self, seconds: float, seed: int) -> Run:
        """A run of as many epochs as fit."""
        epochs = max(1, int((seconds - self.start) / self.epoch))
        return replace(self.run, epochs=epochs, seed=seed, snapshot_seconds=seconds / CURVE)


def learners(settings: Settings) -> list[Learner]:
    """All of them, with their measured times."""
    folder = images_for(settings, 32, IMAGES_QUICK)
    run = Run(
        images=str(folder / "train"),
        out=str(settings.scratch / "run"),
        workers=settings.workers,
        batch=64 if settings.quick else 128,
        strength=0.25,
    )
    found = []
    for name in settings.contenders(run.method):
        for settings_of in ("our",) if name == OURS else ("our", "its own"):
            own = settings_of_docs(name, run) if settings_of == "its own" else run
            found.append(timed(settings, Learner(name, settings_of, own, 0.0, 1.0)))
    return found


def timed(settings: Settings, one: Learner) -> Learner:
    """The same with its times, which are kept for the next figure."""
    kept = kept_file(settings, one, "times")
    if not kept.exists():
        first, second = (
            do(settings, one.name, replace(one.run, epochs=epochs)).seconds for epochs in (1, 2)
        )
        epoch = max(second - first, 1e-2 * first)
        kept.write_text(json.dumps([max(0.0, first - epoch), epoch]))
    start, epoch = json.loads(kept.read_text())
    print(f"{one.title}: {epoch:.1f} s an epoch", flush=True)
    return one._replace(start=start, epoch=epoch)


def kept_file(settings: Settings, one: Learner, what: str) -> Path:
    """What was measured of a learner stays here, so that a long figure may be stopped."""
    name = f"{one.title}-{what}".replace(" ", "-").replace(",", "")
    place = settings.scratch / "kept" / f"{name}.json"
    place.parent.mkdir(exist_ok=True)
    return place


def learn(settings: Settings, one: Learner, minutes: float, seed: int) -> list[Snapshot]:
    """The course of a run of so many minutes; what is learned stays in a file beside it."""
    kept = kept_file(settings, one, f"{minutes:g}-minutes-seed-{seed}")
    if not kept.exists():
        run = one.lasting(60 * minutes, seed)
        begun = do(settings, one.name, run).begun
        found = course(one.name, run, begun, last_only=False)
        kept.write_text(json.dumps(found))
        shutil.rmtree(run.out)
    found = [Snapshot(*pair) for pair in json.loads(kept.read_text())]
    last = found[-1]
    print(f"{one.title}, seed {seed}: {last.knn:.2f}% in {last.seconds / 60:.2f} min", flush=True)
    return found


def after_minutes(settings: Settings) -> list[Row]:
    """Accuracy by kNN at the end of the minutes, a mean over seeds."""
    ends = {
        one.title: [
            learn(settings, one, settings.minutes, seed)[-1].knn for seed in range(settings.seeds)
        ]
        for one in learners(settings)
    }
    means = {name: sum(values) / len(values) for name, values in ends.items()}
    ours = means.pop(OURS)
    best = max(means.values())
    case = f"small_resnet, {settings.minutes:g} minutes, {settings.seeds} seeds"
    row = Row("kNN accuracy", case, "%", ours, means, ours / best, 1.0, notes={"seeds": ends})
    return [row]


def time_to_accuracy(settings: Settings) -> list[Row]:
    """The time in which we reach what the best peer has after the minutes."""
    found = learners(settings)
    peers = [one for one in found if one.name != OURS]
    curves = {one.title: learn(settings, one, settings.minutes, 0) for one in peers}
    best = max(curves, key=lambda title: curves[title][-1].knn)
    target = curves[best][-1].knn
    theirs = {title: reached(curve, target) for title, curve in curves.items()}
    ours = next(one for one in found if one.name == OURS)
    seconds = float("inf")
    for share in LENGTHS:
        curve = learn(settings, ours, share * settings.minutes, 0)
        curves[f"{OURS}, {share:g}"] = curve
        seconds = reached(curve, target)
        if seconds < float("inf"):
            break
    minutes = {title: value / 60 for title, value in theirs.items() if value < float("inf")}
    case = (
        f"small_resnet, to {target:.1f}% kNN, which {best} has after {settings.minutes:g} minutes"
    )
    ratio = seconds / 60 / minutes[best]
    return [
        Row(
            *("time to accuracy", case, "min", seconds / 60, minutes, ratio, TIME_GOAL, "at most"),
            notes={"curves": curves},
        )
    ]


def record(settings: Settings) -> list[Row]:
    """Minutes to a given accuracy, for docs/leaderboard.md: a mean over seeds, each of which must.

    The length of the run (`--minutes`) is the record's own choice.
    """
    rows = []
    for one in learners(settings):
        minutes = [
            reached(learn(settings, one, settings.minutes, seed), settings.target) / 60
            for seed in range(settings.seeds)
        ]
        mean = sum(minutes) / len(minutes)
        case = f"{one.title}, to {settings.target:g}% kNN in a run of {settings.minutes:g} minutes"
        notes = {"minutes of each seed": minutes}
        rows.append(Row("record", case, "min", mean, {}, mean, settings.minutes, "at most", notes))
    return rows


def reached(curve: Sequence[Snapshot], target: float) -> float:
    """Seconds until a course first has an accuracy; infinity where it never does."""
    return next((one.seconds for one in curve if one.knn >= target), float("inf"))
