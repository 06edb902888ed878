"""kNN and the linear classifier against scikit-learn's on the same features.

Features are as an encoder gives them: 512 of them, correlated, the variance of the k-th direction
falling as 1 / k, for 100 classes that overlap. kNN is compared with KNeighborsClassifier by cosine
with the same weights; its Euclidean metric, which gives the same on unit vectors and is faster
there, is timed too. The linear classifier is compared with LogisticRegression's L-BFGS at its own
tolerance (1e-4; ours ends at 1e-5), on standardised features and with the same penalty, so that
both minimise the same function. All in float32. Every fit runs in a process of its own; time is
that of the clock, so run it on an idle machine. Memory is all that the process holds at most.

    python benchmarks/probes.py            # about fifteen minutes on two idle cores
    python benchmarks/probes.py --quick    # about one minute: 5,000 images, 20 classes
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from diptych.runtime.devices import shorten_spinning

shorten_spinning()  # as the command line does, before torch is imported

import numpy as np
import torch
from measuring import Figure, parse_arguments, publish, resident_bytes
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE, knn_predict
from diptych.evaluation.linear import fit_linear, fit_with_strength

DIM = 512
L2 = 1e-3
GIGABYTE = 1e9


class Size(NamedTuple):
    """How much is measured."""

    train: int
    test: int
    classes: int


FULL, QUICK = Size(50_000, 10_000, 100), Size(5_000, 1_000, 20)


def features(size: Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training features and labels, test features and labels."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    widths = torch.arange(1, DIM + 1).float() ** -0.5
    centres = 0.2 * torch.randn(size.classes, DIM, generator=generator)
    count = size.train + size.test
    labels = torch.randint(0, size.classes, (count,), generator=generator)
    spread = torch.randn(count, DIM, generator=generator).add_(centres[labels]).mul_(widths)
    found = spread @ basis
    return found[: size.train], labels[: size.train], found[size.train :], labels[size.train :]


def our_knn(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    return knn_predict(train, labels, test)


def their_knn(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distances: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.exp((distances[:, :1] - distances) / TEMPERATURE)  # one less the cosine

    classifier = KNeighborsClassifier(NEIGHBOURS, weights=weights, metric="cosine", n_jobs=-1)
    classifier.fit(train.numpy(), labels.numpy())
    return torch.from_numpy(classifier.predict(test.numpy()))


def their_fast_knn(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distances: NDArray[np.float32]) -> NDArray[np.float32]:
        cosine = 1.0 - 0.5 * distances**2  # of unit vectors
        return np.exp((cosine - cosine[:, :1]) / TEMPERATURE)

    train, test = functional.normalize(train, dim=1), functional.normalize(test, dim=1)
    classifier = KNeighborsClassifier(NEIGHBOURS, weights=weights, algorithm="brute", n_jobs=-1)
    classifier.fit(train.numpy(), labels.numpy())
    return torch.from_numpy(classifier.predict(test.numpy()))


def our_linear(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    return fit_with_strength(train, labels, int(labels.max()) + 1, L2, None).predict(test)


def their_linear(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    mean, scale = train.mean(dim=0), 1.0 / train.std(dim=0, correction=0)
    classifier = LogisticRegression(C=1.0 / (L2 * len(train)), max_iter=1000)
    classifier.fit(((train - mean) * scale).numpy(), labels.numpy())
    return torch.from_numpy(classifier.predict(((test - mean) * scale).numpy()))


def our_sweep(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    return fit_linear(train, labels).predict(test)


WORK: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "our_knn": our_knn,
    "their_knn": their_knn,
    "their_fast_knn": their_fast_knn,
    "our_linear": our_linear,
    "their_linear": their_linear,
    "our_sweep": our_sweep,
}


def measure_here(name: str, size: Size) -> dict[str, float]:
    """Accuracy, seconds and most bytes held; only in a process that does nothing else."""
    WORK[name](*features(Size(400, 100, 5))[:3])  # threads and libraries have their memory
    train, labels, test, truth = features(size)
    begun = time.perf_counter()
    predicted = WORK[name](train, labels, test)
    seconds = time.perf_counter() - begun
    held = resident_bytes("VmHWM")
    right = float((predicted == truth).double().mean())
    return {"accuracy": 100 * right, "seconds": seconds, "held": held}


def measure_apart(name: str, size: Size) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure-here", name, *map(str, size)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(answer.stdout)
    print(
        f"{name:14} {found['accuracy']:.2f}% in {found['seconds']:.1f} s, "
        f"{found['held'] / GIGABYTE:.2f} GB held at most"
    )
    return found


def compared(kind: str, found: dict[str, dict[str, float]], *, quick: bool) -> list[Figure]:
    """Of few images an answer or two may differ, and there is less time to gain."""
    ours, theirs = found[f"our_{kind}"], found[f"their_{kind}"]
    apart = abs(ours["accuracy"] - theirs["accuracy"])
    faster = theirs["seconds"] / ours["seconds"]
    gigabytes = ours["held"] / GIGABYTE
    most = 0.3 if quick else 0.1
    return [
        Figure(f"{kind}: points of accuracy apart", apart, most, "at most", "points"),
        Figure(
            f"{kind}: scikit-learn's time over ours",
            faster,
            1.0 if quick else 3.0,
            unit="s",
            ours=ours["seconds"],
            others={"scikit-learn": theirs["seconds"]},
        ),
        Figure(f"{kind}: GB that the process holds", gigabytes, 1.5, "at most", "GB"),
    ]


def main() -> None:
    if sys.argv[1:2] == ["--measure-here"]:
        train, test, classes = map(int, sys.argv[3:6])
        print(json.dumps(measure_here(sys.argv[2], Size(train, test, classes))))
        return
    arguments: Any = parse_arguments(__doc__)
    size = QUICK if arguments.quick else FULL
    found = {name: measure_apart(name, size) for name in WORK}
    quick = arguments.quick
    figures = compared("knn", found, quick=quick) + compared("linear", found, quick=quick)
    title = f"Probes on {size.train:,} x {DIM} features of {size.classes} classes, {size.test:,}"
    publish(figures, f"{title} to test, against scikit-learn's", arguments.json)


if __name__ == "__main__":
    main()
