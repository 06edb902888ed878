"""Why a memory bank learns little in a short run: by how old its keys are.

`memory_bank` keeps one key for each image, encoded when the image was last seen, an epoch ago. Here
the same recipe runs with keys that are encoded anew by the network as it is: all of them every so
many steps, those of the batch's own images before each step (the positive keys), or those of all
others (the negatives). If age is the reason, accuracy grows as keys get younger.

    python benchmarks/bank_age.py --images cifar10/ --limit 5000 --epochs 20    # half an hour
    python benchmarks/bank_age.py --quick      # the built-in photographs, two epochs
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import Figure, add_arguments, publish
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import diptych
from diptych.config.run import RunConfig
from diptych.evaluation.features import in_batches
from diptych.images.collection import Collection
from diptych.methods.build import METHODS
from diptych.methods.contrastive import Contrastive
from diptych.methods.dictionaries import ImageBank
from diptych.methods.method import Method, StepOutput
from diptych.models.norms import frozen_statistics
from diptych.views.batches import Batch, Order, ViewBatches

ENCODED_AT_ONCE = 500


class Renewal(NamedTuple):
    """Which keys are encoded anew.

    Attributes:
        name: for the table.
        every: steps from one renewal of all keys to the next; 0 for never.
        own: those of the batch's images before each step.
        others: no renewal reaches the batch's own images.
    """

    name: str
    every: int = 0
    own: bool = False
    others: bool = False


def renewals(epoch: int) -> list[Renewal]:
    """The rows of the table, for an epoch of so many steps."""
    often = max(1, epoch // 13)
    return [
        Renewal("as it is: an epoch old"),
        Renewal("all, once an epoch", every=epoch),
        Renewal(f"all, every {often} steps", every=often),
        Renewal("the positive keys, each step", own=True),
        Renewal(f"the negative keys, every {often} steps", every=often, others=True),
    ]


class Renewed:
    """Encodes keys of a bank anew between the steps of a method.

    Args:
        method: with a bank.
        renewal: which keys.
        batches: make new views of all images.
    """

    def __init__(self, method: Contrastive, renewal: Renewal, batches: ViewBatches) -> None:
        self._method, self._renewal, self._batches = method, renewal, batches
        self._forward = method.forward

    def forward(self, batch: Batch) -> StepOutput:
        """In the place of the method's own: first the keys, then the step."""
        if self._renewal.own:
            self._renew(batch.indices.numpy(), batch.step)
        if self._renewal.every and batch.step and batch.step % self._renewal.every == 0:
            bank = self._bank
            rows = np.arange(len(bank.known))
            if self._renewal.others:
                rows = np.setdiff1d(rows, batch.indices.numpy())
            self._renew(rows, batch.step)
        return self._forward(batch)

    @property
    def _bank(self) -> ImageBank:
        assert isinstance(self._method.dictionary, ImageBank)
        return self._method.dictionary

    @torch.no_grad()
    def _renew(self, rows: NDArray[np.int64], step: int) -> None:
        bank = self._bank
        rows = rows[bank.known[torch.from_numpy(rows)].numpy()]
        for some in in_batches(len(rows), ENCODED_AT_ONCE):
            if len(some) < 2:  # batch norm wants two
                continue
            views = self._batches.of(rows[some], epoch=step)
            # In training mode, as all keys are encoded, but no statistics move.
            with frozen_statistics(self._method.network):
                keys = functional.normalize(self._method.network(views[0]), dim=1)
            bank.keys[torch.from_numpy(rows[some])] = keys


def method_with(renewal: Renewal) -> Callable[[RunConfig, Collection, Executor], Method]:
    """The recipe's method, which renews keys."""

    def build(config: RunConfig, images: Collection, executor: Executor) -> Method:
        plain = replace(config, method=replace(config.method, kind="contrastive"))
        method = METHODS["contrastive"].build(plain, images, executor)
        assert isinstance(method, Contrastive)
        train = images.train
        # Another seed than that of training, whose views these are not.
        order = Order(config.seed + 1_000_000, len(train), len(train))
        batches = ViewBatches(train, order, config.views, executor, view_count=2)
        method.forward = Renewed(method, renewal, batches).forward  # type: ignore[method-assign]
        return method

    return build


def accuracy(renewal: Renewal, images: str, seed: int, out: Path, **settings: Any) -> float:
    """KNN accuracy of a run, in per cent."""
    run = diptych.pretrain(
        images,
        recipe="memory_bank",
        scale="tiny",
        method=method_with(renewal),
        out=out / f"{renewal.name}-{seed}",
        seed=seed,
        quiet=True,
        **settings,
    )
    return 100 * float(diptych.evaluate(run, protocols=("knn",))["knn"]["trained"])


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", default="photographs", help="a folder with class folders")
    parser.add_argument("--limit", type=int, help="use so many of them")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    seeds, epochs = (1, 2) if given.quick else (given.seeds, given.epochs)
    settings: dict[str, Any] = {"epochs": epochs}
    limit = 1024 if given.quick else given.limit
    if limit is not None:
        settings["images.limit"] = limit
    table = Table(title="memory_bank with keys encoded anew", title_justify="left")
    for column in ("keys encoded anew", "kNN, %", "standard error"):
        table.add_column(column, justify="left" if column.startswith("keys") else "right")
    found = dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as scratch:
        for renewal in renewals((limit or 5_000) // 128):
            found[renewal.name] = [
                accuracy(renewal, given.images, seed, Path(scratch), **settings)
                for seed in range(seeds)
            ]
            values = found[renewal.name]
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            print(f"{renewal.name}: {values}", flush=True)
            table.add_row(renewal.name, f"{fmean(values):.1f}", f"{error:.1f}")
    Console(width=100).print(table)
    old = fmean(found.pop("as it is: an epoch old"))
    figures = [
        Figure(f"{name}: points gained", fmean(one) - old, 0.0) for name, one in found.items()
    ]
    publish(figures, "kNN accuracy by the age of keys", given.json)


if __name__ == "__main__":
    main()
