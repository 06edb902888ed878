"""Whole methods against plain PyTorch loops that share no code with them, in float64."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracles
from diptych.config.method import (
    BankConfig,
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import OptimizerConfig, RunConfig
from diptych.errors import ConfigError
from diptych.methods import contrastive
from diptych.methods.contrastive import Contrastive, build_contrastive, shuffled_order
from diptych.methods.dictionaries import ImageBank, InBatch, KeyQueue
from diptych.methods.losses import LOSSES
from diptych.methods.method import StepOutput
from diptych.methods.objective import Loss, contrast
from diptych.optimization.optimizers import build_optimizer, encoder_momentum
from diptych.training.step import train_step
from diptych.views.batches import Batch

RATE, MOMENTUM, DECAY, KEEP, TEMPERATURE, QUEUE = 0.05, 0.9, 0.01, 0.8, 0.2, 10

SIMCLR = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1, 1)),
    head=HeadConfig(hidden_features=8, output_features=6, batch_norm=True),
    method=MethodConfig(loss=LossConfig(temperature=TEMPERATURE)),
    optimizer=OptimizerConfig(momentum=MOMENTUM, weight_decay=DECAY),
)
MOCO = replace(
    SIMCLR,
    method=MethodConfig(
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=QUEUE)),
        key_encoder=KeyEncoderConfig("momentum", KEEP),
        loss=LossConfig(temperature=TEMPERATURE),
    ),
)
MOCO_V3 = replace(
    SIMCLR,
    head=replace(SIMCLR.head, output_norm=True, predictor_layers=2),
    method=MethodConfig(
        symmetric=True,
        dictionary=DictionaryConfig("batch", batch=InBatchConfig(both_views=False)),
        key_encoder=KeyEncoderConfig("momentum", KEEP, "cosine"),
        loss=LossConfig(temperature=TEMPERATURE, weight=4 * TEMPERATURE),
    ),
)
END_TO_END = replace(
    SIMCLR,
    norm=NormConfig("shuffle", images_per_group=2),
    method=MethodConfig(
        dictionary=DictionaryConfig("batch", batch=InBatchConfig(both_views=False)),
        loss=LossConfig(temperature=TEMPERATURE),
    ),
)
BANK = replace(
    SIMCLR,
    head=HeadConfig(layers=1, output_features=6),
    method=MethodConfig(
        dictionary=DictionaryConfig("bank", bank=BankConfig(negatives=5, momentum=0.6)),
        loss=LossConfig(temperature=TEMPERATURE),
    ),
)
METHODS = {
    "simclr": SIMCLR,
    "moco": MOCO,
    "moco_v3": MOCO_V3,
    "end_to_end": END_TO_END,
    "bank": BANK,
}
IMAGES = 12
STEPS = 9


def views(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    first, second = torch.randn(2, 4, 3, 16, 16, generator=generator, dtype=torch.float64)
    return first, second


def batch(step: int) -> Batch:
    """Four of twelve images, each once in three steps."""
    first = 4 * step % IMAGES
    return Batch(views(step), torch.arange(first, first + 4), step)


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(dim=1, keepdim=True).sqrt()


def sgd(network: nn.Module, velocities: dict[str, Tensor]) -> None:
    """SGD with momentum, written out; decay on weights with more than one axis only."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            assert weight.grad is not None
            change = weight.grad + (DECAY * weight if weight.ndim > 1 else 0)
            velocities[name] = MOMENTUM * velocities.get(name, 0) + change
            weight.sub_(RATE * velocities[name])
            weight.grad = None


def train(config: RunConfig, steps: int) -> tuple[list[float], Contrastive]:
    method = build_contrastive(config, image_count=IMAGES).double().train()
    optimizer = build_optimizer(config.optimizer, method)
    losses = []
    for step in range(steps):
        momentum = encoder_momentum(config.method.key_encoder, step=step, total_steps=steps)
        output = train_step(
            method, optimizer, batch(step), rate=RATE, momentum=momentum, config=config
        )
        losses.append(float(output.loss))
    return losses, method


def assert_equal_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, mine), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10, msg=name)


def plain_start(config: RunConfig) -> tuple[nn.Module, nn.Module | None]:
    """The same initial weights as the method: the network, and the predictor if there is one."""
    method = build_contrastive(config, image_count=IMAGES).double().train()
    return copy.deepcopy(method.network), copy.deepcopy(method.predictor)


def test_simclr_equals_the_plain_loop() -> None:
    network = copy.deepcopy(build_contrastive(SIMCLR).network).double().train()
    velocities: dict[str, Tensor] = {}
    expected = []
    for step in range(6):
        both = unit(network(torch.cat(views(step))))
        half = len(both) // 2
        arrays = both.detach().numpy()
        expected.append(oracles.nt_xent(arrays[:half], arrays[half:], TEMPERATURE))
        similarity = both @ both.T / TEMPERATURE
        similarity = similarity - 1e9 * torch.eye(2 * half, dtype=torch.float64)
        partner = torch.cat([torch.arange(half) + half, torch.arange(half)])
        nn.functional.cross_entropy(similarity, partner).backward()  # type: ignore[no-untyped-call]
        sgd(network, velocities)
    losses, method = train(SIMCLR, 6)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for ours, theirs in zip(method.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_moco_equals_the_plain_loop() -> None:
    network = copy.deepcopy(build_contrastive(MOCO).network).double().train()
    slow = copy.deepcopy(network)
    velocities: dict[str, Tensor] = {}
    keys: list[Tensor] = []
    expected = []
    for step in range(8):  # 4 keys a step wrap around a queue of 10
        first, second = views(step)
        queries = unit(network(first))
        with torch.no_grad():
            own = unit(slow(second))
        others = torch.stack(keys) if keys else torch.zeros(0, 6, dtype=torch.float64)
        expected.append(
            oracles.info_nce(queries.detach().numpy(), own.numpy(), others.numpy(), TEMPERATURE)
        )
        logits = torch.cat([(queries * own).sum(1, keepdim=True), queries @ others.T], dim=1)
        target = torch.zeros(4, dtype=torch.long)
        nn.functional.cross_entropy(logits / TEMPERATURE, target).backward()  # type: ignore[no-untyped-call]
        sgd(network, velocities)
        with torch.no_grad():
            for kept, moved in zip(slow.parameters(), network.parameters(), strict=True):
                kept.copy_(KEEP * kept + (1 - KEEP) * moved)
        keys = [*keys, *own][-QUEUE:]
    losses, method = train(MOCO, 8)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-12)
    assert method.momentum_encoder is not None
    for ours, theirs in zip(method.momentum_encoder.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    for mine, other in zip(method.momentum_encoder.network.buffers(), slow.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_moco_v3_equals_the_plain_loop() -> None:
    network, predictor = plain_start(MOCO_V3)
    assert predictor is not None
    slow = copy.deepcopy(network)
    whole = nn.ModuleDict({"network": network, "predictor": predictor})
    velocities: dict[str, Tensor] = {}
    expected = []
    for step in range(STEPS):
        first, second = views(step)
        queries = unit(predictor(network(torch.cat([first, second]))))
        with torch.no_grad():
            keys = unit(slow(torch.cat([second, first])))
        sides = list(zip(queries.split(4), keys.split(4), strict=True))  # type: ignore[no-untyped-call]
        total, values = torch.zeros((), dtype=torch.float64), []
        for one, other in sides:
            total = total + nn.functional.cross_entropy(
                one @ other.T / TEMPERATURE, torch.arange(4)
            )
            own = np.arange(4)
            values += [
                oracles.info_nce(
                    one[[i]].detach().numpy(),
                    other[[i]].numpy(),
                    other.numpy()[own != i],
                    TEMPERATURE,
                )
                for i in range(4)
            ]
        expected.append(float(np.mean(values)))
        (2 * TEMPERATURE * total).backward()  # type: ignore[no-untyped-call]
        sgd(whole, velocities)
        keep = 1 - (1 - KEEP) * (np.cos(np.pi * step / STEPS) + 1) / 2
        with torch.no_grad():
            for kept, moved in zip(slow.parameters(), network.parameters(), strict=True):
                kept.copy_(keep * kept + (1 - keep) * moved)
    losses, method = train(MOCO_V3, STEPS)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    assert_equal_weights(method.network, network)
    assert method.predictor is not None
    assert_equal_weights(method.predictor, predictor)
    assert method.momentum_encoder is not None
    assert_equal_weights(method.momentum_encoder.network, slow)


def in_groups(network: nn.Module, images: Tensor) -> Tensor:
    """Encodes two images at a time with torch's own batch norm; statistics are not compared."""
    return torch.cat([network(pair) for pair in images.split(2)])  # type: ignore[no-untyped-call]


def test_end_to_end_with_shuffled_groups_equals_the_plain_loop() -> None:
    network, _ = plain_start(replace(END_TO_END, norm=NormConfig("batch")))
    velocities: dict[str, Tensor] = {}
    expected = []
    for step in range(STEPS):
        first, second = views(step)
        order = shuffled_order(END_TO_END.seed, step, 4)
        moved = unit(in_groups(network, torch.stack([second[i] for i in order])))
        keys = torch.zeros_like(moved)
        for place, image in enumerate(order):
            keys = keys.index_put((image,), moved[place])
        queries = unit(in_groups(network, first))
        loss = nn.functional.cross_entropy(queries @ keys.T / TEMPERATURE, torch.arange(4))
        expected.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        sgd(network, velocities)
    losses, method = train(END_TO_END, STEPS)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for ours, theirs in zip(method.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_memory_bank_equals_the_plain_loop() -> None:
    network, _ = plain_start(BANK)
    velocities: dict[str, Tensor] = {}
    kept: dict[int, Tensor] = {}
    draws = build_contrastive(BANK, image_count=IMAGES).dictionary
    assert isinstance(draws, ImageBank)
    expected = []
    for step in range(STEPS):
        now = batch(step)
        images = now.indices.tolist()
        queries = unit(network(now.views[0]))
        drawn = draws.draw(step).tolist()
        losses = []
        for row, image in enumerate(images):
            # Without a key there is nothing to find: a constant, a positive of zeros.
            own, query = kept.get(image), queries[row]
            if own is None:
                own, query = torch.zeros(6, dtype=torch.float64), query.detach() + 0.0 * query
            others = [kept[i] for i in drawn if i != image]
            others = others[:5]
            negatives = torch.stack(others) if others else torch.zeros(0, 6, dtype=torch.float64)
            scores = torch.cat([own[None], negatives]) @ query / TEMPERATURE
            losses.append(torch.logsumexp(scores, 0) - scores[0])
        loss = torch.stack(losses).mean()
        expected.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        sgd(network, velocities)
        for row, image in enumerate(images):
            vector = queries[row].detach()
            if image in kept:
                vector = 0.6 * kept[image] + 0.4 * vector
            kept[image] = vector / vector.norm()
        draws.update(queries.detach().float(), now.indices)  # only for who has a key
    losses_found, method = train(BANK, STEPS)
    np.testing.assert_allclose(losses_found, expected, rtol=1e-9, atol=1e-12)
    assert isinstance(method.dictionary, ImageBank)
    for image, vector in kept.items():
        torch.testing.assert_close(method.dictionary.keys[image], vector, rtol=1e-8, atol=1e-10)


def test_a_momentum_encoder_that_keeps_nothing_is_a_copy_of_each_step() -> None:
    config = replace(
        MOCO, method=replace(MOCO.method, key_encoder=KeyEncoderConfig("momentum", 0.0))
    )
    _, method = train(config, 3)
    assert method.momentum_encoder is not None
    for copied, original in zip(
        method.momentum_encoder.parameters(), method.network.parameters(), strict=True
    ):
        assert torch.equal(copied, original)


def test_a_cosine_momentum_ends_near_one() -> None:
    config = KeyEncoderConfig("momentum", 0.99, "cosine")
    assert encoder_momentum(config, step=0, total_steps=100) == pytest.approx(0.99)
    assert encoder_momentum(config, step=50, total_steps=100) == pytest.approx(0.995)
    assert encoder_momentum(config, step=100, total_steps=100) == pytest.approx(1.0)


def test_the_momentum_encoder_begins_as_the_network_head_included() -> None:
    method = build_contrastive(MOCO)
    assert method.momentum_encoder is not None
    copies, originals = method.momentum_encoder.parameters(), method.network.parameters()
    for copied, original in zip(copies, originals, strict=True):
        assert torch.equal(copied, original)
        assert not copied.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_a_call_moves_no_weight_and_no_dictionary(name: str) -> None:
    _, method = train(METHODS[name], 3)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(batch(3))
    for name, value in method.state_dict().items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(before[name], value), name


def test_moco_sends_no_gradient_to_the_keys() -> None:
    method = build_contrastive(MOCO).double().train()
    method(batch(0)).loss.backward()
    assert method.momentum_encoder is not None
    assert all(p.grad is None for p in method.momentum_encoder.parameters())


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = build_contrastive(SIMCLR).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    other = build_contrastive(SIMCLR).state_dict()
    different = build_contrastive(replace(SIMCLR, seed=1)).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(
        one["network.encoder.conv1.weight"], different["network.encoder.conv1.weight"]
    )


def test_any_module_can_be_the_encoder() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    queue = KeyQueue(8, dim=5)
    method = Contrastive(Mean(), nn.Linear(3, 5), queue, MOCO.method).double()
    first, second = method(batch(0)), method(batch(1))
    assert first.metrics["candidates"] == second.metrics["candidates"] == 1
    method.after_step(first)
    assert method(batch(1)).metrics["candidates"] == 5


def test_more_views_are_each_others_keys() -> None:
    config = replace(SIMCLR, method=replace(SIMCLR.method, views=3))
    method = build_contrastive(config).double().train()
    images = torch.randn(3, 4, 3, 16, 16, dtype=torch.float64)
    found = method(Batch(tuple(images), torch.arange(4), 0))
    vectors = unit(method.network(images.flatten(0, 1))).detach().numpy()
    expected = oracles.supervised_contrastive(vectors, [0, 1, 2, 3] * 3, TEMPERATURE)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-9)
    assert found.metrics["candidates"] == 11


def test_small_views_are_keys_too_where_all_views_are() -> None:
    method = build_contrastive(replace(SIMCLR, norm=NormConfig("layer"))).double().train()
    images = torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)
    small = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = method(Batch((*images, small), torch.arange(4), 0))
    encoded = [unit(method.network(view)) for view in (*images, small)]
    vectors = torch.cat(encoded).detach().numpy()
    expected = oracles.supervised_contrastive(vectors, [0, 1, 2, 3] * 3, TEMPERATURE)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-9)
    assert found.metrics["candidates"] == 11


@pytest.mark.parametrize("name", ["moco", "moco_v3", "end_to_end"])
def test_small_views_are_compared_with_the_keys_of_the_full_sized_ones(name: str) -> None:
    """Each small view is one more query; keys come of views of full size only."""
    given = METHODS[name]
    config = replace(given, norm=NormConfig("layer"), head=replace(given.head, output_norm=False))
    method = build_contrastive(config, image_count=IMAGES).double().train()
    method.after_step(method(batch(0)))
    small = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    now = batch(1)
    output = method(replace(now, views=(*now.views, *small)))

    def keys_of(view: Tensor) -> Tensor:
        network = method.network if method.momentum_encoder is None else method.momentum_encoder
        return unit(network(view)).detach()

    first, second = now.views
    pairs = [(first, second)]
    if config.method.symmetric:
        pairs.append((second, first))
    pairs += [(view, pairs[n % len(pairs)][1]) for n, view in enumerate(small, start=len(pairs))]
    losses = []
    for query_view, key_view in pairs:
        vectors = method.network(query_view)
        if method.predictor is not None:
            vectors = method.predictor(vectors)
        queries, keys = unit(vectors).detach(), keys_of(key_view)
        for row in range(4):
            others = (
                method.dictionary.negatives
                if isinstance(method.dictionary, KeyQueue)
                else keys[[k for k in range(4) if k != row]]
            )
            losses.append(
                oracles.info_nce(
                    queries[row : row + 1].numpy(),
                    keys[row : row + 1].numpy(),
                    others.numpy(),
                    TEMPERATURE,
                )
            )
    assert float(output.loss.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    if config.method.dictionary.kind == "queue":
        assert output.keys is not None
        assert len(output.keys) == 4 * (2 if config.method.symmetric else 1)


def test_a_bank_keeps_the_full_sized_view_only() -> None:
    method = build_contrastive(replace(BANK, norm=NormConfig("layer")), image_count=IMAGES).double()
    now = batch(1)
    small = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64)
    with_small = method(replace(now, views=(*now.views, *small)))
    without = method(now).keys
    assert without is not None
    torch.testing.assert_close(with_small.keys, without)


def test_the_supervised_loss_takes_the_labels() -> None:
    loss = LossConfig("supervised", temperature=TEMPERATURE)
    config = replace(SIMCLR, method=replace(SIMCLR.method, loss=loss))
    method = build_contrastive(config).double().train()
    labels = torch.tensor([1, 0, 1, 1])
    found = method(replace(batch(0), labels=labels))
    vectors = unit(method.network(torch.cat(views(0)))).detach().numpy()
    expected = oracles.supervised_contrastive(vectors, labels.tolist() * 2, TEMPERATURE)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-9)


def test_equal_vectors_have_the_loss_of_chance() -> None:
    same = unit(torch.ones(8, 3, dtype=torch.float64))
    comparison = InBatch().compare(same, same, batch(0))
    apart = comparison._replace(
        queries=torch.eye(8).double(), positives=torch.eye(8).double()[[7, *range(7)]]
    )
    for kind, mined in (
        ("info_nce", False),
        ("decoupled", False),
        ("triplet", False),
        ("triplet", True),
    ):
        loss = LossConfig(kind, temperature=0.5, semi_hard=mined)
        found = contrast(comparison, LOSSES[kind], loss, temperature=0.5)
        chance = float(found.metrics["chance_loss"])
        assert float(found.loss) == pytest.approx(chance), (kind, mined)
    for mined in (False, True):  # whose chance level is that of scores of zero
        loss = LossConfig("nt_logistic", temperature=0.5, semi_hard=mined)
        alike = apart._replace(negatives=torch.zeros(8, 8).double(), in_batch=False)
        found = contrast(alike, LOSSES["nt_logistic"], loss, temperature=0.5)
        assert float(found.loss) == pytest.approx(float(found.metrics["chance_loss"])), mined


def test_a_new_metric_is_the_mean_over_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0, 4.0])

    def with_one_more(*given: Any, **named: Any) -> StepOutput:
        output = contrast(*given, **named)
        metrics = {**output.metrics, "largest_logit": torch.tensor(next(values))}
        return replace(output, metrics=metrics)

    monkeypatch.setattr(contrastive, "contrast", with_one_more)
    output = build_contrastive(MOCO_V3).double().train()(batch(0))
    assert output.metrics["largest_logit"] == 2.5


def test_a_loss_of_ones_own_trains() -> None:
    seen = []

    def hinge(positive: Tensor, negatives: Tensor, settings: LossConfig) -> Tensor:
        seen.append(negatives.shape)
        return torch.relu(0.3 + negatives.amax(dim=1) - positive).mean()

    own = Loss(hinge, at_chance=lambda candidates, _: 0.3, needs_all_logits=True)
    output = build_contrastive(SIMCLR, loss=own).double().train()(batch(0))
    assert seen == [(8, 8)]
    assert output.metrics["chance_loss"] == pytest.approx(0.3)
    assert output.metrics["candidates"] == 7
    with pytest.raises(ConfigError, match="more than two views"):
        build_contrastive(replace(SIMCLR, method=replace(SIMCLR.method, views=3)), loss=own)


def test_an_unknown_loss_is_refused_with_the_names() -> None:
    config = replace(SIMCLR, method=replace(SIMCLR.method, loss=LossConfig("tripet")))
    with pytest.raises(ConfigError, match=r"one of info_nce, .*triplet.*; got 'tripet'"):
        build_contrastive(config)


def test_an_encoder_of_ones_own_is_built_around() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = build_contrastive(MOCO, encoder=encoder).double().train()
    assert method.encoder is encoder
    assert method(batch(0)).loss.isfinite()


@pytest.mark.parametrize("kind", ["info_nce", "decoupled", "nt_logistic", "triplet"])
@pytest.mark.parametrize("name", METHODS)
def test_every_loss_goes_with_every_dictionary(name: str, kind: str) -> None:
    config = METHODS[name]
    mined = kind in ("nt_logistic", "triplet")
    loss = replace(config.method.loss, kind=kind, semi_hard=mined)
    losses, _ = train(replace(config, method=replace(config.method, loss=loss)), 5)
    assert np.isfinite(losses).all()
    assert len(set(losses)) > 1


def test_a_learned_temperature_moves_and_is_saved() -> None:
    loss = LossConfig(temperature=0.5, learn_temperature=True)
    _, method = train(replace(SIMCLR, method=replace(SIMCLR.method, loss=loss)), 4)
    learned = method.state_metrics()["temperature"]
    assert learned != pytest.approx(0.5, abs=1e-6)
    assert "log_temperature" in method.state_dict()
    assert method.log_temperature is not None
    with torch.no_grad():
        method.log_temperature.fill_(-100.0)
    method.update_momentum(0.9)
    assert method.state_metrics()["temperature"] == pytest.approx(0.01)
    method(batch(9)).loss.backward()  # from there it can come back
    assert method.log_temperature.grad is not None
    assert float(method.log_temperature.grad) != 0.0


def test_dot_products_see_lengths() -> None:
    loss = LossConfig(similarity="dot", temperature=1.0)
    config = replace(SIMCLR, method=replace(SIMCLR.method, loss=loss))
    method = build_contrastive(config).double().train()
    found = method(batch(0))
    vectors = method.network(torch.cat(views(0))).detach().numpy()
    assert float(found.loss.detach()) == pytest.approx(
        oracles.nt_xent(vectors[:4], vectors[4:], 1.0), rel=1e-9
    )


def test_the_dictionary_is_that_of_the_config() -> None:
    kinds = {name: type(build_contrastive(METHODS[name]).dictionary) for name in METHODS}
    assert kinds == {
        "simclr": InBatch,
        "moco": KeyQueue,
        "moco_v3": InBatch,
        "end_to_end": InBatch,
        "bank": ImageBank,
    }
