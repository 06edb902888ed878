"""How often a verdict says "learned" or "healthy" of an encoder that is no better than it began.

Three populations: the cells of docs/studies, of which tables with the final figures are kept; the
runs of `verdict_population.py` (--population), where the verdict gets other images than those that
say what is true; and any run folders with an evaluation.json (--runs). An encoder is no better
where its accuracy (mean per class where one class has over half of the images), the mean of kNN and
the linear classifier, is not above those of the start weights and of the untrained encoder; or,
stricter, not above that of raw pixels as well. Cells of studies have kNN only; those that are left
out are told beside the table.

    python benchmarks/verdict_calibration.py --cifar10 cifar10/
    python benchmarks/verdict_calibration.py --population population.jsonl --runs runs/*
"""

import csv
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from measuring import Figure, add_arguments, publish

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.recipes import recipe_config
from diptych.diagnostics.comparison import compare
from diptych.diagnostics.verdict import judge
from diptych.evaluation.features import pixel_features
from diptych.evaluation.knn import accuracy, knn_predict
from diptych.evaluation.labelled import open_labelled
from diptych.evaluation.protocols import read_evaluation
from diptych.evaluation.subject import PIXELS, TRAINED, UNTRAINED
from diptych.logging.metrics import read_metrics
from diptych.runs.folder import RunFolder

STUDIES: Final = Path(__file__).parents[1] / "docs/studies"
MOST_WRONG: Final = 0.05


class Judged(NamedTuple):
    """What was said of a run, and what holds of it.

    Attributes:
        group: of runs.
        learned: whether the verdict with labels says that the encoder learned; None without.
        healthy: whether the verdict without labels says that training looks healthy.
        gained: whether the encoder is better than what it began as.
        useful: whether it is better than raw pixels too; None where they were not measured.
    """

    group: str
    learned: bool | None
    healthy: bool
    gained: bool
    useful: bool | None


def judged(
    group: str,
    metrics: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any] | None,
    held: Mapping[str, Any],
) -> Judged:
    """A run judged by some figures, with others to hold against it.

    Args:
        group: of runs.
        metrics: its lines.
        given: the evaluation for the verdict with labels; None for none.
        held: the evaluation that says what is true.
    """
    comparison = compare(held)
    assert comparison is not None
    ours = fmean(one.values[TRAINED] for one in comparison.deciding)
    best = {
        name: fmean(one.values[name] for one in comparison.deciding) for name in comparison.rivals
    }
    gained = all(ours > value for name, value in best.items() if name != PIXELS)
    useful = gained and ours > best[PIXELS] if PIXELS in best else None
    learned = None if given is None else says_learned(judge(metrics, given).headline)
    return Judged(group, learned, says_healthy(judge(metrics, None).headline), gained, useful)


def says_learned(headline: str) -> bool:
    return "encoder learned" in headline


def says_healthy(headline: str) -> bool:
    return "healthy" in headline


class Row(NamedTuple):
    """A group of runs.

    Attributes:
        group: its name.
        runs: how many.
        better: of these, better than what they began as.
        learned, learned_wrongly, learned_useless: runs of which "learned" is said; of these, no
            better than they began; no better than that or than raw pixels.
        healthy, healthy_wrongly, healthy_useless: the same of "healthy", without labels.
    """

    group: str
    runs: int
    better: int
    learned: int
    learned_wrongly: int
    learned_useless: int
    healthy: int
    healthy_wrongly: int
    healthy_useless: int


def calibrate(found: Iterable[Judged]) -> list[Row]:
    """A row for each group, in the order of their first runs."""
    groups = dict[str, list[Judged]]()
    for one in found:
        groups.setdefault(one.group, []).append(one)
    return [_row(group, runs) for group, runs in groups.items()]


def _row(group: str, runs: Sequence[Judged]) -> Row:
    learned = [one for one in runs if one.learned]
    healthy = [one for one in runs if one.healthy]
    return Row(
        group,
        len(runs),
        sum(one.gained for one in runs),
        *(len(learned), *_wrong(learned)),
        *(len(healthy), *_wrong(healthy)),
    )


def _wrong(said: Sequence[Judged]) -> tuple[int, int]:
    """No better than they began; and no better than that or than raw pixels, where measured."""
    return sum(not one.gained for one in said), sum(
        not (one.gained if one.useful is None else one.useful) for one in said
    )


class StudyCells(NamedTuple):
    """The cells in the table of a study.

    Attributes:
        study: its name.
        rows: of the table, each a cell with a seed.
        untrained: accuracies of untrained encoders; none where they were not measured.
    """

    study: str
    rows: Sequence[Mapping[str, str]]
    untrained: Sequence[float]

    @property
    def judged(self) -> Sequence[Mapping[str, str]]:
        """Rows that a verdict can be held against."""
        rows = [row for row in self.rows if row["knn"] and row["pretext"]]
        return rows if self.untrained else []

    @property
    def left_out(self) -> str:
        """How many are not judged and why, a sentence; empty where all are."""
        count = len(self.rows) - len(self.judged)
        if not count:
            return ""
        why = "without a result" if self.untrained else "its untrained encoder was not measured"
        return f"Left out: {count} cell{'s' * (count > 1)} of {self.study}, {why}."


def read_studies(folder: Path) -> list[StudyCells]:
    """The cells of the tables of studies, study by study."""
    found = []
    for table in sorted(folder.glob("*/table.csv")):
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        before = [float(row["untrained"]) for row in rows if row.get("untrained")]
        found.append(StudyCells(table.parent.name, rows, before))
    return found


def of_studies(studies: Iterable[StudyCells], pixels: Mapping[int, float]) -> Iterator[Judged]:
    """The cells of studies, by their last step: a table has no earlier ones."""
    for study in studies:
        for row in study.judged:
            values = {TRAINED: float(row["knn"]), UNTRAINED: fmean(study.untrained)}
            flags = _flags(row["command"])
            recipe = recipe_config(flags["recipe"], flags["scale"])
            limit = int(flags["images.limit"])
            batch = int(flags.get("batch-size", recipe.training.batch_size))
            if limit in pixels:
                values[PIXELS] = pixels[limit]
            steps = int(flags["epochs"]) * (limit // batch)
            line = {
                "step": steps,
                "epoch": int(flags["epochs"]) - 1,
                "loss": 0.0,
                "pretext_accuracy": float(row["pretext"]),
                "chance_pretext_accuracy": 1.0 / (2 * batch - 1),
                "effective_rank": float(row["effective_rank"]),
            }
            held = {"knn": values, "protocol": {"test_images": 10_000, "classes": 10}}
            yield judged("cells of studies", [line], None, held)


def _flags(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return {
        word.removeprefix("--"): value for word, value in pairwise(words) if word.startswith("--")
    }


def pixels_of(cifar10: Path, limits: Iterable[int]) -> dict[int, float]:
    """Accuracy of kNN on raw pixels, by the number of labelled images."""
    found = {}
    with ThreadPoolExecutor(2) as executor:
        for limit in limits:
            parts = open_labelled(ImagesConfig(path=str(cifar10), limit=limit), executor)
            train, test = (
                pixel_features(part, ViewsConfig(side_pixels=32), executor)
                for part in (parts.train, parts.test)
            )
            predicted = knn_predict(train, parts.train_labels, test)
            found[limit] = accuracy(predicted, parts.test_labels)
    return found


def of_population(file: Path) -> Iterator[Judged]:
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            kind = "from weights" if one["kind"].startswith("from weights") else "random weights"
            kind = "whole runs" if one["kind"] == "runs" else kind
            yield judged(f"{one['set']}, {kind}", one["metrics"], one["few"], one["many"])


def of_folders(folders: Iterable[Path]) -> Iterator[Judged]:
    for folder in folders:
        evaluation = read_evaluation(RunFolder(folder))
        if evaluation is not None and compare(evaluation) is not None:
            metrics = read_metrics(folder / "metrics.jsonl")
            yield judged("run folders", metrics, evaluation, evaluation)


def as_markdown(rows: Sequence[Row]) -> str:
    head = (
        "| runs | | better than they began | said to have learned | of these no better than they "
        "began | nor than raw pixels | said to look healthy | of these no better than they began | "
        "nor than raw pixels |"
    )
    lines = [head, "|---" * 9 + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="for raw pixels of studies")
    parser.add_argument("--population", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="FOLDER")
    arguments = parser.parse_args()
    pixels = pixels_of(arguments.cifar10, (5_000, 10_000)) if arguments.cifar10 else {}
    studies = read_studies(STUDIES)
    found = [*of_studies(studies, pixels)]
    for file in arguments.population:
        found += of_population(file)
    found += of_folders(arguments.runs)
    rows = calibrate(found)
    print(as_markdown(rows))
    for sentence in filter(None, (study.left_out for study in studies)):
        print(sentence)
    publish(
        figures_of(rows), "Verdicts that are wrong, as a share of those that say it", arguments.json
    )


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    learned, healthy = (
        max(1, sum(getattr(row, said) for row in rows)) for said in ("learned", "healthy")
    )
    return [
        Figure(
            f'"{said}" of an encoder no better than {what}',
            sum(getattr(row, name) for row in rows) / count,
            goal=MOST_WRONG,
            bound="at most",
        )
        for said, count, name, what in (
            ("learned", learned, "learned_wrongly", "it began"),
            ("learned", learned, "learned_useless", "it began or raw pixels"),
            ("healthy", healthy, "healthy_wrongly", "it began"),
            ("healthy", healthy, "healthy_useless", "it began or raw pixels"),
        )
    ]


if __name__ == "__main__":
    main()
