"""Throughput and memory of pretraining: a whole command from a folder of JPEG files.

Seconds for an epoch are the difference between runs of six epochs and of two, divided by four.
Libraries take turns; one run of each, of one epoch, comes before and is not counted.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from peers.contenders import OURS, Method, Run
from peers.results import Row, compared, medians
from peers.settings import IMAGES, IMAGES_QUICK, Settings, do, images_for
from peers.timing import EPOCHS_QUICK, times_of, warm_up

METHODS: Final[tuple[Method, ...]] = ("simclr", "moco_v2")
GOALS: Final = {"small_resnet": 2.0, "resnet18": 1.5}
MEMORY_GOAL: Final = 0.7
SIDES: Final = (32, 96)
EPOCHS: Final = (2, 6)
FEWER: Final = {("small_resnet", 96): 5_000, ("resnet18", 96): 2_500}
"""Images where a step takes so long that fewer of them make as good a figure."""


def cases(settings: Settings) -> Iterator[tuple[str, Run, list[str]]]:
    """The eight cells, or those asked for, with who does them; quick, the first of each method.

    A cell is left out where none of the libraries that were asked for has its method.
    """
    for network in list(GOALS)[: 1 if settings.quick else None]:
        for side in SIDES[: 1 if settings.quick else None]:
            for method in METHODS:
                case = f"{method}, {network} at {side}"
                names = settings.contenders(method)
                if settings.case not in case:
                    continue
                if names == [OURS] and not settings.alone:
                    print(f"{case}: left out, as {', '.join(settings.only[1:])} has no {method}")
                    continue
                count = IMAGES_QUICK if settings.quick else FEWER.get((network, side), IMAGES)
                folder = limited(settings, images_for(settings, side, count), count)
                run = Run(
                    images=str(folder / "train"),
                    out=str(settings.scratch / "run"),
                    method=method,
                    network=network,
                    side=side,
                    batch=64 if settings.quick else 128,
                    strength=0.5 if side == 32 else 1.0,
                    blur=side > 32,
                    workers=settings.workers,
                )
                yield case, run, names


def limited(settings: Settings, folder: Path, count: int) -> Path:
    """A folder of links to that many images of a set's part to learn from, class by class."""
    classes = sorted(one for one in (folder / "train").iterdir() if one.is_dir())
    each = count // len(classes)
    # Another set of the same name has links of its own.
    mark = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=4).hexdigest()
    out = settings.scratch / f"{folder.name}-{mark}-{count}"
    for one in classes:
        (out / "train" / one.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(one.iterdir())[:each]:
            link = out / "train" / one.name / file.name
            if not link.exists():
                link.symlink_to(file.resolve())
    return out


def throughput(settings: Settings) -> Iterator[Row]:
    """Seconds an epoch, and what comes before and after the epochs."""
    for case, run, names in cases(settings):
        epoch: dict[str, list[float]] = {name: [] for name in names}
        around: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            warm_up(settings, name, run)
        for _ in range(settings.rounds):
            for name in names:
                epochs = EPOCHS_QUICK if settings.quick else EPOCHS
                found = times_of(settings, name, run, epochs)
                epoch[name].append(found.epoch)
                around[name].append(found.around)
                print(f"{case}, {name}: {found.epoch:.1f} s an epoch", flush=True)
        goal = GOALS[run.network]
        yield compared("seconds an epoch", case, "s", epoch, goal, around=medians(around))
    shutil.rmtree(settings.scratch / "run", ignore_errors=True)


def memory(settings: Settings) -> Iterator[Row]:
    """The highest memory of all processes of runs of one epoch."""
    for case, run, names in cases(settings):
        most: dict[str, list[float]] = {name: [] for name in names}
        for name in names:  # compiling takes memory of its own, and only once
            warm_up(settings, name, run)
        for _ in range(settings.rounds):
            for name in names:
                watched = do(settings, name, replace(run, epochs=1), memory=True)
                most[name].append(watched.megabytes)
                print(f"{case}, {name}: {watched.megabytes:.0f} MB", flush=True)
        yield compared("peak memory", case, "MB", most, MEMORY_GOAL, "at most", turns=most)
    shutil.rmtree(settings.scratch / "run", ignore_errors=True)
