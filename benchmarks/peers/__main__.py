"""diptych side by side with lightly, lightly-train, stable-pretraining and others.

    python benchmarks/peers FIGURE --environments FOLDER    # one figure
    python benchmarks/peers all --environments FOLDER       # all, and a table of each

Figures: throughput, memory, time-to-accuracy, accuracy, growth; step, processes, start, opening,
embed, loss, views, probes, which have scripts of their own too; and `record`, for
docs/leaderboard.md, which `all` leaves out. The environments of the peers are made when they are
not there, some seven gigabytes each. `--data` is a folder with `cifar10/` in it (`train/CLASS`,
`test/CLASS`, JPEG); without it images are made from built-in photographs, on which accuracies say
little. `--out` keeps a JSON file for each figure, and the table. With these files `all` goes on
where it was stopped, as far as they are whole and of the same settings, versions and code. What
follows `--` are flags of `diptych pretrain`, in the place of the settings that all share. `--quick`
shows in minutes that all works.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import accuracy, growth, parts, pretraining
from peers.contenders import CONTENDERS, OURS, refuse
from peers.environments import ENVIRONMENTS, make, python_of, versions
from peers.kept import forget
from peers.results import Row, load, markdown, save, serves
from peers.settings import Settings

FIGURES: dict[str, Callable[[Settings], Iterable[Row]]] = {
    "throughput": pretraining.throughput,
    "memory": pretraining.memory,
    "time-to-accuracy": accuracy.time_to_accuracy,
    "accuracy": accuracy.after_minutes,
    "record": accuracy.record,
    **{name: parts.rows_of(script) for name, script in parts.SCRIPTS.items()},
    "growth": growth.growth,
}
LEARN = ("time-to-accuracy", "accuracy", "record")
KEEP = {"throughput": "throughput", "memory": "memory", **dict.fromkeys(LEARN, accuracy.FIGURE)}
"""Figures that keep what is measured of single runs, and where."""
NEED_PEERS = ("throughput", "memory", *LEARN, "start", "embed")


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figure", choices=[*FIGURES, "all"])
    parser.add_argument("--environments", type=Path, default=Path("build/peers/environments"))
    parser.add_argument("--data", type=Path, help="a folder with cifar10/ in it")
    parser.add_argument("--out", type=Path, default=Path("build/peers/results"))
    parser.add_argument("--scratch", type=Path, default=Path("build/peers/scratch"))
    parser.add_argument("--rounds", type=int, help="turns of each contender (3; quick 1)")
    parser.add_argument(
        "--minutes",
        type=float,
        nargs="+",
        help="of runs that learn (accuracy: 10 60; time-to-accuracy and record: 20; quick: 0.5)",
    )
    parser.add_argument("--seeds", type=int, help="of runs that learn (3; quick 1)")
    parser.add_argument("--case", default="", help="of throughput and memory: as 'resnet18 at 32'")
    parser.add_argument("--target", type=float, default=60.0, help="per cent, of `record` (60)")
    parser.add_argument("--only", nargs="+", default=[], choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a toy size, to see that all works")
    parser.add_argument("--again", action="store_true", help="measure what is kept already")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:end])
    given.flags = words[end + 1 :]
    try:
        refuse(given.flags)
    except ValueError as error:
        parser.error(str(error))
    return given


def settings_of(given: argparse.Namespace) -> Settings:
    """What the flags say; a quick run and a whole one never share what they keep."""
    scratch = (given.scratch / ("quick" if given.quick else "whole")).absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    quick = given.quick
    return Settings(
        environments=given.environments.absolute(),
        data=None if given.data is None else given.data.absolute(),
        scratch=scratch,
        out=given.out.absolute(),
        quick=quick,
        rounds=given.rounds or (1 if quick else 3),
        minutes=tuple(given.minutes or ([0.5] if quick else [])),
        seeds=given.seeds or (1 if quick else 3),
        only=only_of(given),
        flags=tuple(given.flags),
        case=given.case,
        target=given.target,
    )


def only_of(given: argparse.Namespace) -> tuple[str, ...]:
    """The contenders; all but a record are ratios to ours."""
    if given.figure == "record":
        return tuple(given.only) or (OURS,)
    return tuple(dict.fromkeys([OURS, *given.only])) if given.only else ()


def main() -> None:
    """Measures what was asked for and prints one table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that commands are ended too
    given = arguments()
    settings = settings_of(given)
    wanted = [name for name in FIGURES if name != "record"]
    if given.figure != "all":
        wanted = [given.figure]
    for name in wanted if given.again else ():
        if name in KEEP:
            forget(settings.measured_before / KEEP[name])
    known = known_versions(settings, wanted)
    kept, rows = settings.kept(), list[Row]()
    for name in wanted:
        file = given.out / f"{name}{'-quick' if settings.quick else ''}.json"
        if given.again or given.figure != "all" or not serves(file, known, kept):
            measure(FIGURES[name](settings), file, known, kept)
        rows += load(file)
    table = markdown(rows)
    (given.out / f"{given.figure}{'-quick' if settings.quick else ''}.md").write_text(table)
    print(table)


def known_versions(settings: Settings, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """Of the environments that the figures run in; those of other libraries are made first."""
    known = {"diptych": versions()}
    if set(wanted) & set(NEED_PEERS) and not settings.alone:
        make(settings.environments)
        known |= {name: versions(python_of(settings.environments, name)) for name in ENVIRONMENTS}
    return known


def measure(
    rows: Iterable[Row], file: Path, known: Mapping[str, Any], kept: Mapping[str, Any]
) -> None:
    """Writes the rows of a figure, each as soon as it is there."""
    found = list[Row]()
    for row in rows:
        found.append(row)
        save(found, file, known, kept, complete=False)
    save(found, file, known, kept)


if __name__ == "__main__":
    main()
