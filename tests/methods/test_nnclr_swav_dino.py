"""What outlives a batch in NNCLR, SwAV and DINO, what follows from the step, and collapse."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diptych.config.method import (
    DINOConfig,
    KeyEncoderConfig,
    MethodConfig,
    NNCLRConfig,
    SwAVConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.diagnostics.symptoms import find_symptoms
from diptych.errors import ConfigError
from diptych.evaluation.protocols import evaluate
from diptych.logging.metrics import read_metrics
from diptych.methods.build import METHODS
from diptych.methods.method import StepOutput
from diptych.methods.siamese.base import Siamese
from diptych.methods.siamese.dino import DINO
from diptych.methods.siamese.nnclr import NNCLR
from diptych.methods.siamese.swav import SwAV
from diptych.optimization.optimizers import build_optimizer
from diptych.pretraining import pretrain
from diptych.training.step import train_step
from diptych.views.batches import Batch

BATCH: Final = 6
BASE: Final = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1,)),
    norm=NormConfig("layer"),
    head=HeadConfig(hidden_features=8, output_features=6),
    training=TrainingConfig(batch_size=BATCH),
)
MOMENTUM: Final = KeyEncoderConfig("momentum", momentum=0.9)


def nnclr() -> NNCLR:
    method = MethodConfig("nnclr", nnclr=NNCLRConfig(queue_size=20, temperature=0.2))
    head = replace(BASE.head, predictor_layers=2)
    found = built(replace(BASE, method=method, head=head))
    assert isinstance(found, NNCLR)
    return found


def swav(**settings: Any) -> SwAV:
    config = SwAVConfig(prototypes=5, **settings)
    found = built(replace(BASE, method=MethodConfig("swav", swav=config)))
    assert isinstance(found, SwAV)
    return found


def dino(**settings: Any) -> DINO:
    config = DINOConfig(prototypes=5, **settings)
    found = built(replace(BASE, method=MethodConfig("dino", key_encoder=MOMENTUM, dino=config)))
    assert isinstance(found, DINO)
    return found


def built(config: RunConfig) -> Siamese:
    method = METHODS[config.method_name].build(config, None, None)
    assert isinstance(method, Siamese)
    return method.double().train()


def batch_of(step: int, *, small: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2 + small, BATCH, 3, 12, 12, generator=generator, dtype=torch.float64)
    return Batch((*images[:2], *images[2:, ..., :9, :9]), torch.arange(BATCH), step)


class Training:
    """Steps of a method with three steps in an epoch."""

    def __init__(self, method: Siamese) -> None:
        self.method = method
        self.optimizer = build_optimizer(BASE.optimizer, method)
        self.step = 0

    def take(self, batch: Batch | None = None) -> StepOutput:
        self.method.begin_step(self.step, steps_per_epoch=3, total_steps=40)
        given = batch_of(self.step) if batch is None else batch
        output = train_step(self.method, self.optimizer, given, rate=0.1, momentum=0.9, config=BASE)
        self.step += 1
        return output


def unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=-1)


def each(network: Callable[[Tensor], Tensor], views: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [network(view) for view in views]


def loop_loss(targets: list[Tensor], logits: list[Tensor]) -> float:
    """Mean over pairs of different views, written out."""
    found = [
        float(functional.cross_entropy(logits[v], targets[t]))
        for t in range(len(targets))
        for v in range(len(logits))
        if v != t
    ]
    return float(np.mean(found))


def test_swav_equals_the_plain_loop() -> None:
    """Also the queue, from its epoch on: the last 20 projections of the same view."""
    training = Training(swav(queue_size=20, queue_from_epoch=1.0, frozen_prototype_epochs=0.0))
    method = training.method
    assert isinstance(method, SwAV)
    stored: list[list[Tensor]] = [[], []]
    for step in range(7):
        views = batch_of(step).views
        prototypes = method.prototypes.weight.detach().clone()
        projections = [unit(one) for one in each(copy.deepcopy(method.network), views)]
        targets = []
        for view in range(2):
            rows = [*projections[view], *(stored[view][-20:] if step >= 3 else [])]
            shares = (torch.stack(rows) @ prototypes.T / 0.05).exp()
            for _ in range(3):
                shares = shares / shares.sum(dim=0)
                shares = shares / shares.sum(dim=1, keepdim=True)
            targets.append(shares[:BATCH])
            stored[view] += list(projections[view])
        logits = [one @ prototypes.T / 0.1 for one in projections]
        assert float(training.take().loss) == pytest.approx(loop_loss(targets, logits), rel=1e-9)
        lengths = method.prototypes.weight.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_dino_equals_the_plain_loop() -> None:
    """Teacher, its last layer, its temperature and the centre, over some steps."""
    settings = {"warmup_temperature": 0.04, "teacher_temperature": 0.08, "warmup_epochs": 2.0}
    training = Training(dino(center_momentum=0.8, frozen_prototype_epochs=0.0, **settings))
    method = training.method
    assert isinstance(method, DINO)
    teacher, last = copy.deepcopy(method.network), method.prototypes.weight.detach().clone()
    center = torch.zeros(5, dtype=torch.float64)
    for step in range(8):
        views = batch_of(step).views
        temperature = 0.04 + 0.04 * min(step, 6) / 6
        taught = [unit(one) @ unit(last).T for one in each(teacher, views[:2])]
        targets = [((one - center) / temperature).softmax(dim=1) for one in taught]
        prototypes = unit(method.prototypes.weight.detach())
        student = each(copy.deepcopy(method.network), views)
        logits = [unit(one) @ prototypes.T / 0.1 for one in student]
        assert float(training.take().loss) == pytest.approx(loop_loss(targets, logits), rel=1e-9)
        assert method.state_metrics() == {"teacher_temperature": pytest.approx(temperature)}
        center = 0.8 * center + 0.2 * torch.cat(taught).mean(dim=0)
        torch.testing.assert_close(method.center, center)
        with torch.no_grad():
            last = 0.9 * last + 0.1 * method.prototypes.weight
            for slow, one in zip(teacher.parameters(), method.network.parameters(), strict=True):
                slow.copy_(0.9 * slow + 0.1 * one)


def test_nnclr_equals_the_plain_loop() -> None:
    """Positives are the nearest of the last 20 projections of first views."""
    training = Training(nnclr())
    method = training.method
    assert isinstance(method, NNCLR)
    stored: list[Tensor] = []
    for step in range(6):
        views = batch_of(step, small=0).views
        network, predictor = copy.deepcopy(method.network), copy.deepcopy(method.predictor)
        assert predictor is not None
        projections = each(network, views)
        predictions = [unit(one) for one in each(predictor, tuple(projections))]
        found = []
        for one, other in ((0, 1), (1, 0)):
            queries = list(unit(projections[one]))
            if stored:
                kept = torch.stack(stored[-20:])
                queries = [kept[(kept @ one_query).argmax()] for one_query in queries]
            scores = torch.stack(queries) @ predictions[other].T / 0.2
            found.append(float(functional.cross_entropy(scores, torch.arange(BATCH))))
        output = training.take(batch_of(step, small=0))
        assert float(output.loss) == pytest.approx(np.mean(found), rel=1e-9)
        stored += list(unit(projections[0]))


@pytest.mark.parametrize("make", [swav, dino])
def test_prototypes_do_not_learn_in_the_first_epoch(make: Callable[..., SwAV | DINO]) -> None:
    training = Training(make(frozen_prototype_epochs=1.0))
    method = training.method
    assert isinstance(method, SwAV | DINO)
    start = method.prototypes.weight.detach().clone()
    others = [one.detach().clone() for one in method.network.parameters()]
    for _ in range(3):
        training.take()
    assert torch.equal(method.prototypes.weight, start)
    assert not all(map(torch.equal, method.network.parameters(), others))
    training.take()
    assert not torch.equal(method.prototypes.weight, start)


def test_prototypes_learn_in_half_of_a_short_run_at_least() -> None:
    method = swav(frozen_prototype_epochs=1.0)
    frozen = []
    for step in range(4):
        method.begin_step(step, steps_per_epoch=100, total_steps=4)
        frozen.append(method.frozen_prototypes)
    assert frozen == [True, True, False, False]


def test_the_teacher_sees_views_of_full_size_only() -> None:
    centers = []
    for scale in (1.0, 5.0):
        training = Training(dino())
        batch = batch_of(0)
        training.take(replace(batch, views=(*batch.views[:2], scale * batch.views[2])))
        assert isinstance(training.method, DINO)
        centers.append(training.method.center)
    assert torch.equal(*centers)


def test_without_centring_there_is_no_center() -> None:
    training = Training(dino(centering=False))
    training.take()
    assert isinstance(training.method, DINO)
    assert not training.method.center.any()


def test_a_queue_is_enqueued_before_it_is_used() -> None:
    training = Training(swav(queue_size=20, queue_from_epoch=2.0))
    for _ in range(3):
        training.take()
    assert isinstance(training.method, SwAV)
    assert not training.method.uses_queues
    assert [queue.filled for queue in training.method.queues] == [18, 18]


Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
SMALL: Final[dict[str, Any]] = {
    "scale": "tiny",
    "encoder.width": 8,
    "encoder.stage_blocks": (1, 1),
    "head.hidden_features": 32,
    "head.output_features": 16,
    "views.side_pixels": 16,
    "training.batch_size": 32,
    "training.threads": 1,
    "probe.images": 32,
    "probe.log_every_steps": 1,
}


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(96)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


def last_line(images: Path, out: Path, **settings: Any) -> dict[str, Any]:
    run = pretrain(images, out=out, quiet=True, **{**SMALL, **settings})
    return read_metrics(run / "metrics.jsonl")[-1]


@pytest.mark.parametrize(
    ("smaller", "words"),
    [
        ({"views.small_views": 2, "views.small_side_pixels": 16}, "small_views = 0"),
        ({"views.small_views": 0, "views.early_side": 0.5}, "early_side = 1"),
    ],
)
def test_a_network_that_takes_one_size_only_has_no_smaller_views(
    images: Path, tmp_path: Path, smaller: dict[str, Any], words: str
) -> None:
    settings = {"encoder.name": "vit_b_16", "views.side_pixels": 32, **smaller}
    with pytest.raises(ConfigError, match=rf"views of 16 pixels .*{words}"):
        last_line(
            images,
            tmp_path / "run",
            recipe="dino",
            epochs=1,
            **{**settings, "encoder.stem": "imagenet"},
            **{"encoder.width": 32, "encoder.stage_blocks": (1, 1, 1)},
        )


PLAIN: Final[dict[str, Any]] = {
    "optimizer.kind": "sgd",
    "optimizer.learning_rate": 0.24,
    "optimizer.scaling": "linear",
    "optimizer.weight_decay": 1e-4,
    "head.batch_norm": False,
}
BROKEN: Final[dict[str, dict[str, Any]]] = {
    "dino": {"method.dino.centering": False},
    "swav": {"method.swav.sinkhorn_iterations": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", BROKEN)
def test_collapse_is_seen_and_only_where_it_is(recipe: str, images: Path, tmp_path: Path) -> None:
    """Without centring, or without Sinkhorn, all images come to name the same prototype."""
    alarms = []
    for name, settings in (("whole", {}), ("broken", BROKEN[recipe])):
        usual = {**PLAIN, f"method.{recipe}.prototypes": 32 if recipe == "dino" else 16}
        run = pretrain(
            images,
            out=tmp_path / name,
            quiet=True,
            recipe=recipe,
            epochs=20,
            **{**SMALL, "probe.health_every_epochs": 20, **usual, **settings},
        )
        lines = read_metrics(run / "metrics.jsonl")
        seen = [find_symptoms(lines[: end + 1], dictionary_size=None) for end in range(len(lines))]
        alarms.append(["prototypes_collapsed" in [one.name for one in step] for step in seen])
        chance = lines[-1]["chance_prototype_agreement"]
        assert (chance > 0.5) == (name == "broken")
    assert not alarms[0][-1]
    assert alarms[1][-1]
    assert any(alarms[1][: len(alarms[1]) // 2])


@pytest.mark.slow
def test_dino_trains_a_vision_transformer_with_small_views(images: Path, tmp_path: Path) -> None:
    """Weights are decayed more and more, and the encoder is loaded again."""
    settings = {"encoder.name": "timm:vit_tiny_patch16_224", "encoder.stem": "imagenet"}
    small = {"views.side_pixels": 64, "views.small_views": 2, "views.small_side_pixels": 32}
    usual = {name: one for name, one in SMALL.items() if not name.startswith("encoder.")}
    run = pretrain(
        images,
        out=tmp_path / "vit",
        quiet=True,
        recipe="dino",
        epochs=2,
        **{**usual, **settings, **small, "method.dino.prototypes": 16},
    )
    lines = read_metrics(run / "metrics.jsonl")
    assert len(lines) == 6
    assert len({line["loss"] for line in lines}) == 6
    assert evaluate(run, threads=1)["knn"]["trained"] > 0.3
