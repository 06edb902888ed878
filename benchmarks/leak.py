"""Batch statistics leak which key is right, and shuffled keys mend it (MoCo, section 3.3).

MoCo v2 with norms over small groups of images, once with keys in the groups of their queries
(`norm.kind = split`) and once shuffled, everything else the same, for several seeds. For each: the
pretext accuracy over the last tenth of the run, kNN accuracy, and what `diptych check-leak` says:
how many more queries find their key, among some two thousand, where it was encoded in the company
that it had in training than where it was encoded in another.

    python benchmarks/leak.py --images cifar10/ --limit 5000 --epochs 10
    python benchmarks/leak.py --quick            # the built-in photographs, one seed, 3 epochs
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from command_line_runs import Run, diptych, pretrain_and_evaluate
from measuring import Figure, add_arguments, publish
from rich.console import Console
from rich.table import Table

MEASURES = ("pretext accuracy", "kNN", "leak accuracy")


def measures(run: Run) -> list[float]:
    """The three figures of a run, in per cent."""
    late = run.metrics[-max(1, len(run.metrics) // 10) :]
    subprocess.run(diptych("check-leak", str(run.folder)), check=True, stdout=subprocess.DEVNULL)
    leak = json.loads((run.folder / "leak.json").read_text())
    pretext = statistics.fmean(line["pretext_accuracy"] for line in late)
    knn = run.evaluation["knn"]["trained"]
    return [100 * share for share in (pretext, knn, leak["leak_accuracy"])]


def spread(values: list[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.1f} ± {error:.1f}"


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", default="photographs", help="a folder with class folders")
    parser.add_argument("--limit", type=int, help="use so many of them")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--group", type=int, default=8, help="images that share statistics")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and go on there")
    parser.add_argument("--flags", nargs="*", default=[], help="more flags, without their dashes")
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    flags = ["--recipe", "moco_v2", "--scale", "tiny", "--norm.images-per-group"]
    flags += [str(arguments.group), "--epochs", str(3 if arguments.quick else arguments.epochs)]
    flags += [f"--{flag}" for flag in arguments.flags]
    if arguments.limit is not None:
        flags += ["--images.limit", str(arguments.limit)]
    if arguments.quick:
        flags += ["--encoder.width", "16", "--images.limit", "1024"]
    found: dict[str, list[list[float]]] = {"split": [], "shuffle": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(seeds):
            for kind, rows in found.items():
                given = [*flags, "--norm.kind", kind, "--seed", str(seed), "--resume"]
                run = pretrain_and_evaluate(arguments.images, given, folder / f"{kind}-{seed}")
                rows.append(measures(run))
    table = Table(title=f"Groups of {arguments.group} images, {seeds} seeds; %, mean ± error")
    for column in ("measure", "split, not shuffled", "shuffled"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    columns = {kind: list(zip(*rows, strict=True)) for kind, rows in found.items()}
    for index, name in enumerate(MEASURES):
        table.add_row(name, *(spread(list(columns[kind][index])) for kind in found))
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    gaps = [
        statistics.fmean(
            one - other
            for one, other in zip(columns["split"][i], columns["shuffle"][i], strict=True)
        )
        for i in range(len(MEASURES))
    ]
    figures = [
        Figure("pretext accuracy, points above shuffled", gaps[0], 0.0),
        Figure("kNN, points above shuffled", gaps[1], 0.0, "at most"),
        Figure("leak accuracy, points above shuffled", gaps[2], 0.0),
    ]
    publish(figures, "What a leak does: split without shuffling against shuffled", arguments.json)


if __name__ == "__main__":
    main()
