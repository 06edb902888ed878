"""Dense contrast against plain loops in float64, and in whole steps of the method."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.config.data import ViewsConfig
from diptych.config.method import (
    DenseConfig,
    DictionaryConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.recipes import recipe_config
from diptych.config.run import RunConfig, TrainingConfig
from diptych.errors import ConfigError
from diptych.methods.build import build_with_keys
from diptych.methods.dense import DenseContrastive, contrast_places, dense_positives, join_losses
from diptych.methods.losses import LOSSES
from diptych.methods.method import StepOutput, scalar
from diptych.optimization.optimizers import build_optimizer
from diptych.runtime.distributed import own_slice
from diptych.training.step import train_step
from diptych.views.batches import Batch
from processes import Results, run_processes

BATCH, QUEUE, SIDE = 12, 20, 16
DENSE = RunConfig(
    views=ViewsConfig(side_pixels=SIDE),
    encoder=EncoderConfig(width=4, stage_blocks=(1, 1)),
    norm=NormConfig("shuffle", images_per_group=3),
    head=HeadConfig(hidden_features=8, output_features=6),
    method=MethodConfig(
        kind="dense",
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=QUEUE)),
        key_encoder=KeyEncoderConfig("momentum", 0.9),
        loss=LossConfig(temperature=0.2),
        dense=DenseConfig(weight=0.3, warmup_steps=1),
    ),
    training=TrainingConfig(batch_size=BATCH),
)
SYMMETRIC = replace(DENSE, method=replace(DENSE.method, symmetric=True))


def method_of(config: RunConfig) -> DenseContrastive:
    method = build_with_keys(config).double().train()
    assert isinstance(method, DenseContrastive)
    return method


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(2, BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return Batch((views[0], views[1]), torch.arange(BATCH), step)


# --- the numbers ------------------------------------------------------------------------------


def plain_positives(
    query_maps: NDArray[np.float64], key_maps: NDArray[np.float64], places: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = np.empty((len(places), places.shape[1], query_maps.shape[2]))
    for image in range(len(places)):
        for i in range(query_maps.shape[2]):
            cosines = []
            for j in range(key_maps.shape[2]):
                one, other = query_maps[image, :, i], key_maps[image, :, j]
                norms = math.sqrt(one @ one) * math.sqrt(other @ other)
                cosines.append(float(one @ other) / norms)
            found[image, :, i] = places[image, :, int(np.argmax(cosines))]
    return found


def plain_loss(
    queries: NDArray[np.float64],
    positives: NDArray[np.float64],
    negatives: NDArray[np.float64],
    temperature: float,
) -> float:
    losses = []
    for image in range(len(queries)):
        for place in range(queries.shape[2]):
            query = queries[image, :, place]
            positive = float(query @ positives[image, :, place]) / temperature
            others = [float(query @ key) / temperature for key in negatives]
            total = sum(math.exp(logit) for logit in [positive, *others])
            losses.append(math.log(total) - positive)
    return sum(losses) / len(losses)


def unit(vectors: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = vectors / np.sqrt((vectors**2).sum(axis=axis, keepdims=True))
    return found


def test_positives_and_loss_are_those_of_plain_loops(rng: np.random.Generator) -> None:
    query_maps, key_maps = rng.normal(size=(2, 3, 5, 7))
    queries, keys = unit(rng.normal(size=(2, 3, 4, 7)), 2)
    negatives = unit(rng.normal(size=(9, 4)), 1)
    wanted = plain_positives(query_maps, key_maps, keys)
    found = dense_positives(*map(torch.tensor, (query_maps, key_maps, keys)))
    assert np.array_equal(found.numpy(), wanted)
    assert not np.array_equal(wanted, keys)  # places differ from one view to the other
    output = contrast_places(
        torch.tensor(queries),
        found,
        torch.tensor(negatives),
        LOSSES["info_nce"],
        LossConfig(),
        temperature=0.3,
    )
    assert float(output.loss) == pytest.approx(plain_loss(queries, wanted, negatives, 0.3), 1e-12)
    assert float(output.metrics["chance_loss"]) == pytest.approx(math.log(10))


def test_positives_and_loss_are_those_of_lightly(rng: np.random.Generator) -> None:
    utils = pytest.importorskip("lightly.models.utils")
    loss = pytest.importorskip("lightly.loss").NTXentLoss(0.3, memory_bank_size=(9, 4))
    query_maps, key_maps = (torch.tensor(one).float() for one in rng.normal(size=(2, 3, 5, 7)))
    queries, keys = (torch.tensor(one).float() for one in unit(rng.normal(size=(2, 3, 4, 7)), 2))
    theirs = utils.select_most_similar(
        *(one.transpose(1, 2) for one in (query_maps, key_maps, keys))
    )
    ours = dense_positives(query_maps, key_maps, keys)
    assert torch.equal(ours.transpose(1, 2), theirs)
    with torch.no_grad():
        value = loss(queries.transpose(1, 2).flatten(0, 1), theirs.flatten(0, 1))
    negatives = loss.memory_bank.bank
    assert negatives.shape == (9, 4)
    output = contrast_places(
        queries, ours, negatives, LOSSES["info_nce"], LossConfig(), temperature=0.3
    )
    assert float(output.loss) == pytest.approx(float(value), rel=1e-6)


def test_a_place_that_moved_is_found_again(rng: np.random.Generator) -> None:
    maps = torch.tensor(rng.normal(size=(2, 6, 9)))
    order = torch.tensor(rng.permutation(9))
    keys = torch.arange(9.0).expand(2, 1, 9)
    found = dense_positives(maps[..., order], 3.0 * maps, keys)
    assert torch.equal(found[0, 0], order.float())


def test_the_losses_are_mixed_by_the_weight() -> None:
    def output(value: float) -> StepOutput:
        names = ("chance_loss", "pretext_accuracy", "chance_pretext_accuracy", "candidates")
        return StepOutput(torch.tensor(value), {name: scalar(value) for name in names})

    joined = join_losses(output(2.0), output(10.0), 0.25)
    assert float(joined.loss) == pytest.approx(4.0)
    metrics = {name: float(value) for name, value in joined.metrics.items()}
    assert metrics == {
        "chance_loss": 4.0,
        "pretext_accuracy": 2.0,
        "chance_pretext_accuracy": 2.0,
        "candidates": 2.0,
        "dense_loss": 10.0,
        "dense_accuracy": 10.0,
        "chance_dense_accuracy": 10.0,
        "dense_weight": 0.25,
    }


# --- steps of the method ------------------------------------------------------------------------


def maps_of(network: torch.nn.Module, views: Tensor) -> Tensor:
    """Maps of a SmallResNet, written out."""
    encoder = network.get_submodule("encoder")
    blocks, relu, norm = (encoder.get_submodule(one) for one in ("blocks", "relu", "bn1"))
    maps: Tensor = blocks(relu(norm(encoder.get_submodule("conv1")(views))))
    return maps


@pytest.mark.parametrize("config", [DENSE, SYMMETRIC], ids=["one way", "symmetric"])
def test_a_step_is_that_of_the_paper(config: RunConfig) -> None:
    """The second step, as the queues are empty in the first; norms of single images."""
    config = replace(config, norm=NormConfig("layer"))
    method = method_of(config)
    first = method(batch_of(0))
    assert float(first.metrics["dense_weight"]) == 0.0  # as it warms up
    method.after_step(first)
    batch = batch_of(1)
    output = method(batch)

    def places_of(network: torch.nn.Module, head: torch.nn.Module, view: Tensor) -> list[Tensor]:
        maps = maps_of(network, view)
        return [head(maps).flatten(2), maps.flatten(2)]

    negatives = oracles_keys(method, batch_of(0), symmetric=config.method.symmetric)
    assert np.allclose(method.dense_queue.negatives.numpy(), negatives, rtol=1e-12, atol=1e-14)
    assert method.momentum_encoder is not None
    pairs, losses = [(0, 1)] + [(1, 0)] * config.method.symmetric, []
    with torch.no_grad():
        for one, other in pairs:
            queries, features = places_of(method.network, method.dense_head, batch.views[one])
            slow = method.momentum_encoder.network, method.dense_momentum
            keys, key_features = places_of(*slow, batch.views[other])
            positives = plain_positives(
                features.numpy(), key_features.numpy(), unit(keys.numpy(), 1)
            )
            losses.append(plain_loss(unit(queries.numpy(), 1), positives, negatives, 0.2))
    dense = sum(losses) / len(losses)
    assert float(output.metrics["dense_loss"]) == pytest.approx(dense, rel=1e-9)
    plain = replace(config, method=replace(config.method, kind="contrastive"))
    moco = build_with_keys(plain).double().train()
    moco.after_step(moco(batch_of(0)))
    whole = float(moco(batch).loss.detach())
    assert float(output.loss.detach()) == pytest.approx(0.7 * whole + 0.3 * dense, rel=1e-9)


def oracles_keys(method: DenseContrastive, batch: Batch, *, symmetric: bool) -> NDArray[np.float64]:
    """What the dense queue must hold after a batch: means over places, of unit length."""
    assert method.momentum_encoder is not None
    rows = []
    with torch.no_grad():
        for view in [1, 0][: 1 + symmetric]:
            maps = maps_of(method.momentum_encoder.network, batch.views[view])
            pooled = method.dense_momentum(maps).mean(dim=(2, 3)).numpy()
            rows += [row / math.sqrt(row @ row) for row in pooled]
    # Of 24 keys a queue of 20 keeps the last, which go over the first rows.
    found = np.empty((min(len(rows), QUEUE), 6))
    for number, row in enumerate(rows):
        found[number % QUEUE] = row
    return found


def learned(config: RunConfig) -> tuple[float, DenseContrastive]:
    method = method_of(config)
    method.after_step(method(batch_of(0)))
    output = method(batch_of(1))
    torch.autograd.backward(output.loss)
    method.after_step(output)
    return float(output.loss.detach()), method


@pytest.mark.parametrize("config", [DENSE, SYMMETRIC], ids=["one way", "symmetric"])
def test_whole_equals_chunks(config: RunConfig) -> None:
    expected, whole = learned(config)
    loss, chunked = learned(replace(config, training=replace(config.training, chunk_size=3)))
    assert loss == pytest.approx(expected, rel=1e-9)
    for (name, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        if one.requires_grad:
            assert one.grad is not None
            assert other.grad is not None
            assert float(one.grad.abs().max()) > 0, name
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-8, atol=1e-11, msg=name)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(chunked.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_the_features_of_places_choose_and_get_no_gradient() -> None:
    """With the weight on places alone, the head of images learns nothing."""
    config = replace(DENSE, method=replace(DENSE.method, dense=DenseConfig(1.0, 0)))
    _, method = learned(config)
    head = list(method.network.get_submodule("head").parameters())
    assert all(one.grad is None or not one.grad.any() for one in head)
    assert all(one.grad is not None and one.grad.any() for one in method.dense_head.parameters())
    assert all(one.grad is not None for one in method.encoder.parameters())


def test_the_momentum_head_moves_after_the_head() -> None:
    method = method_of(DENSE)
    with torch.no_grad():
        for one in method.dense_head.parameters():
            one.add_(1.0)
    before = [one.clone() for one in method.dense_momentum.parameters()]
    method.update_momentum(0.9)
    for one, old in zip(method.dense_momentum.parameters(), before, strict=True):
        torch.testing.assert_close(one, old + 0.1)
        assert not one.requires_grad


def test_keys_and_queries_of_images_are_those_of_moco() -> None:
    """For the leak and the ranking, which compare whole images."""
    plain = replace(DENSE, method=replace(DENSE.method, kind="contrastive"))
    dense, moco, batch = method_of(DENSE), build_with_keys(plain).double().train(), batch_of(3)
    for ours, theirs in zip(dense.encode_pairs(batch), moco.encode_pairs(batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    views = (batch.views[0],)
    assert torch.equal(dense.encode_queries(views), moco.encode_queries(views))
    assert torch.equal(dense.encode_keys(views), moco.encode_keys(views))


def test_large_maps_are_averaged_in_cells() -> None:
    config = replace(DENSE, method=replace(DENSE.method, dense=DenseConfig(cells=2)))
    assert method_of(DENSE).cells == (4, 4)
    method = method_of(config)
    assert method.cells == (2, 2)
    assert float(method(batch_of(0)).loss.detach()) == 0.0  # the queues are empty


def test_half_precision_computes_the_loss_in_full() -> None:
    config = replace(DENSE, training=replace(DENSE.training, precision="bf16"))
    methods = [build_with_keys(one).train() for one in (config, DENSE)]
    losses = []
    for method in methods:
        for step in (0, 1):
            batch = batch_of(step)
            output = method(replace(batch, views=tuple(view.float() for view in batch.views)))
            method.after_step(output)
        assert output.loss.dtype == torch.float32
        losses.append(float(output.loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", ["resnet18", "timm:vit_tiny_patch16_224", "timm:test_convnext"])
def test_maps_of_other_networks(name: str) -> None:
    encoder = EncoderConfig(name=name, stem="imagenet", pool=2 if name == "resnet18" else 1)
    views = replace(DENSE.views, side_pixels=64)
    config = replace(DENSE, encoder=encoder, views=views, norm=NormConfig())
    method = build_with_keys(config).train()
    assert isinstance(method, DenseContrastive)
    assert method.cells == ((4, 4) if "vit" in name else (2, 2))
    output = method(Batch((torch.randn(2, 3, 64, 64),) * 2, torch.arange(2), 0))
    torch.autograd.backward(output.loss)


def shared(rank: int, count: int) -> Results:
    """Runs in each process."""
    found = Results()
    method = method_of(SYMMETRIC)
    optimizer = build_optimizer(SYMMETRIC.optimizer, method)
    for step in range(3):
        whole, own = batch_of(step), own_slice(BATCH)
        batch = Batch(tuple(view[own] for view in whole.views), whole.indices[own], step)
        output = train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=SYMMETRIC)
        found[f"loss {step}"] = output.loss
        found |= {f"{name} {step}": one.detach() for name, one in output.metrics.items()}
    return found | {name: value.clone() for name, value in method.state_dict().items()}


@pytest.mark.slow
def test_processes_learn_as_one_does() -> None:
    alone = shared(0, 1)
    for found in run_processes(shared, 2):
        assert found.keys() == alone.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-7, atol=1e-10, msg=name)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(DENSE, method=MethodConfig(kind="dense")),
            r"queues of keys from a momentum encoder: .* got 'batch and shared'",
        ),
        (
            replace(DENSE, head=replace(DENSE.head, predictor_layers=2)),
            r"no predictor, .* got 2",
        ),
        (
            replace(DENSE, views=replace(DENSE.views, small_views=2)),
            r"maps of one size: leave out views\.small_views; got 2",
        ),
        (
            replace(DENSE, training=replace(DENSE.training, compile=True)),
            r"leave out training\.compile",
        ),
        (
            replace(DENSE, encoder=EncoderConfig(name="resnet18", stem="imagenet")),
            r"has a single one for views of 16 pixels",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(config: RunConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_with_keys(config)


def test_the_recipe_is_moco_v2_with_places() -> None:
    config, moco = recipe_config("densecl", "paper"), recipe_config("moco_v2", "paper")
    assert config.method.dense == DenseConfig(weight=0.5, warmup_steps=1000, cells=7)
    plain = replace(config.method, kind="contrastive", dense=moco.method.dense)
    assert replace(config, recipe="moco_v2", method=plain) == moco
