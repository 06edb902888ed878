"""Throughput and memory of pretraining: a whole command from a folder of JPEG files.

Seconds for an epoch are the difference between runs of four epochs and of one, divided by three.
Libraries take turns; one run of each, of one epoch, comes before its first turn and is not counted.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from peers.contenders import OURS, Method, Run
from peers.results import Row, compared, medians
from peers.settings import IMAGES, IMAGES_QUICK, Settings, do, images_for, limited, once
from peers.timing import EPOCHS_QUICK, Times, times_of, warm_up

METHODS: Final[tuple[Method, ...]] = ("simclr", "moco_v2")
GOALS: Final = {"small_resnet": 2.0, "resnet18": 1.5}
MEMORY_GOAL: Final = 0.7
SIDES: Final = (32, 96)
EPOCHS: Final = (1, 4)
FEWER: Final = {("small_resnet", 96): 2_560, ("resnet18", 96): 1_280}
"""Images where a step takes so long that fewer of them make as good a figure; whole batches, of
which no rest is left out."""


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


def throughput(settings: Settings) -> Iterator[Row]:
    """Seconds an epoch, and what comes before and after the epochs."""
    epochs = EPOCHS_QUICK if settings.quick else EPOCHS
    for case, run, names in cases(settings):

        def times(name: str, run: Run = run) -> Times:
            return times_of(settings, name, run, epochs)

        turns = in_turn(settings, "throughput", case, run, names, times)
        epoch, around = (
            {name: [Times(*one)[part] for one in some] for name, some in turns.items()}
            for part in (0, 1)
        )
        goal = GOALS[run.network]
        yield compared("seconds an epoch", case, "s", epoch, goal, around=medians(around))
    shutil.rmtree(settings.scratch / "run", ignore_errors=True)


def memory(settings: Settings) -> Iterator[Row]:
    """The highest memory of all processes of runs of one epoch."""
    for case, run, names in cases(settings):

        def peak(name: str, run: Run = run) -> float:
            return do(settings, name, replace(run, epochs=1), memory=True).megabytes

        # The uncounted run comes first here too: compiling takes memory of its own, and only once.
        most = in_turn(settings, "memory", case, run, names, peak)
        yield compared("peak memory", case, "MB", most, MEMORY_GOAL, "at most", turns=most)
    shutil.rmtree(settings.scratch / "run", ignore_errors=True)


def in_turn(
    settings: Settings,
    figure: str,
    case: str,
    run: Run,
    names: Sequence[str],
    measure: Callable[[str], Any],
) -> dict[str, list[Any]]:
    """What is measured of each contender in each turn; what a stopped figure has is not repeated.

    Args:
        settings: of the harness.
        figure: `throughput` or `memory`.
        case: a cell of it.
        run: of that cell.
        names: contenders; each begins a turn once, the first of them the first.
        measure: a contender.
    """
    warm = set[str]()

    def anew(name: str) -> Any:
        if name not in warm:
            warm_up(settings, name, run)
            warm.add(name)
        return measure(name)

    found: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(settings.rounds):
        begins = turn % len(names)
        for name in (*names[begins:], *names[:begins]):
            title = f"{case} {name} turn {turn}"
            found[name].append(once(settings, figure, title, name, run, partial(anew, name)))
            print(f"{case}, {name}: {found[name][-1]}", flush=True)
    return found
