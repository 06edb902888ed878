"""Methods without negatives: whole equals chunks and processes, positives, ablations, refusals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from diptych.config.consistency import require_consistent
from diptych.config.method import (
    WITH_PREDICTOR,
    AnchorConfig,
    BarlowTwinsConfig,
    DictionaryConfig,
    DINOConfig,
    KeyEncoderConfig,
    LeJEPAConfig,
    LossConfig,
    MethodConfig,
    NNCLRConfig,
    SimSiamConfig,
    SwAVConfig,
    VICRegConfig,
)
from diptych.config.model import EncoderConfig, GroupNormConfig, HeadConfig, NormConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.errors import ConfigError
from diptych.methods.build import METHODS
from diptych.methods.siamese.base import Siamese, other_views, retrieval, view_pairs
from diptych.optimization.optimizers import build_optimizer
from diptych.runtime.distributed import own_slice
from diptych.training.step import train_step
from diptych.views.batches import Batch
from processes import Results, run_processes

BATCH: Final = 12
STEPS: Final = 4
BASE: Final = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1,)),
    norm=NormConfig("group", group=GroupNormConfig(channel_groups=2)),
    head=HeadConfig(hidden_features=8, output_features=6, batch_norm=True),
    training=TrainingConfig(batch_size=BATCH),
)
PREDICTS: Final = replace(BASE.head, predictor_layers=2, predictor_hidden_features=4)
METHOD: Final = {
    "byol": MethodConfig("byol", key_encoder=KeyEncoderConfig("momentum", momentum=0.9)),
    "simsiam": MethodConfig("simsiam"),
    "barlow_twins": MethodConfig("barlow_twins", barlow_twins=BarlowTwinsConfig(0.1)),
    "vicreg": MethodConfig("vicreg"),
    "lejepa": MethodConfig("lejepa", lejepa=LeJEPAConfig(0.3, directions=9)),
    "nnclr": MethodConfig("nnclr", nnclr=NNCLRConfig(queue_size=20)),
    "swav": MethodConfig("swav", swav=SwAVConfig(prototypes=5, queue_size=20, queue_from_epoch=0)),
    "dino": MethodConfig(
        "dino",
        key_encoder=KeyEncoderConfig("momentum", momentum=0.9),
        dino=DINOConfig(prototypes=5),
    ),
}
CONFIGS: Final = {
    name: replace(BASE, method=method, head=PREDICTS if name in WITH_PREDICTOR else BASE.head)
    for name, method in METHOD.items()
}


def batch_of(step: int, *, small: int = 1, groups: bool = False) -> Batch:
    """This process's share of a batch of random images, the last views smaller."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2 + small, BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
    mine = own_slice(BATCH)
    shown = (*images[:2, mine], *images[2:, mine, ..., :9, :9])
    numbers = torch.arange(BATCH) // 2 if groups else None
    return Batch(
        shown, torch.arange(BATCH)[mine], step, groups=None if numbers is None else numbers[mine]
    )


def build(config: RunConfig, **own: Any) -> Siamese:
    method = METHODS[config.method_name].build(config, None, None, **own)
    assert isinstance(method, Siamese)
    return method.double().train()


def steps(config: RunConfig, *, groups: bool = False) -> tuple[list[float], Results]:
    """Losses of some steps, and all weights and statistics after them."""
    method = build(config)
    optimizer = build_optimizer(config.optimizer, method)
    losses = []
    for step in range(STEPS):
        batch = batch_of(step, groups=groups)
        output = train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=config)
        losses.append(float(output.loss))
    return losses, method.state_dict()


def assert_same(one: tuple[list[float], Results], other: tuple[list[float], Results]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-9)
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_equals_chunks(name: str) -> None:
    """With small views, and every weight and statistic after some steps."""
    config = CONFIGS[name]
    config = replace(config, norm=replace(config.norm, kind="layer"))
    chunked = replace(config, training=replace(config.training, chunk_size=4))
    assert_same(steps(config), steps(chunked))


def in_each(rank: int, count: int) -> Results:
    """Losses and weights of all methods in one process of several."""
    found = dict[str, Tensor]()
    for name, config in CONFIGS.items():
        sync = replace(config, norm=NormConfig("sync"))
        for groups in (False, True):
            losses, state = steps(sync, groups=groups)
            found[f"{name} {groups}"] = torch.tensor(losses, dtype=torch.float64)
            found |= {f"{name} {groups} {key}": value for key, value in state.items()}
    return found


@pytest.mark.slow
def test_whole_equals_processes() -> None:
    whole = in_each(0, 1)
    for found in run_processes(in_each, 2):
        assert found.keys() == whole.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_anchor_holds_the_features(name: str) -> None:
    config = CONFIGS[name]
    encoder = replace(config.encoder, weights="start.safetensors")
    method = replace(config.method, anchor=AnchorConfig(weight=0.5))
    anchored = replace(config, encoder=encoder, method=method)
    with_anchor = build(anchored, encoder=build(config).encoder)
    output = with_anchor(batch_of(0))
    assert output.penalty is not None
    # At the start only train and evaluation mode of norms tell the two apart, and here are none.
    assert float(output.metrics["anchor_distance"]) == pytest.approx(0.0, abs=1e-6)
    plain = build(config)(batch_of(0))
    torch.testing.assert_close(output.loss, plain.loss)


@pytest.mark.parametrize("name", CONFIGS)
def test_half_precision_gives_about_the_same_loss(name: str) -> None:
    config = CONFIGS[name]
    half = replace(config, training=replace(config.training, precision="bf16"))
    batch = batch_of(0)
    batch = replace(batch, views=tuple(view.float() for view in batch.views))
    full = build(config).float()(batch).loss
    found = build(half).float()(batch).loss
    assert found.dtype == torch.float32
    assert not torch.equal(found, full)
    torch.testing.assert_close(found, full, rtol=0.1, atol=0.05)


def test_targets_of_byol_are_the_momentum_encoders() -> None:
    method = build(CONFIGS["byol"])
    with torch.no_grad():
        method.network.get_submodule("head")[-1].weight.mul_(-1.0)  # type: ignore[index]
    encoded = method.encode(batch_of(0).views)
    assert len(encoded.predictions) == 3  # the small view too
    assert len(encoded.targets) == 2
    assert not encoded.targets.requires_grad
    assert not torch.allclose(encoded.targets, encoded.projections[:2])
    method.update_momentum(0.0)
    encoded = method.encode(batch_of(0).views)
    torch.testing.assert_close(encoded.targets, encoded.projections[:2].detach())


def test_without_stop_gradient_simsiam_learns_from_both_sides() -> None:
    config = CONFIGS["simsiam"]
    free = replace(config, method=replace(config.method, simsiam=SimSiamConfig(False)))
    one, other = build(config), build(free)
    gradients = []
    for method in (one, other):
        output = method(batch_of(0))
        output.loss.backward()
        gradients.append(method.network.get_submodule("head")[0].weight.grad)  # type: ignore[index]
    assert not torch.allclose(*gradients)


def test_pairs_of_views() -> None:
    assert list(other_views(2, 2)) == [(0, 1), (1, 0)]
    assert view_pairs(2, 2) == [(0, 1)]
    assert view_pairs(4, 2) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert len(list(other_views(4, 4))) == 12


def test_retrieval_finds_an_image_among_the_others(rng: Any) -> None:
    vectors = nn.functional.normalize(torch.tensor(rng.normal(size=(BATCH, 6))), dim=1)
    batch = batch_of(0)
    share, candidates = retrieval(vectors, vectors, batch)
    assert (float(share), candidates) == (1.0, BATCH)
    share, _ = retrieval(vectors, vectors.roll(1, dims=0), batch)
    assert float(share) == 0.0
    # Of its own group another image may be nearer.
    swapped = vectors.reshape(-1, 2, 6).flip(1).reshape(-1, 6)
    assert float(retrieval(vectors, swapped, batch)[0]) == 0.0
    _, candidates = retrieval(vectors, vectors, batch_of(0, groups=True))
    assert candidates == BATCH - 1
    one = torch.ones_like(vectors)
    assert float(retrieval(one, one, batch)[0]) == 0.0  # a tie finds nothing


REFUSED: Final[list[tuple[str, Callable[[RunConfig], RunConfig], str]]] = [
    (
        "vicreg",
        lambda c: replace(c, method=replace(c.method, dictionary=DictionaryConfig("queue"))),
        "method.dictionary",
    ),
    (
        "simsiam",
        lambda c: replace(c, method=replace(c.method, loss=LossConfig(temperature=0.5))),
        "method.loss",
    ),
    ("byol", lambda c: replace(c, method=replace(c.method, symmetric=True)), "method.symmetric"),
    (
        "byol",
        lambda c: replace(c, method=replace(c.method, key_encoder=KeyEncoderConfig())),
        "must be 'momentum'",
    ),
    (
        "lejepa",
        lambda c: replace(c, method=replace(c.method, key_encoder=KeyEncoderConfig("momentum"))),
        "must be 'shared'",
    ),
    ("barlow_twins", lambda c: replace(c, head=PREDICTS), "has no predictor"),
    ("vicreg", lambda c: replace(c, norm=NormConfig("shuffle")), "has no keys"),
]


@pytest.mark.parametrize(("name", "change", "words"), REFUSED)
def test_what_does_not_go_together_is_refused(
    name: str, change: Callable[[RunConfig], RunConfig], words: str
) -> None:
    require_consistent(CONFIGS[name])
    with pytest.raises(ConfigError, match=words):
        require_consistent(change(CONFIGS[name]))


def test_the_weight_of_the_loss_is_no_setting_of_negatives() -> None:
    config = CONFIGS["vicreg"]
    method = replace(config.method, loss=LossConfig(weight=3.0), vicreg=VICRegConfig(1.0, 0.0, 0.0))
    require_consistent(replace(config, method=method))
