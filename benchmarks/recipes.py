"""Trains every recipe at scale tiny from the command line, and puts what came of it in one table.

Each recipe runs as a user would run it: `diptych pretrain PATH --recipe NAME --scale tiny`, or
without a scale, which is then chosen by the images (`--scale own`), in a process of its own, then
`diptych evaluate`. The table has the loss at the end beside the loss of guessing, where it has one,
the accuracy at the training task, or of methods without negatives the retrieval accuracy, kNN and
linear accuracy of the trained and the untrained encoder, the minutes, and the peak memory of the
process. A figure holds where kNN beats the untrained encoder.

    python benchmarks/recipes.py --images cifar10/ --limit 5000 --epochs 20
    python benchmarks/recipes.py --images tiles/ --epochs 100 --scale own --flags \
        --views.side-pixels 32
    python benchmarks/recipes.py --quick         # the built-in photographs, 2 epochs
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

from command_line_runs import Run, pretrain_and_evaluate
from measuring import Figure, add_arguments, publish
from rich.console import Console
from rich.table import Table

from diptych.config.recipes import RECIPES
from diptych.logging.metrics import task_accuracy


def show(runs: dict[str, Run], scale: str) -> None:
    """One row for each recipe."""
    test_images = next(iter(runs.values())).evaluation["protocol"]["test_images"]
    table = Table(
        title=f"Recipes at their {scale} scale; accuracy in % on {test_images:,} test images",
        title_justify="left",
    )
    for column in (
        "recipe",
        "loss",
        "guessing",
        "found",
        "kNN",
        "untrained",
        "linear",
        "untrained",
    ):
        if column == "recipe":
            table.add_column(column, no_wrap=True)
        else:
            table.add_column(column, justify="right")
    table.add_column("minutes", justify="right")
    table.add_column("peak MB", justify="right")
    for recipe, run in runs.items():
        knn, linear = run.evaluation["knn"], run.evaluation["linear"]
        task = task_accuracy(run.last)
        found = math.nan if task is None else run.last[task.name]
        shares = [found, knn["trained"], knn["untrained"]]
        shares += [linear["trained"], linear["untrained"]]
        table.add_row(
            recipe,
            f"{run.last['loss']:.2f}",
            f"{run.last['chance_loss']:.2f}" if "chance_loss" in run.last else "-",
            *(f"{100 * share:.1f}" for share in shares),
            f"{run.minutes:.1f}",
            f"{run.peak_megabytes:,.0f}",
        )
    Console(width=100 if not sys.stdout.isatty() else None).print(table)


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", default="photographs", help="a folder with class folders")
    parser.add_argument("--limit", type=int, help="use so many of them")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--keep", type=Path, help="keep the run folders in this new folder")
    parser.add_argument("--scale", choices=("tiny", "own"), default="tiny")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="more of `diptych pretrain`, last"
    )
    arguments = parser.parse_args()
    flags = ["--epochs", str(2 if arguments.quick else arguments.epochs), *arguments.flags]
    if arguments.scale == "tiny":
        flags += ["--scale", "tiny"]
    if arguments.limit is not None:
        flags += ["--images.limit", str(arguments.limit)]
    if arguments.quick:
        flags += ["--encoder.width", "16", "--images.limit", "1024"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        runs = {
            recipe: pretrain_and_evaluate(
                arguments.images, ["--recipe", recipe, *flags], folder / recipe
            )
            for recipe in arguments.recipes
        }
    show(runs, arguments.scale)
    figures = [
        Figure(f"{name}: kNN points over untrained", run.gain, 0.0) for name, run in runs.items()
    ]
    publish(figures, "Points of kNN accuracy gained by training", arguments.json)


if __name__ == "__main__":
    main()
