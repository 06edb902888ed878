"""The anchor: value and gradient against a plain computation, and in every way a batch may go."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from diptych.config.method import (
    AnchorConfig,
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import OWN, OptimizerConfig, RunConfig, TrainingConfig
from diptych.errors import ConfigError
from diptych.methods.anchor import feature_distance, similarity_distance
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.models.parts import FrozenParts
from diptych.models.resnets import SmallResNet
from diptych.optimization.optimizers import build_optimizer
from diptych.runtime.distributed import own_slice
from diptych.training.step import train_step
from diptych.views.batches import Batch
from processes import Results, run_processes

BATCH = 8
KINDS = ("features", "similarities")
BASE = RunConfig(
    encoder=EncoderConfig(OWN),
    norm=NormConfig("split", images_per_group=4),
    head=HeadConfig(hidden_features=8, output_features=6, batch_norm=True),
    method=MethodConfig(anchor=AnchorConfig(0.7)),
    optimizer=OptimizerConfig(),
    training=TrainingConfig(batch_size=BATCH),
)
KEYS_ONLY = DictionaryConfig("batch", batch=InBatchConfig(both_views=False))
MOCO = MethodConfig(
    dictionary=DictionaryConfig("queue", queue=QueueConfig(size=20)),
    key_encoder=KeyEncoderConfig("momentum"),
)
METHODS = {
    "simclr": MethodConfig(),
    "three views": MethodConfig(views=3),
    "moco": MOCO,
    "symmetric": replace(MOCO, dictionary=KEYS_ONLY, symmetric=True),
}


def module() -> nn.Module:
    torch.manual_seed(3)
    return SmallResNet(3, 4, (1, 1), 2)


def config_of(name: str, kind: str, norm: Any = "split") -> RunConfig:
    method = replace(METHODS[name], anchor=AnchorConfig(0.7, kind))  # type: ignore[arg-type]
    return replace(BASE, method=method, norm=replace(BASE.norm, kind=norm))


def method_of(config: RunConfig) -> Contrastive:
    """Away from its start, as after some steps."""
    method = build_contrastive(config, image_count=2 * BATCH, encoder=module()).double().train()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in method.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=0.1)
    return method


def batch_of(views: int, *, small: int = 0, count: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(views + small, count, 3, 16, 16, generator=generator, dtype=torch.float64)
    shown = (*images[:views], *images[views:, ..., :9, :9])
    return Batch(shown, torch.arange(count), 0)


# --- the two distances ------------------------------------------------------------------------


def plain_distance(kind: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return float(np.dot(one, other)) / math.sqrt(np.dot(one, one) * np.dot(other, other))

    count = len(ours)
    if kind == "features":
        return sum(1 - cosine(ours[i], theirs[i]) for i in range(count)) / count
    apart = [
        (cosine(ours[i], ours[j]) - cosine(theirs[i], theirs[j])) ** 2
        for i in range(count)
        for j in range(count)
    ]
    return sum(apart) / count**2


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_a_plain_computation(
    kind: str, rng: np.random.Generator
) -> None:
    ours, theirs = rng.normal(size=(2, 5, 7))
    distance = feature_distance if kind == "features" else similarity_distance
    features = torch.tensor(ours, requires_grad=True)
    found = distance(features, torch.tensor(theirs))
    assert float(found.detach()) == pytest.approx(plain_distance(kind, ours, theirs), rel=1e-12)
    torch.autograd.backward(found)
    assert features.grad is not None
    for place in [(0, 0), (2, 3), (4, 6)]:
        values = []
        for step in (1e-5, -1e-5):
            moved = ours.copy()
            moved[place] += step
            values.append(plain_distance(kind, moved, theirs))
        slope = (values[0] - values[1]) / 2e-5
        assert float(features.grad[place]) == pytest.approx(slope, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_itself_is_at_no_distance(kind: str) -> None:
    features = torch.randn(6, 5, dtype=torch.float64)
    distance = feature_distance if kind == "features" else similarity_distance
    assert float(distance(features, 2 * features)) == pytest.approx(0, abs=1e-12)


# --- in a method ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_features_of_the_queries_are_held_to_the_start(name: str, kind: str) -> None:
    config = config_of(name, kind)
    method, batch = method_of(config), batch_of(config.method.views, small=1)
    output = method(batch)
    queries = [0, 1, 2, 3][: config.method.views + 1] if name != "moco" else [0, 2]
    views = [batch.views[place] for place in queries]
    encoder, start = method_of(config).encoder, module().double().eval()
    full = torch.cat([view for view in views if view.shape[-1] == 16])
    with torch.no_grad():
        ours = torch.cat([encoder(full), encoder(views[-1])]).numpy()
        theirs = torch.cat([start(view) for view in views]).numpy()
    wanted = plain_distance(kind, ours, theirs)
    assert output.penalty is not None
    assert float(output.penalty.detach()) == pytest.approx(0.7 * wanted, rel=1e-9)
    assert float(output.metrics["anchor_distance"]) == pytest.approx(wanted, rel=1e-9)
    # The loss is what it is without an anchor.
    free = replace(config, method=replace(config.method, anchor=AnchorConfig()))
    assert float(output.loss.detach()) == pytest.approx(
        float(method_of(free)(batch).loss.detach()), rel=1e-12
    )


def gradients(config: RunConfig, batch: Batch) -> tuple[dict[str, torch.Tensor], Contrastive]:
    method = method_of(config)
    output = method(batch)
    assert output.penalty is not None
    torch.autograd.backward(output.loss + output.penalty)
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}, method


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_equals_chunks(name: str, kind: str) -> None:
    config = config_of(name, kind, "shuffle")
    batch = batch_of(config.method.views, small=1)
    wanted, whole = gradients(config, batch)
    chunked = replace(config, training=replace(config.training, chunk_size=4))
    found, method = gradients(chunked, batch)
    assert found.keys() == wanted.keys()
    for one, value in found.items():
        largest = float(wanted[one].abs().max())
        torch.testing.assert_close(value, wanted[one], rtol=1e-8, atol=1e-9 * largest + 1e-13)
    for one, value in method.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[one], rtol=1e-9, atol=1e-12)


def test_a_step_goes_against_the_gradient_of_loss_and_anchor_and_leaves_the_start() -> None:
    config = replace(
        config_of("simclr", "features"), optimizer=OptimizerConfig(momentum=0.0, weight_decay=0.0)
    )
    config = replace(
        config, method=replace(config.method, loss=replace(config.method.loss, weight=2.0))
    )
    method, batch = method_of(config), batch_of(2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    twin = method_of(config)
    output = twin(batch)
    assert output.penalty is not None
    torch.autograd.backward(2.0 * output.loss + output.penalty)
    optimizer = build_optimizer(config.optimizer, method)
    done = train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=config)
    assert done.penalty is None  # its graph, and images with it, are free
    for (name, parameter), (_, other) in zip(
        method.named_parameters(), twin.named_parameters(), strict=True
    ):
        if other.grad is not None:
            wanted = before[name] - 0.1 * other.grad
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-14)
    for name, value in method.state_dict().items():
        if name.startswith("anchor."):
            assert torch.equal(value, before[name]), name


def test_without_a_weight_there_is_no_second_network() -> None:
    method = build_contrastive(
        replace(BASE, method=MethodConfig()), image_count=BATCH, encoder=module()
    )
    assert method.anchor is None
    assert not any(name.startswith("anchor") for name in method.state_dict())


def shared(rank: int, count: int) -> Results:
    """Runs in each process."""
    found = Results()
    for kind in KINDS:
        config = config_of("simclr", kind, "sync")
        if kind == "similarities":
            statistics = EncoderConfig(OWN, batch_statistics="start")
            config = replace(config, encoder=statistics)
        method = method_of(config)
        FrozenParts(method.encoder, 1).set(frozen=kind == "features")
        whole = batch_of(2)
        own = own_slice(BATCH)
        batch = Batch(tuple(view[own] for view in whole.views), whole.indices[own], 0)
        optimizer = build_optimizer(config.optimizer, method)
        output = train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=config)
        found[f"{kind}/distance"] = output.metrics["anchor_distance"]
        found |= {f"{kind}/{name}": value.clone() for name, value in method.state_dict().items()}
    return found


@pytest.mark.slow
def test_processes_hold_to_the_start_as_one_does() -> None:
    alone = shared(0, 1)
    for found in run_processes(shared, 2):
        assert found.keys() == alone.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-7, atol=1e-10, msg=name)


# --- what does not go together ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(BASE, encoder=EncoderConfig()), r"method\.anchor\.weight = 0\.7 refers to"),
        (
            RunConfig(optimizer=OptimizerConfig(pull_to_start=0.1)),
            r"pull_to_start = 0\.1 .* give encoder\.weights",
        ),
        (
            RunConfig(encoder=EncoderConfig(batch_statistics="start")),
            r"batch_statistics = 'start' .* give encoder\.weights",
        ),
        (
            replace(BASE, training=replace(BASE.training, compile=True)),
            r"leave out training\.compile",
        ),
        (
            replace(
                BASE,
                encoder=EncoderConfig(OWN, batch_statistics="start"),
                norm=NormConfig("layer"),
            ),
            r"leaves the encoder no batch norms",
        ),
        (RunConfig(encoder=EncoderConfig(frozen_epochs=2.0)), r"give both"),
    ],
)
def test_what_needs_a_start_is_refused_without_one(config: RunConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_contrastive(config, image_count=BATCH, encoder=module())


def test_a_step_with_the_statistics_of_the_start_moves_none_of_them() -> None:
    encoder = EncoderConfig(OWN, batch_statistics="start")
    for norm in ("batch", "split", "shuffle", "sync"):
        config = replace(config_of("moco", "features", norm), encoder=encoder)
        method, batch = method_of(config), batch_of(2)
        before = {name: value.clone() for name, value in method.state_dict().items()}
        optimizer = build_optimizer(config.optimizer, method)
        train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=config)
        moved = {
            name for name, value in method.state_dict().items() if not value.equal(before[name])
        }
        of_encoder = {name for name in moved if "running" in name and ".encoder." in name}
        assert not of_encoder, (norm, of_encoder)
        assert any("head" in name and "running" in name for name in moved)
        assert "network.encoder.conv1.weight" in moved


def test_queries_alone_have_the_length_of_keys() -> None:
    method = method_of(config_of("moco", "features"))
    views = batch_of(2).views[:1]
    assert method.encode_queries(views).shape == method.encode_keys(views).shape
    unit = functional.normalize(method.encode_queries(views), dim=-1)
    assert unit.shape == (1, BATCH, 6)
