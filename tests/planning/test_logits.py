"""Operations and bytes of the logits against those that a real comparison makes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.config.method import (
    BankConfig,
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.methods import logits
from diptych.methods.contrastive import build_contrastive
from diptych.methods.dictionaries import ImageBank, KeyQueue
from diptych.planning.compute import Counter, logits_cost
from diptych.planning.planned_run import PlannedRun
from diptych.views.batches import Batch

IMAGES, DIM, TILE = 24, 8, 10
MOMENTUM_ENCODER, BATCH_KEYS = (
    KeyEncoderConfig("momentum"),
    DictionaryConfig("batch", batch=InBatchConfig(both_views=False)),
)
METHODS = {
    "simclr": MethodConfig(),
    "four views": MethodConfig(views=4),
    "supervised": MethodConfig(loss=LossConfig("supervised")),
    "end_to_end": MethodConfig(dictionary=BATCH_KEYS),
    "moco_v3": MethodConfig(symmetric=True, dictionary=BATCH_KEYS, key_encoder=MOMENTUM_ENCODER),
    "moco": MethodConfig(
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=70)),
        key_encoder=MOMENTUM_ENCODER,
    ),
    "bank": MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(negatives=50))),
    "nt_logistic": MethodConfig(
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=70)),
        key_encoder=MOMENTUM_ENCODER,
        loss=LossConfig("nt_logistic"),
    ),
    "triplet, keys learn": MethodConfig(dictionary=BATCH_KEYS, loss=LossConfig("triplet")),
}


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts 2 m n k for every product of matrices, in place or not; torch's formulae miss some."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.__name__.partition(".")[0]
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def run_of(method: MethodConfig) -> PlannedRun:
    config = RunConfig(
        encoder=EncoderConfig(width=4, stage_blocks=(1,)),
        head=HeadConfig(hidden_features=4, output_features=DIM),
        method=method,
        training=TrainingConfig(batch_size=IMAGES),
    )
    return PlannedRun(config, image_count=200)


def compared(run: PlannedRun, counter: Any) -> None:
    """A real comparison, forward and backward, under a counter."""
    method = build_contrastive(run.config, image_count=run.image_count)
    dictionary = method.dictionary
    if isinstance(dictionary, KeyQueue):
        dictionary.enqueue(torch.randn(len(dictionary.keys), DIM))
    if isinstance(dictionary, ImageBank):
        dictionary.update(torch.randn(200, DIM), torch.arange(200))
    indices = torch.arange(IMAGES)
    views = (torch.empty(0),) * run.config.method.views
    batch = Batch(views, indices, step=0, labels=indices % 3)
    queries = torch.randn(run.query_views, IMAGES, DIM, requires_grad=True)
    keys = None
    if run.key_views:
        keys = torch.randn(run.key_views, IMAGES, DIM, requires_grad=run.keys_learn)
    with counter:
        torch.autograd.backward(method.contrast(queries, keys, batch).loss)


@pytest.mark.parametrize("name", METHODS)
def test_operations_are_those_of_a_real_comparison(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "CPU_TILE", TILE)
    run, counter = run_of(METHODS[name]), Products()
    compared(run, counter)
    assert logits_cost(run, DIM, tile=TILE).flops == counter.flops


@pytest.mark.parametrize("name", METHODS)
def test_bytes_are_close_to_those_of_a_real_comparison(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At sizes where matrices of logits, or tiles and keys, are nearly all there is."""
    monkeypatch.setattr(logits, "CPU_TILE", 64)
    run = run_of(METHODS[name])
    kind = run.config.method.dictionary.kind
    if kind != "batch":
        dictionary = replace(
            run.config.method.dictionary,
            queue=replace(run.config.method.dictionary.queue, size=150),
            bank=replace(run.config.method.dictionary.bank, negatives=150),
        )
        method = replace(run.config.method, dictionary=dictionary)
        run = replace(run, config=replace(run.config, method=method))
    live = Counter()
    compared(run, live)
    planned = logits_cost(run, DIM, tile=64).bytes
    assert 0.5 < planned / live.peak < 2.0, (planned, live.peak)


def test_more_processes_ask_less_and_meet_as_many() -> None:
    run = run_of(METHODS["simclr"])
    one, four = (logits_cost(replace(run, processes=n), DIM, tile=TILE) for n in (1, 4))
    assert (one.queries, one.keys) == (2 * IMAGES, 2 * IMAGES)
    assert (four.queries, four.keys) == (2 * IMAGES // 4, 2 * IMAGES)
    assert four.flops == 4 * 2 * DIM * four.queries * four.keys


def test_tiles_bound_the_memory_of_a_large_batch() -> None:
    def bytes_of(batch: int) -> int:
        run = run_of(METHODS["simclr"])
        training = replace(run.config.training, batch_size=batch)
        large = replace(run, config=replace(run.config, training=training))
        return logits_cost(large, 128, tile=2048).bytes

    assert bytes_of(2**20) / bytes_of(2**17) == pytest.approx(8, rel=0.1)  # rows, not pairs
