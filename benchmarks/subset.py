"""Accuracy of a linear classifier on images chosen to be labelled, against images drawn at random.

The classifier is fitted on 1% and on 5% of the images' labels, chosen by each way of `diptych
subset`, and measured on the test images. Each seed chooses from another random four fifths of the
images, the same for every way, so that gains are paired; intervals are over the seeds. `uncertain`
has the first half of its labels at random and the others by the classifier of those.

    python benchmarks/subset.py --train cifar-train/ --test cifar-test/   # of `diptych embed`
    python benchmarks/subset.py --quick   # made vectors: many of some kinds, few of others
"""

from pathlib import Path
from typing import Final, NamedTuple, get_args

import numpy as np
import torch
from measuring import Figure, add_arguments, publish
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from diptych.curation.subset import Way, choose_subset
from diptych.embeddings.vectors import read_vectors
from diptych.evaluation.confidence import Interval, over_seeds
from diptych.evaluation.linear import fit_linear, fit_with_strength
from diptych.evaluation.predictions import softmax

SHARES: Final = (0.01, 0.05)
SEEDS: Final = 5
POOL: Final = 0.8
RANDOM: Final = "random"
GREEDY: Final = ("facility-location", "k-centre")
"""They choose one image after the other: a smaller budget gets the first of a larger one."""


class Vectors(NamedTuple):
    """Features and labels of images to learn from and to measure on."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def made(seed: int = 0) -> Vectors:
    """Sixty kinds of images in ten classes, some of them a hundred times as frequent as others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, 32))
    often = np.exp(-np.arange(60) / 13)

    def draw(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        kinds = rng.choice(60, count, p=often / often.sum())
        noise = rng.normal(0, 0.8, (count, 32))
        return (centres[kinds] + noise).astype(np.float32), (kinds % 10).astype(np.int64)

    return Vectors(*draw(4000), *draw(2000))


def read(train: Path, test: Path) -> Vectors:
    """Of two folders of `diptych embed`, of images with the same classes."""
    sets = [read_vectors(one) for one in (train, test)]
    (train_labels, names), (test_labels, test_names) = (one.classes() for one in sets)
    if names != test_names:
        raise SystemExit(f"{train} has the classes {names}, {test} {test_names}: wanted the same.")
    return Vectors(sets[0].features, train_labels, sets[1].features, test_labels)


def accuracy(vectors: Vectors, rows: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """Of a linear classifier on some labels, and its probabilities of all images to learn from."""
    features, labels = (torch.from_numpy(one[rows]) for one in vectors[:2])
    classes = int(vectors.train_labels.max()) + 1
    l2 = fit_linear(features, labels).l2
    classifier = fit_with_strength(features, labels, classes, l2, None)
    right = classifier.predict(torch.from_numpy(vectors.test)).numpy() == vectors.test_labels
    scores = classifier.scores(torch.from_numpy(vectors.train)).double().numpy()
    return float(right.mean()), softmax(scores)


def measure(vectors: Vectors, seed: int, ways: list[Way]) -> dict[float, dict[str, float]]:
    """Accuracy by share and way, all of them choosing from the same images."""
    rng = np.random.default_rng(seed)
    count = len(vectors.train)
    pool = np.sort(rng.permutation(count)[: int(POOL * count)])
    features, order = vectors.train[pool], rng.permutation(len(pool))
    budgets = {share: round(share * count) for share in SHARES}
    most = max(budgets.values())
    greedy = {
        way: choose_subset(features, most, way, seed=seed).rows for way in ways if way in GREEDY
    }
    reached = {}
    for share, budget in budgets.items():
        rows: dict[str, NDArray[np.int64]] = {RANDOM: order[:budget]}
        rows |= {way: found[:budget] for way, found in greedy.items()}
        for way in ways:
            if way == "uncertain":
                first = order[: budget // 2]
                chances = accuracy(vectors, pool[first])[1][pool]
                more = choose_subset(
                    features, budget - len(first), way, labelled=first, probabilities=chances
                )
                rows[way] = np.concatenate([first, more.rows])
            elif way not in greedy:
                rows[way] = choose_subset(features, budget, way, seed=seed).rows
        reached[share] = {way: accuracy(vectors, pool[some])[0] for way, some in rows.items()}
    print(f"seed {seed}: {reached}", flush=True)
    return reached


def as_text(interval: Interval) -> str:
    """In per cent."""
    value, low, high = (100 * one for one in interval)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Measures every way at every share of the labels."""
    parser = add_arguments(__doc__)
    parser.add_argument("--train", type=Path, help="labelled vectors to choose from")
    parser.add_argument("--test", type=Path, help="labelled vectors to measure on")
    flags = parser.parse_args()
    if not flags.quick and (flags.train is None or flags.test is None):
        parser.error("give --train and --test, or --quick")
    vectors = made() if flags.quick else read(flags.train, flags.test)
    ways = list(get_args(Way))
    table = Table(title=f"{len(vectors.train):,} images, {SEEDS} seeds", title_justify="left")
    for column in ("labels", "chosen", "accuracy", "points over random"):
        table.add_column(column)
    figures, best = list[Figure](), dict[float, float]()
    of_seeds = [measure(vectors, seed, ways) for seed in range(SEEDS)]
    for share in SHARES:
        runs = [one[share] for one in of_seeds]
        for way in (RANDOM, *ways):
            gain = over_seeds([one[way] - one[RANDOM] for one in runs])
            mean = float(np.mean([one[way] for one in runs]))
            said = "" if way == RANDOM else as_text(gain)
            table.add_row(f"{share:.0%}", way, f"{mean:.1%}", said)
            if way != RANDOM:
                best[share] = max(best.get(share, -1.0), gain.low)
        name = f"best way at {share:.0%} of the labels: lower end of its gain over random, points"
        figures.append(Figure(name, 100 * best[share], 0.0))
    Console(width=100).print(table)
    publish(figures, "Chosen labels against random ones", flags.json)


if __name__ == "__main__":
    main()
