"""Throughput and memory of pretraining: a whole command from a folder of JPEG files.

Seconds for an epoch after the first are the difference between runs of three epochs and of one,
halved, so that no library's own clock is believed. Libraries take turns.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from peers.contenders import OURS, Method, Run
from peers.results import Row, least_ratio, medians
from peers.settings import Settings, do, images_for

METHODS: Final[tuple[Method, ...]] = ("simclr", "moco_v2")
GOALS: Final = {"small_resnet": 2.0, "resnet18": 1.5}
MEMORY_GOAL: Final = 0.7
SIDES: Final = (32, 96)
IMAGES, IMAGES_QUICK = 10_000, 320
FEWER: Final = {("small_resnet", 96): 5_000, ("resnet18", 96): 2_500}
"""Images where a step takes so long that fewer of them make as good a figure."""


def cases(settings: Settings) -> Iterator[tuple[str, Run]]:
    """The eight cells, or those asked for; the quick form has the first of each method."""
    for network in list(GOALS)[: 1 if settings.quick else None]:
        for side in SIDES[: 1 if settings.quick else None]:
            count = IMAGES_QUICK if settings.quick else FEWER.get((network, side), IMAGES)
            folder = limited(settings, images_for(settings, side, count), count)
            for method in METHODS:
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
                case = f"{method}, {network} at {side}"
                if settings.case in case:
                    yield case, run


def limited(settings: Settings, folder: Path, count: int) -> Path:
    """A folder of links to that many images of a set's part to learn from, class by class."""
    classes = sorted(one for one in (folder / "train").iterdir() if one.is_dir())
    each = count // len(classes)
    out = settings.scratch / f"{folder.name}-{count}"
    for one in classes:
        (out / "train" / one.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(one.iterdir())[:each]:
            link = out / "train" / one.name / file.name
            if not link.exists():
                link.symlink_to(file.resolve())
    return out


def throughput(settings: Settings) -> list[Row]:
    """Seconds an epoch, and what comes before and after the epochs."""
    rows = []
    for case, run in cases(settings):
        epoch: dict[str, list[float]] = {}
        around: dict[str, list[float]] = {}
        for _ in range(settings.rounds):
            for name in settings.contenders(run.method):
                one, three = (do(settings, name, replace(run, epochs=n)).seconds for n in (1, 3))
                epoch.setdefault(name, []).append(max((three - one) / 2, 1e-3))
                around.setdefault(name, []).append(one - epoch[name][-1])
                print(f"{case}, {name}: {epoch[name][-1]:.1f} s an epoch", flush=True)
        rows.append(
            _row("seconds an epoch", case, "s", epoch, GOALS[run.network], around=medians(around))
        )
    shutil.rmtree(settings.scratch / "run", ignore_errors=True)
    return rows


def memory(settings: Settings) -> list[Row]:
    """The highest memory of all processes of the same runs."""
    rows = []
    for case, run in cases(settings):
        most = {
            name: [do(settings, name, run, memory=True).megabytes]
            for name in settings.contenders(run.method)
        }
        ours, leanest = most[OURS][0], min(v[0] for n, v in most.items() if n != OURS)
        peers = {name: value[0] for name, value in most.items() if name != OURS}
        print(f"{case}: {most}", flush=True)
        rows.append(
            Row("peak memory", case, "MB", ours, peers, ours / leanest, MEMORY_GOAL, "at most")
        )
    return rows


def _row(
    figure: str, case: str, unit: str, values: dict[str, list[float]], goal: float, **notes: object
) -> Row:
    ours = values.pop(OURS)
    middle = medians({OURS: ours, **values})
    return Row(
        figure, case, unit, middle.pop(OURS), middle, least_ratio(ours, values), goal, notes=notes
    )
