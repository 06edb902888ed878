"""Bytes of files and of a process's state against real checkpoints, modules and optimizers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.checkpoints.save_and_load import save_checkpoint
from diptych.checkpoints.saver import HostCopy
from diptych.checkpoints.state import RunState
from diptych.config.method import (
    BankConfig,
    DictionaryConfig,
    KeyEncoderConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig
from diptych.config.run import CheckpointConfig, OptimizerConfig, RunConfig, TrainingConfig
from diptych.images.open import from_array
from diptych.methods.contrastive import build_contrastive
from diptych.methods.sharded_bank import ShardedBank
from diptych.optimization.optimizers import build_optimizer
from diptych.planning.compute import build_on_meta
from diptych.planning.machine import MACHINES
from diptych.planning.plan import make_plan
from diptych.planning.planned_run import PlannedRun
from diptych.planning.storage import (
    COPY,
    checkpoint_bytes,
    gathered_bytes,
    state_after_a_step,
    storage,
)
from diptych.runs.folder import Identity
from diptych.training.step import train_step
from diptych.views.batches import Batch, Order
from processes import Results, run_processes

IMAGES = 50
BASE = RunConfig(
    encoder=EncoderConfig(width=8, stage_blocks=(1, 1)),
    head=HeadConfig(hidden_features=16, output_features=8, batch_norm=True),
    training=TrainingConfig(batch_size=4, epochs=3),
)
QUEUE = MethodConfig(
    dictionary=DictionaryConfig("queue", queue=QueueConfig(size=300)),
    key_encoder=KeyEncoderConfig("momentum"),
)
CONFIGS = {
    "sgd": BASE,
    "lars, queue": replace(BASE, optimizer=OptimizerConfig("lars"), method=QUEUE),
    "adamw, bank": replace(
        BASE,
        optimizer=OptimizerConfig("adamw"),
        method=MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(precision="fp16"))),
    ),
}
SHARED = replace(
    BASE,
    training=replace(BASE.training, batch_size=6),
    method=MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(placement="sharded"))),
)
CPU = MACHINES["cpu"]

RUN = Identity("0" * 32, "runs/test")


def planned_state(config: RunConfig) -> RunState:
    return state_after_a_step(config, build_on_meta(config, IMAGES))


def real_state(config: RunConfig) -> RunState:
    method = build_contrastive(config, image_count=IMAGES).train()
    method = method.to(memory_format=torch.channels_last)
    state = RunState(method, build_optimizer(config.optimizer, method), step=1)
    views = tuple(torch.randn(2, 4, 3, 32, 32))
    batch = Batch(views, torch.arange(4), 0)
    train_step(method, state.optimizer, batch, rate=0.1, momentum=0.9, config=config)
    return state


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_takes_the_bytes_that_one_takes(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    state = real_state(config)
    scalars = {**state.scalars(), "images": "0" * 64}
    written = save_checkpoint(tmp_path, RUN, state.tensors(), scalars, keep=1)
    on_disk = sum(file.stat().st_size for file in written.iterdir())
    planned = checkpoint_bytes(planned_state(config))
    tensors = sum(tensor.nbytes for tensor in state.tensors().values())
    assert tensors < planned
    assert planned == pytest.approx(on_disk, rel=0.02)  # names and paddings of a small network


@pytest.mark.parametrize("name", CONFIGS)
def test_lasting_memory_is_that_of_the_real_state(name: str) -> None:
    config = CONFIGS[name]
    state = real_state(config)
    method, lasting = (
        state.method,
        make_plan(PlannedRun(config, IMAGES), MACHINES["cpu"]).memory.lasting,
    )

    def held(module: torch.nn.Module) -> int:
        return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))

    moved = [t for one in state.optimizer.state.values() for t in one.values()]
    assert lasting["optimizer"] == sum(t.numel() * t.element_size() for t in moved)
    assert lasting["weights"] == held(method.network)
    assert sum(lasting.values()) - lasting["optimizer"] == held(method)
    by_kind = {"sgd": "none", "lars, queue": "queue", "adamw, bank": "bank"}
    if name != "sgd":
        assert lasting[by_kind[name]] == held(method.dictionary)  # type: ignore[arg-type]


def test_parameters_are_those_of_the_papers() -> None:
    """torchvision's ResNet-50 has 25,557,032 weights, 2,049,000 of them in its classifier."""
    head = HeadConfig(layers=1, output_features=128)
    config = replace(BASE, encoder=EncoderConfig(name="resnet50", stem="imagenet"), head=head)
    plan = make_plan(PlannedRun(config, 10), MACHINES["cpu"])
    assert plan.weights == 25_557_032 - 2_049_000 + 2048 * 128 + 128


def test_reads_are_images_times_their_bytes() -> None:
    run = PlannedRun(BASE, 1000, image_pixels=1e9, image_bytes=5e4)
    found = storage(run, planned_state(BASE))
    assert found.read_per_epoch == 1000 * 5e4
    assert found.read_per_step == 4 * 5e4
    assert found.checkpoints == found.checkpoint * (BASE.checkpoint.keep + 1)
    kept = replace(run, image_pixels=32.0 * 32.0)  # few enough to stay in memory
    assert storage(kept, planned_state(BASE)).read_per_step == 0


def test_the_list_of_images_is_no_shorter_than_what_is_held_of_them() -> None:
    """Sizes, and the orders of two epochs, counted on a real set; names and places come on top."""
    pixels = np.zeros((500, 2, 2, 3), dtype=np.uint8)
    images = from_array(pixels, None, BASE.images)
    order = Order(0, 500, 4)
    orders = sum(2 * order.batch(step)[1].itemsize for step in (0,)) * 500
    held = images.heights.nbytes + images.widths.nbytes + orders
    listed = make_plan(PlannedRun(BASE, 500), MACHINES["cpu"]).memory.host["list of images"]
    assert held < listed < 4 * held


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_copies_for_a_checkpoint_are_those_that_are_made(name: str, asynchronous: bool) -> None:
    """The oracle is the memory of what is handed to the file: is it the training's own or not?"""
    config = replace(CONFIGS[name], checkpoint=CheckpointConfig(0.0, asynchronous=asynchronous))
    state = real_state(config)
    named = state.named_tensors()  # held, so that no address is used twice
    own = {tensor.data_ptr() for tensor in named.values()}
    saved = HostCopy().take(state.named_tensors()) if asynchronous else state.tensors()
    copied = sum(one.nbytes for one in saved.values() if one.data_ptr() not in own)
    planned = make_plan(PlannedRun(config, IMAGES), MACHINES["cpu"]).memory
    if asynchronous:
        found = planned.host[COPY]
        assert "copy" not in planned.moments["checkpoint"]
    else:
        found = planned.moments["checkpoint"]["copy"]
        assert COPY not in planned.host
    counts = sum(one.nbytes for one in saved.values() if one.numel() == 1)  # lie in the state dict
    assert found == pytest.approx(copied, abs=counts)
    assert copied > 0


def test_a_short_run_copies_its_state_at_its_end_only() -> None:
    config = replace(BASE, checkpoint=CheckpointConfig(1e9))
    held = make_plan(PlannedRun(config, IMAGES), MACHINES["cpu"]).memory
    often = make_plan(
        PlannedRun(replace(config, checkpoint=CheckpointConfig(0.0)), IMAGES), CPU
    ).memory
    assert COPY not in held.host
    assert held.moments["checkpoint"]["copy"] == often.host[COPY]


def in_shares(rank: int, count: int) -> Results:
    bank = build_contrastive(SHARED, image_count=IMAGES).dictionary
    assert isinstance(bank, ShardedBank)
    held = sum(one.numel() * one.element_size() for one in bank.buffers())
    whole = bank.whole()
    return {"held": torch.tensor(held), "whole": torch.tensor(0 if whole is None else whole.nbytes)}


@pytest.mark.slow
def test_a_bank_in_shares_takes_what_the_largest_of_real_shares_takes() -> None:
    results = run_processes(in_shares, 3)
    plan = make_plan(PlannedRun(SHARED, IMAGES, 3), CPU)
    assert plan.memory.lasting["bank"] == max(int(one["held"]) for one in results)
    assert gathered_bytes(planned_state(SHARED)) == int(results[0]["whole"])
    replicated = replace(
        SHARED.method.dictionary,
        bank=replace(SHARED.method.dictionary.bank, placement="replicated"),
    )
    whole = replace(SHARED, method=replace(SHARED.method, dictionary=replicated))
    assert (
        plan.storage.checkpoint == make_plan(PlannedRun(whole, IMAGES, 3), CPU).storage.checkpoint
    )


def test_training_waits_for_a_copy_and_not_for_the_disk() -> None:
    beside = make_plan(PlannedRun(BASE, IMAGES), CPU)
    waiting = replace(BASE, checkpoint=replace(BASE.checkpoint, asynchronous=False))
    state = sum(one.nbytes for one in real_state(BASE).named_tensors().values())
    copying = 2 * state / CPU.memory_bytes_per_second  # read, and written
    assert beside.pause_seconds == pytest.approx(copying, rel=1e-3)
    assert make_plan(PlannedRun(waiting, IMAGES), CPU).pause_seconds == beside.writing_seconds
    slow = replace(CPU, disk_bytes_per_second=1.0)  # the next one is put off until this is written
    late = make_plan(PlannedRun(BASE, IMAGES), slow)
    share = late.checkpoint_seconds / late.step_seconds
    assert share == pytest.approx(late.pause_seconds / late.writing_seconds)
