"""Parts that are given in Python: what is refused, where, and with which sentence."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import diptych
from diptych.cli.main import main
from diptych.errors import ConfigError, RunFolderError

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
SMALL: dict[str, Any] = {
    "head.hidden_features": 8,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 8,
    "training.device": "cpu",
    "training.threads": 1,
    "probe.images": 16,
    "epochs": 1,
}
NAMED: dict[str, Any] = {"encoder.width": 4, "encoder.stage_blocks": (1,)}

GROUPED: dict[str, Any] = {"norm.kind": "split", "norm.images_per_group": 2}


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(24)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


def run(images: Path, name: str = "run", **given: Any) -> Path:
    settings = SMALL if "encoder" in given else SMALL | NAMED
    return diptych.pretrain(images, out=images.with_name(name), quiet=True, **settings | given)


def network(channels: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten()
    )


def mean(positive: Tensor, logsumexp: Tensor, settings: object) -> Tensor:
    return (logsumexp - positive).exp().log1p().mean()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(one) for one in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") <= 6  # a sentence or two, folded; no traceback
    return " ".join(said.split())


def test_a_run_of_own_parts_is_refused_where_they_are_not_at_hand(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run(images, encoder=network(), loss=mean, **GROUPED)
    plain = run(images, "plain")
    said = refused(capsys, "pretrain", images, "--resume", "--out", own)
    assert "encoder.name = 'own' and method.loss.kind = 'own': given in Python" in said
    assert "diptych.pretrain(..., encoder=ENCODER, loss=LOSS)" in said
    said = refused(capsys, "pretrain", "--begin-from", own, "--out", tmp_path / "b", "--epochs", 2)
    assert "encoder=ENCODER, loss=LOSS" in said
    for arguments in (
        ("evaluate", own),
        ("evaluate", plain, "--against", own),
        ("report", own),
        ("rank", own),
        ("rank", own, plain),
        ("check-leak", own),
        ("embed", own, images, "--out", tmp_path / "vectors"),
        ("detect", own, "--data", images),
        ("pretrain", images, "--encoder", "own", "--out", tmp_path / "new"),
        ("plan", "--images-count", 1000, "--config", own / "config.toml"),
        ("pretrain", images, "--distillation.teacher", own, "--out", tmp_path / "student"),
    ):
        said = refused(capsys, *arguments)
        assert "given in Python" in said, said
        assert any(f"={what}" in said for what in ("MODULE", "ENCODER", "LOSS")), said
    assert not (tmp_path / "student" / "config.toml").exists()
    with pytest.raises(ConfigError, match="encoder=ENCODER, loss=LOSS"):
        diptych.pretrain(out=own, resume=True, quiet=True)
    with pytest.raises(ConfigError, match=r"'own'.*pretrain\(\.\.\., loss=LOSS\)"):
        diptych.pretrain(out=own, resume=True, quiet=True, encoder=network())


def test_tensors_of_another_structure_are_refused(images: Path) -> None:
    own = run(images, encoder=network(), **GROUPED)
    diptych.pretrain(out=own, resume=True, quiet=True, encoder=network())
    for of_another in (
        lambda: diptych.load_encoder(own, encoder=network(5)),
        lambda: diptych.evaluate(own, ["knn"], encoder=network(5)),
        lambda: diptych.pretrain(out=own, resume=True, quiet=True, encoder=network(5)),
    ):
        with pytest.raises(ConfigError, match=r"0.weight is \(4, 3, 3, 3\).*\(5, 3, 3, 3\)"):
            of_another()
    plain = run(images, "plain")
    with pytest.raises(ConfigError, match="leave out encoder="):
        diptych.load_encoder(plain, encoder=network())
    with pytest.raises(RunFolderError, match=r"other settings: encoder\.name"):
        diptych.pretrain(out=plain, resume=True, quiet=True, encoder=network())


def test_a_module_that_is_given_stays_as_it_is_and_is_where_evaluation_begins(
    images: Path,
) -> None:
    encoder = network()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    own = run(images, encoder=encoder, **{"norm.kind": "layer"})
    assert all(torch.equal(encoder.state_dict()[name], one) for name, one in before.items())
    assert isinstance(encoder[1], nn.BatchNorm2d)  # type: ignore[index]
    trained = diptych.load_encoder(own, encoder=network()).network.state_dict()
    untrained = diptych.load_encoder(own / "untrained.safetensors", encoder=network())
    weight = untrained.network.state_dict()["0.weight"]
    assert torch.equal(weight, before["0.weight"])
    assert not torch.equal(weight, trained["0.weight"])


def test_tied_weights_are_written_and_lazy_ones_are_filled(images: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.LazyLinear(8)
            self.second = self.third = nn.Linear(8, 8)

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.third(self.second(self.first(images.flatten(1))).relu())
            return features

    own = run(images, encoder=Tied())
    assert diptych.load_encoder(own, encoder=Tied())(torch.zeros(2, 3, 16, 16)).shape == (2, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": torch.zeros(3)}, r"encoder= must be a torch\.nn\.Module; got a Tensor"),
        ({"encoder": nn.Identity()}, r"features \(batch, features\); a batch of one gave"),
        ({"encoder": nn.Linear(7, 2)}, "encoder.name = 'own' cannot take images of 16 x 16"),
        ({"encoder": network(), "encoder.name": "resnet18"}, "leave one of them out"),
        ({"encoder": network(), "encoder.width": 8}, r"encoder\.width: not of an encoder"),
        ({"loss": mean, "method.loss.kind": "triplet"}, "leave one of them out"),
        ({"loss": "triplet"}, r"diptych\.Loss or a function; got 'triplet'"),
        ({"loss": lambda p, n, s: n - p}, r"mean over queries.*shape \(\d+,\)"),
        ({"method": lambda c, i, e: nn.Identity()}, r"diptych\.Method; got a Identity"),
        ({"method": lambda c: c}, r"a function of \(config, images, executor\)"),
        ({"method.kind": "moco_v9"}, "one of contrastive, dense, .*; got 'moco_v9'"),
        ({"method.kind": "distillation"}, r"needs distillation\.teacher"),
    ],
)
def test_what_cannot_be_a_part_is_refused_and_leaves_no_run(
    images: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(images, **given)
    assert not (images.with_name("run") / "config.toml").exists()


def test_a_method_must_say_what_a_run_needs_of_it(images: Path) -> None:
    class Plain(diptych.Method):
        def forward(self, batch: diptych.Batch) -> diptych.StepOutput:
            return diptych.StepOutput(self.network(batch.views[0]).square().mean(), {})

    class Labelled(Plain):
        needs_labels = True

    def build(config: object, collection: object, executor: Executor, **own: Any) -> Plain:
        encoder = own.get("encoder") or network()
        return kind(encoder, nn.LazyLinear(2) if own else nn.Identity())

    kind = Plain
    with pytest.raises(ConfigError, match=r"not the network that encoder\.name = 'small_resnet'"):
        run(images, method=build)
    kind = Labelled
    with pytest.raises(ConfigError, match="uses_labels=lambda config: True"):
        run(images, method=build)
    kind = Plain
    with pytest.raises(ConfigError, match=r"\(config, images, executor, loss=\)"):
        run(images, loss=mean, method=lambda config, collection, executor: None)


def test_own_encoders_go_with_own_methods(images: Path) -> None:
    class Plain(diptych.Method):
        views = 3

        def forward(self, batch: diptych.Batch) -> diptych.StepOutput:
            assert len(batch.views) == 3
            return diptych.StepOutput(self.network(batch.views[0]).square().mean(), {})

    def build(config: object, images: object, executor: object, encoder: nn.Module) -> Plain:
        return Plain(encoder, nn.Linear(196, 2))

    own = run(images, encoder=network(), method=build)
    found = diptych.evaluate(own, ["knn", "geometry"], encoder=network(), threads=1)
    assert list(found["geometry"]["trained"]) == ["h"]
    assert diptych.write_report(own, encoder=network(), threads=1).exists()
    with pytest.raises(RunFolderError, match="the method of the run is 'own'"):
        diptych.load_encoder(own, encoder=network(), head_layers=1)


def test_an_own_encoder_with_a_part_of_the_name_of_ours_is_refused(images: Path) -> None:
    class Whitens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.whitening = network(), nn.Linear(196, 4)

        def forward(self, views: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.whitening(self.network(views))
            return found

    with pytest.raises(ConfigError, match="no part called 'whitening'"):
        run(images, encoder=Whitens())


def test_a_run_of_an_own_loss_is_ranked_without_it(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run(images, loss=mean, **GROUPED)
    assert main(["rank", str(own), "--threads", "1"]) == 0
    assert "pretext" in capsys.readouterr().out
    leak = diptych.check_leak(own)
    assert leak is not None
    assert leak.groups > 1
