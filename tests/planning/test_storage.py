"""Bytes of files and of a process's state against real checkpoints, modules and optimizers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.configs import (
    DictionaryConfig,
    EncoderConfig,
    HeadConfig,
    KeyEncoderConfig,
    MethodConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)
from diptych.contrast.method import build_method
from diptych.images.order import Order
from diptych.images.sources import from_array
from diptych.optimization.optimizers import build_optimizer
from diptych.planning.case import Case
from diptych.planning.counted import build_on_meta
from diptych.planning.machine import MACHINES
from diptych.planning.plan import make_plan
from diptych.planning.storage import checkpoint_bytes, storage
from diptych.training.checkpoint import save_checkpoint
from diptych.training.state import RunState
from diptych.training.step import train_step
from diptych.views.batches import Batch

IMAGES = 50
BASE = RunConfig(
    encoder=EncoderConfig(width=8, stage_blocks=(1, 1)),
    head=HeadConfig(hidden_features=16, output_features=8, batch_norm=True),
    training=TrainingConfig(batch_size=4, epochs=3),
)
QUEUE = MethodConfig(
    dictionary=DictionaryConfig("queue", queue_size=300), key_encoder=KeyEncoderConfig("twin")
)
CONFIGS = {
    "sgd": BASE,
    "lars, queue": replace(BASE, optimizer=OptimizerConfig("lars"), method=QUEUE),
    "adamw, bank": replace(
        BASE,
        optimizer=OptimizerConfig("adamw"),
        method=MethodConfig(dictionary=DictionaryConfig("bank", bank_precision="fp16")),
    ),
}


def state_after_a_step(config: RunConfig) -> RunState:
    method = build_method(config, image_count=IMAGES).train()
    state = RunState(method, build_optimizer(config.optimizer, method), step=1)
    views = tuple(torch.randn(2, 4, 3, 32, 32))
    batch = Batch(views, torch.arange(4), 0)
    train_step(method, state.optimizer, batch, rate=0.1, momentum=0.9, config=config)
    return state


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_takes_the_bytes_that_one_takes(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    state = state_after_a_step(config)
    scalars = {**state.scalars(), "images": "0" * 64}
    written = save_checkpoint(tmp_path, state.tensors(), scalars, keep=1)
    on_disk = sum(file.stat().st_size for file in written.iterdir())
    planned = checkpoint_bytes(config, build_on_meta(config, IMAGES))
    tensors = sum(tensor.nbytes for tensor in state.tensors().values())
    assert tensors < planned
    assert planned == pytest.approx(on_disk, rel=0.02)  # names and paddings of a small network


@pytest.mark.parametrize("name", CONFIGS)
def test_lasting_memory_is_that_of_the_real_state(name: str) -> None:
    config = CONFIGS[name]
    state = state_after_a_step(config)
    method, lasting = state.method, make_plan(Case(config, IMAGES), MACHINES["cpu"]).memory.lasting

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
    plan = make_plan(Case(config, 10), MACHINES["cpu"])
    assert plan.weights == 25_557_032 - 2_049_000 + 2048 * 128 + 128


def test_reads_are_images_times_their_bytes() -> None:
    case = Case(BASE, 1000, image_bytes=5e4)
    found = storage(case, build_on_meta(BASE, 1000), kept=False)
    assert found.read_per_epoch == 1000 * 5e4
    assert found.read_per_step == 4 * 5e4
    assert found.checkpoints == found.checkpoint * (BASE.checkpoint.keep + 1)
    assert storage(case, build_on_meta(BASE, 1000), kept=True).read_per_step == 0


def test_the_list_of_images_is_no_shorter_than_what_is_held_of_them() -> None:
    """Sizes, and the orders of two epochs, counted on a real set; names and places come on top."""
    pixels = np.zeros((500, 2, 2, 3), dtype=np.uint8)
    images = from_array(pixels, None, BASE.images)
    order = Order(0, 500, 4)
    orders = sum(2 * order.batch(step)[1].itemsize for step in (0,)) * 500
    held = images.heights.nbytes + images.widths.nbytes + orders
    listed = make_plan(Case(BASE, 500), MACHINES["cpu"]).memory.host["list of images"]
    assert held < listed < 4 * held
