"""Bytes between processes against those that two real processes hand to torch.distributed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from diptych.config.data import ViewsConfig
from diptych.config.method import (
    BankConfig,
    DenseConfig,
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.logging.times import time_metrics
from diptych.methods.build import build_with_keys
from diptych.methods.dictionaries import ImageBank, KeyQueue
from diptych.models.activations import recompute_stages
from diptych.optimization.optimizers import build_optimizer
from diptych.planning.compute import build_on_meta
from diptych.planning.machine import MACHINES
from diptych.planning.planned_run import PlannedRun
from diptych.planning.traffic import Message, largest_share, messages, network_seconds
from diptych.runtime.distributed import largest_over_processes
from diptych.runtime.stopwatch import PARTS
from diptych.training.step import require_synchronized, train_step
from diptych.views.batches import Batch
from processes import Results, run_processes

PROCESSES, BATCH, IMAGES, DIM, SIDE = 2, 16, 40, 6, 16
BASE = RunConfig(
    views=ViewsConfig(side_pixels=SIDE),
    encoder=EncoderConfig(width=4, stage_blocks=(1,)),
    norm=NormConfig("sync"),
    head=HeadConfig(hidden_features=8, output_features=DIM, batch_norm=True),
    training=TrainingConfig(batch_size=BATCH),
)
MOMENTUM_ENCODER, BATCH_KEYS = (
    KeyEncoderConfig("momentum"),
    DictionaryConfig("batch", batch=InBatchConfig(both_views=False)),
)
QUEUE = MethodConfig(
    dictionary=DictionaryConfig("queue", queue=QueueConfig(size=50)), key_encoder=MOMENTUM_ENCODER
)
CONFIGS = {
    "simclr": BASE,
    "plain norms": replace(BASE, norm=NormConfig("batch")),
    "moco_v1": replace(BASE, norm=NormConfig("shuffle", images_per_group=4), method=QUEUE),
    "moco_v3": replace(
        BASE,
        head=replace(BASE.head, predictor_layers=2, output_norm=True),
        method=MethodConfig(symmetric=True, dictionary=BATCH_KEYS, key_encoder=MOMENTUM_ENCODER),
    ),
    "end_to_end": replace(
        BASE,
        norm=NormConfig("shuffle", images_per_group=4),
        method=MethodConfig(dictionary=BATCH_KEYS),
    ),
    "shuffled views": replace(BASE, norm=NormConfig("shuffle", images_per_group=4)),
    "bank": replace(
        BASE,
        method=MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(negatives=12))),
    ),
    "bank of few images": replace(
        BASE, method=MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(IMAGES)))
    ),
    "bank in shares": replace(
        BASE,
        method=MethodConfig(
            # All images are drawn, and all are in the batch: the shares are of the same length.
            dictionary=DictionaryConfig(
                "bank", bank=BankConfig(negatives=BATCH - 1, placement="sharded", precision="fp16")
            ),
            symmetric=True,
        ),
    ),
    "stages again": replace(BASE, training=replace(BASE.training, recompute="stages")),
    "stages of keys again, chunks": replace(
        BASE,
        method=MethodConfig(dictionary=BATCH_KEYS),
        training=replace(BASE.training, chunk_size=4, recompute="stages"),
    ),
    "chunks": replace(BASE, training=replace(BASE.training, chunk_size=4)),
    "chunks of keys": replace(
        BASE,
        method=MethodConfig(dictionary=BATCH_KEYS),
        training=replace(BASE.training, chunk_size=4),
    ),
    "three views": replace(BASE, norm=NormConfig("layer"), method=MethodConfig(views=3)),
    "dense": replace(
        BASE,
        norm=NormConfig("shuffle", images_per_group=4),
        method=replace(QUEUE, kind="dense", dense=DenseConfig(cells=2)),
    ),
    "small views": replace(
        BASE, views=replace(BASE.views, small_views=2, small_side_pixels=SIDE // 2)
    ),
    "small views, bank": replace(
        BASE,
        views=replace(BASE.views, small_views=2, small_side_pixels=SIDE // 2),
        method=MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(negatives=12))),
    ),
    "supervised": replace(BASE, method=MethodConfig(loss=LossConfig("supervised"))),
}


def images_of(config: RunConfig) -> int:
    return BATCH if config.method.dictionary.bank.placement == "sharded" else IMAGES


def one_step(config: RunConfig, rank: int) -> tuple[int, int]:
    """Bytes handed to all-reduces and all-gathers in a step of a run that is under way."""
    torch.manual_seed(0)
    images = images_of(config)
    method = build_with_keys(config, image_count=images).train()
    if config.training.recompute == "stages":
        recompute_stages(method.encoder)
    dictionary = method.dictionary
    if isinstance(dictionary, KeyQueue | ImageBank):
        keys = torch.randn(images, DIM)
        if isinstance(dictionary, KeyQueue):
            dictionary.enqueue(keys)
        else:
            dictionary.update(keys, torch.arange(images))
    share = BATCH // PROCESSES
    views = tuple(torch.randn(config.method.views, share, 3, SIDE, SIDE))
    views += tuple(torch.randn(config.views.small_views, share, 3, SIDE // 2, SIDE // 2))
    indices = torch.arange(rank * share, (rank + 1) * share)
    batch = Batch(views, indices, 0, labels=indices % 3)
    optimizer = build_optimizer(config.optimizer, method)
    reduce, gather, sent = dist.all_reduce, dist.all_gather, [0, 0]

    def count_reduce(tensor: Tensor, *more: Any, **named: Any) -> Any:
        sent[0] += tensor.nbytes
        return reduce(tensor, *more, **named)

    def count_gather(into: list[Tensor], tensor: Tensor, *more: Any, **named: Any) -> Any:
        sent[1] += tensor.nbytes
        return gather(into, tensor, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", count_reduce)
        patch.setattr(dist, "all_gather", count_gather)
        train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=config)
        largest_over_processes(0, 0, 0, 0)  # as the loop does after each step
        before = sent[1]
        require_synchronized(method, 1, images="")
        checks, before = sent[1] - before, sent[1]
        time_metrics(dict.fromkeys(PARTS, 0.0), steps=1)
        times = sent[1] - before
    often = config.training.check_every_steps, config.probe.log_every_steps
    gathered = before - checks + checks / often[0] + times / often[1]
    return sent[0], int(gathered)


def all_configs(rank: int, count: int) -> Results:
    return {name: torch.tensor(one_step(config, rank)) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def handed_in() -> Results:
    return run_processes(all_configs, PROCESSES)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_messages_are_those_that_a_step_sends(name: str, handed_in: Results) -> None:
    config = CONFIGS[name]
    images = images_of(config)
    planned = messages(PlannedRun(config, images, PROCESSES), build_on_meta(config, images), DIM)
    reduced = sum(one.bytes for one in planned if one.kind == "reduce")
    gathered = sum(one.bytes for one in planned if one.kind == "gather")
    assert reduced == handed_in[name][0]
    assert int(gathered) == handed_in[name][1]


def test_places_of_a_map_enter_a_queue_and_come_back_from_shuffling() -> None:
    """The oracle is the real method: how long its rows are, and what it hands to its queues."""
    config = CONFIGS["dense"]
    method, share = build_with_keys(config).train(), BATCH // PROCESSES
    views = torch.randn(2, share, 3, SIDE, SIDE)
    output = method(Batch(tuple(views), torch.arange(share), 0))
    rows = method._keys_encoded((views[0],))
    assert output.keys is not None
    planned = messages(PlannedRun(config, IMAGES, PROCESSES), build_on_meta(config, IMAGES), DIM)
    sent = {one.what: one.bytes for one in planned}
    assert sent["shuffled keys"] == rows.nbytes
    assert sent["entering keys"] + sent["entering keys of places"] == output.keys.nbytes


def test_a_single_process_sends_nothing() -> None:
    assert not messages(PlannedRun(BASE, IMAGES), build_on_meta(BASE, IMAGES), DIM)


def test_a_ring_sends_nearly_twice_a_sum_and_all_others_what_is_gathered() -> None:
    assert Message("sum", "reduce", 100).sent(4) == 150
    assert Message("rows", "gather", 100).sent(4) == 300


def test_time_is_bytes_over_bandwidth_and_latency_by_turns() -> None:
    machine = replace(MACHINES["cpu"], network_bytes_per_second=1e6, network_seconds=0.01)
    ring = Message("sum", "reduce", 4e6).seconds(4, machine)
    assert ring == pytest.approx(6 * 0.01 + 6.0)
    tree = Message("sum", "reduce", 8).seconds(1024, machine)
    assert tree == pytest.approx(20 * 0.01, rel=1e-3)
    found = [Message("rows", "gather", 1e6), Message("sum", "reduce", 4e6)]
    assert network_seconds(found, 4, machine) == pytest.approx(3 * 0.01 + 3.0 + ring)


@pytest.mark.parametrize(("processes", "images"), [(2, 1000), (8, 700), (64, 5000)])
def test_the_largest_share_is_that_of_random_batches(processes: int, images: int) -> None:
    """The oracle draws: images i of process i mod n, a batch and negatives without repetition."""
    batch, drawn, generator = 512, 301, np.random.default_rng(0)
    dictionary = DictionaryConfig("bank", bank=BankConfig(negatives=drawn - 1, placement="sharded"))
    config = replace(
        BASE,
        method=MethodConfig(dictionary=dictionary),
        training=replace(BASE.training, batch_size=batch),
    )
    largest = list[int]()
    for _ in range(400):
        wanted = [generator.choice(images, count, replace=False) for count in (batch, drawn)]
        counts = np.bincount(np.concatenate(wanted) % processes, minlength=processes)
        largest.append(int(counts.max()))
    expected = largest_share(PlannedRun(config, images, processes))
    assert expected == pytest.approx(np.mean(largest), rel=0.04)  # few rows: not quite normal
    assert expected > (batch + drawn) / processes
