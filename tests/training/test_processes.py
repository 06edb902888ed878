"""A run over several processes is that of one process with the same batch, step by step."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diptych.config.method import (
    BankConfig,
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, GroupNormConfig, HeadConfig, NormConfig
from diptych.config.run import OptimizerConfig, RunConfig, TrainingConfig
from diptych.evaluation.linear import fit_linear
from diptych.methods.contrastive import build_contrastive
from diptych.methods.distillation import Distillation, Teacher
from diptych.methods.sharded_bank import sharded_banks
from diptych.models.weights import PretrainedEncoder
from diptych.optimization.optimizers import build_optimizer
from diptych.runtime.distributed import own_slice
from diptych.training.step import train_step
from diptych.views.batches import Batch
from processes import Results, run_processes

BATCH, IMAGES = 16, 40
STEPS = 20  # of the recipes; variants take fewer
FEW_STEPS = 6
RECIPES = ("simclr", "moco_v1", "moco_v3", "end_to_end", "memory_bank", "sharded_bank")
BASE = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1,)),
    norm=NormConfig("sync"),
    head=HeadConfig(hidden_features=8, output_features=6, batch_norm=True),
    method=MethodConfig(loss=LossConfig(temperature=0.2)),
    optimizer=OptimizerConfig(clip_norm=0.5),
    training=TrainingConfig(batch_size=BATCH),
)
KEYS_ONLY = DictionaryConfig("batch", batch=InBatchConfig(both_views=False))
MOMENTUM_ENCODER = KeyEncoderConfig("momentum", momentum=0.9)
SHUFFLE = NormConfig("shuffle", images_per_group=4)
MOCO_V1 = replace(
    BASE,
    norm=SHUFFLE,
    method=replace(
        BASE.method,
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=50)),
        key_encoder=MOMENTUM_ENCODER,
    ),
)
MOCO_V3 = replace(
    BASE,
    head=replace(BASE.head, predictor_layers=2, output_norm=True),
    method=replace(BASE.method, symmetric=True, dictionary=KEYS_ONLY, key_encoder=MOMENTUM_ENCODER),
)
GROUP = NormConfig("group", group=GroupNormConfig(channel_groups=2))
END_TO_END = replace(BASE, norm=GROUP, method=replace(BASE.method, dictionary=KEYS_ONLY))
BANK = DictionaryConfig("bank", bank=BankConfig(negatives=12))
SHARDED = replace(BANK, bank=replace(BANK.bank, placement="sharded"))
CONFIGS = {
    "simclr": BASE,
    "moco_v1": MOCO_V1,
    "moco_v3": MOCO_V3,
    "end_to_end": END_TO_END,
    "memory_bank": replace(BASE, norm=GROUP, method=replace(BASE.method, dictionary=BANK)),
    "sharded_bank": replace(BASE, norm=GROUP, method=replace(BASE.method, dictionary=SHARDED)),
    "learned with a bank": replace(
        BASE,
        norm=GROUP,
        method=replace(BASE.method, dictionary=BANK, loss=LossConfig(learn_temperature=True)),
    ),
    "chunks": replace(END_TO_END, norm=SHUFFLE, training=replace(BASE.training, chunk_size=4)),
    "groups": replace(BASE, norm=GROUP),
    "three views": replace(BASE, norm=NormConfig("layer"), method=replace(BASE.method, views=3)),
    "supervised": replace(
        BASE,
        norm=GROUP,
        method=replace(BASE.method, loss=LossConfig("supervised", learn_temperature=True)),
    ),
    "split": replace(
        BASE,
        norm=NormConfig("split", images_per_group=4),
        method=replace(BASE.method, loss=LossConfig("nt_logistic", temperature=0.5)),
    ),
}


def share_of_batch(name: str, step: int) -> Batch:
    """This process's rows of a batch of images that have three random views each."""
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(3, BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)
    indices = torch.randperm(IMAGES, generator=generator)[:BATCH]
    own = own_slice(BATCH)
    count = CONFIGS[name].method.views
    return Batch(
        tuple(view[own] for view in views[:count]),
        indices[own],
        step,
        groups=(indices // 3)[own] if name == "groups" else None,
        labels=(indices % 12)[own],  # some classes have one image only
    )


def trained(name: str) -> Results:
    config = CONFIGS[name]
    method = build_contrastive(config, image_count=IMAGES).double().train()
    optimizer = build_optimizer(config.optimizer, method)
    losses, others = [], []
    for step in range(STEPS if name in RECIPES else FEW_STEPS):
        batch = share_of_batch(name, step)
        output = train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=config)
        losses.append(output.loss)
        names = ("pretext_accuracy", "candidates", "chance_loss", "gradient_norm")
        others.append(torch.stack([output.metrics[name].double() for name in names]))
    whole = {key: bank.fetch(torch.arange(IMAGES)) for key, bank in sharded_banks(method)}
    held = {**method.state_dict(), **whole}
    state = {f"state/{key}": value.clone() for key, value in held.items()}
    return {"losses": torch.stack(losses).detach(), "others": torch.stack(others), **state}


def trained_all(rank: int, count: int) -> Results:
    """Runs in each process."""
    return {f"{name}/{key}": value for name in CONFIGS for key, value in trained(name).items()}


def of(name: str, results: Results) -> Results:
    start = f"{name}/"
    return {key.removeprefix(start): v for key, v in results.items() if key.startswith(start)}


@pytest.fixture(scope="module")
def alone() -> Results:
    return trained_all(0, 1)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest) -> list[Results]:
    return run_processes(trained_all, request.param)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_processes_train_as_one(name: str, alone: Results, together: list[Results]) -> None:
    wanted = of(name, alone)
    for results in together:
        found = of(name, results)
        torch.testing.assert_close(found["losses"], wanted["losses"], rtol=1e-9, atol=0)
        torch.testing.assert_close(found["others"], wanted["others"], rtol=1e-6, atol=0)
        assert found.keys() == wanted.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_processes_hold_the_same_bits(name: str, together: list[Results]) -> None:
    first, *others = (of(name, results) for results in together)
    for other in others:
        for key, value in first.items():
            assert torch.equal(value, other[key]), key


def test_a_sharded_bank_is_a_replicated_one(alone: Results, together: list[Results]) -> None:
    wanted = of("memory_bank", alone)
    for results in together:
        found = of("sharded_bank", results)
        torch.testing.assert_close(found["losses"], wanted["losses"], rtol=1e-9, atol=0)
        for key, value in of("sharded_bank", alone).items():
            assert torch.equal(value, wanted[key]), key  # alone it is the same bank


def test_the_losses_move(alone: Results) -> None:
    """So that equal losses say something."""
    for name in CONFIGS:
        losses = of(name, alone)["losses"]
        assert len(set(losses.tolist())) == len(losses) >= FEW_STEPS, name


def taught(rank: int, count: int) -> Results:
    """A student's step beside a frozen teacher with batch norms; all but the student's parts."""
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten())
    encoder[1].running_mean.normal_()  # type: ignore[operator]
    encoder[1].running_var.uniform_(0.1, 3)  # type: ignore[operator]
    features = torch.randn(12, 5 * 36)
    fitted = fit_linear(features, torch.arange(12) % 3)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    config = replace(BASE, optimizer=OptimizerConfig())
    teacher = Teacher(PretrainedEncoder(encoder, config), fitted)
    learner = Distillation(student, nn.Linear(4 * 36, 3), teacher, temperature=1.0).train()
    optimizer = build_optimizer(config.optimizer, learner)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for step in range(3):
        views = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(rank)),)
        batch = Batch(views, torch.arange(4), step)
        train_step(learner, optimizer, batch, rate=0.1, momentum=0.9, config=config)
    after = teacher.state_dict()
    statistics = student[1].running_mean
    assert isinstance(statistics, torch.Tensor)
    return {
        **{f"before/{name}": value for name, value in before.items()},
        **{f"after/{name}": after[name].clone() for name in before},
        "student": statistics.clone(),
    }


def test_a_frozen_teacher_keeps_its_bits_over_processes() -> None:
    """Of three processes: the mean of two equal numbers is exact, that of three is not."""
    results = run_processes(taught, 3)
    for one in results:
        assert torch.equal(one["student"], results[0]["student"])  # a student's are averaged
        before, after = of("before", one), of("after", one)
        assert any("running_var" in name for name in before)
        for name, value in before.items():
            assert torch.equal(after[name], value), name
