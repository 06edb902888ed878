"""The encoder that is kept: the known best one, by images that no figure is measured on."""

import json
import re
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig, NormConfig
from diptych.config.run import OWN, KeepConfig, RunConfig, TrainingConfig
from diptych.diagnostics import keep_encoder as selection
from diptych.diagnostics.candidates import (
    INTERMEDIATE,
    NAMES,
    SHARES,
    WHITENED,
    Candidate,
    Choice,
    choose_with_labels,
    choose_without_labels,
    read_choice,
    weights_of,
    why_chosen,
)
from diptych.diagnostics.keep_encoder import keep_encoder
from diptych.errors import RunFolderError
from diptych.evaluation.features import encode
from diptych.evaluation.labelled import labelled_parts
from diptych.images.collection import Collection, ImageSet
from diptych.images.open import open_images
from diptych.models.final_features import IntermediateLayer
from diptych.models.norms import use_norm
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.pretraining import pretrain
from diptych.report.page import template
from diptych.runs.folder import RunFolder
from diptych.views.batches import evaluation_views

SIDE = 8
CONFIG = RunConfig(
    encoder=EncoderConfig(OWN),
    views=ViewsConfig(side_pixels=SIDE),
    training=TrainingConfig(keep=KeepConfig("best")),
)


class Colours(nn.Module):
    """The mean of each colour, by a weight of its own, with noise that no class depends on."""

    def __init__(self, weights: tuple[float, float, float]) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        with torch.no_grad():
            self.mix.weight.copy_(torch.diag(torch.tensor(weights))[:, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.norm(self.mix(images)).mean(dim=(2, 3)))


RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Of four classes: red high or low, green high or low; blue is noise."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 4
    colours = np.stack([labels % 2, labels // 2, rng.integers(0, 2, count)], axis=1)
    values = 70 + 110 * colours[:, None, None, :] + rng.integers(0, 40, (count, SIDE, SIDE, 3))
    return values.astype(np.uint8), labels


def opened(
    path: Path, executor: Executor, *, labels: bool = True, test: bool = False
) -> Collection:
    arrays: dict[str, Any] = {}
    for part, count, seed in (("train", 160, 0), *((("test", 40, 1),) if test else ())):
        arrays[f"{part}_images"], found = pictures(count, seed)
        if labels:
            arrays[f"{part}_labels"] = found
    np.savez(path, **arrays)
    return open_images(ImagesConfig(path=str(path)), executor)


def trained(weights: tuple[float, float, float], *, norm: NormConfig | None = None) -> nn.Module:
    """With statistics of its own, from images of the kind."""
    network = use_norm(Colours(weights), norm or NormConfig()).train()
    images = torch.from_numpy(pictures(64, 3)[0]).permute(0, 3, 1, 2).float() / 100 - 1.2
    for _ in range(60):
        network(images)
    return network


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def kept(
    folder: RunFolder,
    collection: Collection,
    executor: Executor,
    start: nn.Module,
    last: nn.Module,
    config: RunConfig = CONFIG,
) -> str:
    save_encoder(folder.untrained, start, config)
    keep_encoder(folder, last, config, collection, executor, own_encoder=Colours(RED))
    choice = read_choice(folder)
    assert choice is not None
    return choice.chosen


def test_the_start_is_kept_where_training_made_it_worse(
    folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    start, last = trained((1.0, 1.0, 0.0)), trained(BLUE)
    collection = opened(tmp_path / "i.npz", executor)
    assert kept(folder, collection, executor, start, last) == "start"
    for name, value in load_file(folder.encoder).items():
        assert torch.equal(value, start.state_dict()[name]), name
    for name, value in load_file(folder.last).items():
        assert torch.equal(value, last.state_dict()[name]), name


@pytest.mark.parametrize(
    "kind", ["batch", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sync", "shuffle"))]
)
def test_an_average_is_kept_where_it_sees_what_both_see(
    kind: Any, folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    """The average tells all classes apart, which neither of the two does."""
    config = replace(CONFIG, norm=NormConfig(kind))
    start, last = (trained(weights, norm=config.norm) for weights in (RED, GREEN))
    collection = opened(tmp_path / "i.npz", executor)
    assert kept(folder, collection, executor, start, last, config) == "average 0.5"
    choice = read_choice(folder)
    assert choice is not None
    found = {one.name: one for one in choice.candidates}
    assert list(found) == [name for name in NAMES if not name.endswith(INTERMEDIATE)]
    for name in ("start", "last"):
        assert found[name].linear == pytest.approx(0.5, abs=0.15)
    assert found["average 0.5"].knn == found["average 0.5"].linear == 1.0
    assert found["start"].gain == 0.0
    assert found["average 0.5"].gain == pytest.approx(1 - found["start"].accuracy, abs=1e-9)
    mixed = load_encoder(folder, encoder=Colours(RED)).network.state_dict()
    weights = torch.diagonal(mixed["mix.weight"][:, :, 0, 0]).tolist()
    assert weights == [0.5, 0.5, 0.0]
    # Statistics are those of these activations, and not means of those of others.
    shown = evaluation_views(collection.train, np.arange(160), "center", config.views, executor)[0]
    network = load_encoder(folder, encoder=Colours(RED)).network
    normalised = network.norm(network.mix(shown))  # type: ignore[operator]
    spread = normalised.transpose(0, 1).flatten(1).std(dim=1)
    torch.testing.assert_close(spread, torch.tensor([1.0, 1.0, 0.0]), rtol=0.05, atol=1e-6)
    assert "average of weights, 50% of the last step" in choice.why


@pytest.mark.parametrize("test", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_image_is_used_that_figures_are_measured_on(
    test: bool,
    folder: RunFolder,
    tmp_path: Path,
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection = opened(tmp_path / "i.npz", executor, test=test)
    shown, original = list[NDArray[np.uint64]](), encode

    def watched(network: nn.Module, images: ImageSet, *more: Any, **options: Any) -> Tensor:
        assert images.checksums is not None
        shown.append(images.checksums)
        return original(network, images, *more, **options)

    monkeypatch.setattr(selection, "encode", watched)
    kept(folder, collection, executor, trained(RED), trained(GREEN))
    labelled = labelled_parts(collection)
    assert labelled is not None
    assert labelled.test.checksums is not None
    measured_on = set(map(tuple, labelled.test.checksums.tolist()))
    assert measured_on
    assert len(shown) == len(SHARES)
    for one in shown:
        assert len(one)
        assert not measured_on & set(map(tuple, one.tolist()))


def test_copies_are_said_to_count_as_one(
    folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    pixels, labels = pictures(80, 0)
    twice = np.tile(pixels, (2, 1, 1, 1)), np.tile(labels, 2)
    np.savez(tmp_path / "twice.npz", train_images=twice[0], train_labels=twice[1])
    collection = open_images(ImagesConfig(path=str(tmp_path / "twice.npz")), executor)
    kept(folder, collection, executor, trained(RED), trained(GREEN))
    choice = read_choice(folder)
    assert choice is not None
    found = re.search(r", (\d+) of them judged .* as one: (\d+) of these", choice.images)
    assert found is not None
    assert int(found[1]) == 2 * int(found[2])


def test_without_labels_it_goes_by_neighbours(
    folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    collection = opened(tmp_path / "i.npz", executor, labels=False)
    start = trained((1.0, 1.0, 1.0))
    assert kept(folder, collection, executor, start, trained((1.0, 1.0, 0.99))) == (
        "last, whitened"
    )
    choice = read_choice(folder)
    assert choice is not None
    assert "no labels" in choice.images
    assert all(one.knn is None for one in choice.candidates)
    assert kept(folder, collection, executor, start, trained(BLUE)) != ("last, whitened")


def test_a_few_labels_do_not_judge(folder: RunFolder, tmp_path: Path, executor: Executor) -> None:
    collection = opened(tmp_path / "i.npz", executor)
    labels = np.full(160, -1)
    labels[:80] = np.arange(80) % 4
    few = replace(collection, train=replace(collection.train, labels=labels))
    start = trained((1.0, 1.0, 1.0))
    assert kept(folder, few, executor, start, trained(RED)).endswith(WHITENED)
    choice = read_choice(folder)
    assert choice is not None
    assert "labelled images are too few to judge by" in choice.images


def test_the_rare_class_decides_as_much_as_the_common_one(
    folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    """By plain accuracy a network that knows only whether red is high is wrong on a tenth."""
    pixels, kinds = pictures(400, 0)
    rare = np.flatnonzero(kinds == 3)[:16]
    rows = np.sort(np.concatenate([np.flatnonzero(kinds < 2)[:184], rare]))
    labels = (kinds[rows] == 3).astype(np.int64)
    np.savez(tmp_path / "u.npz", train_images=pixels[rows], train_labels=labels)
    collection = open_images(ImagesConfig(path=str(tmp_path / "u.npz")), executor)
    kept(folder, collection, executor, trained(BLUE), trained((1.0, 1.0, 0.0)))
    choice = read_choice(folder)
    assert choice is not None
    found = {one.name: one for one in choice.candidates}
    assert found["start"].knn == pytest.approx(0.5, abs=0.05)  # always the common class
    assert found["last"].knn == pytest.approx(1.0)
    assert found["last"].standard_error == pytest.approx(0.0, abs=1e-9)  # alike within a class
    assert choice.chosen.startswith(("average", "last"))
    assert "each class counted alike" in choice.images


def judged_of(labels: NDArray[np.int64], units: NDArray[np.int64] | None) -> selection._Judged:
    nothing: Any = None
    rows = np.arange(len(labels))
    return selection._Judged(
        nothing, torch.from_numpy(labels), units, ((rows[:0], rows[1::2]), (rows[:0], rows[::4]))
    )


@pytest.mark.parametrize("common", [0.25, 0.8])
def test_gains_on_frames_of_a_video_are_as_sure_as_the_video(
    common: float, rng: np.random.Generator
) -> None:
    """Against the sum over pairs of one video, and the plain one where each image is its own."""
    videos = rng.permutation(np.repeat(np.arange(20), 10))
    labels = np.where(rng.random(200) < common, 0, rng.integers(1, 4, 200))
    judged = judged_of(labels, videos)
    seen = [row for row in range(200) if row % 2 or not row % 4]
    gains = rng.normal(size=20)[videos[seen]] + 0.2 * rng.normal(size=len(seen))
    classes = labels[seen] if common > 0.5 else np.zeros(len(seen), dtype=np.int64)
    around = gains.copy()
    for one in np.unique(classes):
        around[classes == one] -= gains[classes == one].mean()
    pairs = sum(
        around[i] * around[j]
        for i in range(len(seen))
        for j in range(len(seen))
        if videos[seen[i]] == videos[seen[j]]
    )
    assert judged.standard_error(gains) == pytest.approx(np.sqrt(pairs) / len(seen))
    plain = judged_of(labels, None).standard_error(gains)
    assert judged.standard_error(gains) > 1.5 * plain
    assert judged_of(labels, rng.permutation(200)).standard_error(gains) == plain


@pytest.mark.slow
def test_called_again_it_goes_by_the_choice_that_was_made(
    folder: RunFolder, tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between any two of its files, or where one of them was lost."""
    collection = opened(tmp_path / "i.npz", executor)
    start, last = trained(RED), trained(GREEN)
    kept(folder, collection, executor, start, last)
    encoder, choice = folder.encoder.read_bytes(), folder.candidates.read_bytes()
    for lost in (folder.candidates, folder.last):  # chosen anew, and read
        lost.unlink()
        folder.encoder.unlink()
        kept(folder, collection, executor, start, last)
        assert folder.encoder.read_bytes() == encoder
        assert folder.candidates.read_bytes() == choice
    monkeypatch.setattr(selection, "_compared", lambda *_: pytest.fail("compared again"))
    kept(folder, collection, executor, start, last)
    assert folder.encoder.read_bytes() == encoder
    monkeypatch.undo()
    # Of other weights the choice says nothing.
    kept(folder, collection, executor, start, trained(BLUE))
    assert json.loads(folder.candidates.read_bytes())["weights"] != json.loads(choice)["weights"]


def as_text(**change: object) -> str:
    one = {"name": "start", "trained_share": 0.0, "neighbours_kept": 1.0}
    content = {"format": 1, "chosen": "start", "why": "", "images": "", "weights": ""}
    return json.dumps({**content, "candidates": [one], **change})


def test_a_whole_choice_is_read(folder: RunFolder) -> None:
    folder.path.mkdir()
    folder.candidates.write_text(as_text())
    found = read_choice(folder)
    assert found is not None
    assert found.candidates == (Candidate("start", 0.0, 1.0),)


@pytest.mark.parametrize(
    "text",
    [
        as_text(why=5),
        as_text(chosen="last"),
        as_text(candidates=[{"name": "start"}]),
        as_text(candidates=[{"name": "start", "trained_share": "a", "neighbours_kept": 1.0}]),
        as_text(
            candidates=[{"name": "start", "trained_share": 0, "neighbours_kept": 1.0, "knn": 0.5}]
        ),
        "[]",
        "{",
        '{"format": 1}',
        '{"format": 1, "chosen": "mine", "candidates": []}',
        "1",
    ],
)
def test_a_damaged_choice_is_refused_in_words(text: str, folder: RunFolder) -> None:
    folder.path.mkdir()
    folder.candidates.write_text(text)
    with pytest.raises(RunFolderError, match=r"is damaged.*--resume"):
        read_choice(folder)


def test_a_start_that_is_damaged_is_refused_in_words(
    folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    collection = opened(tmp_path / "i.npz", executor)
    folder.path.mkdir()
    folder.untrained.write_bytes(b"no tensors")
    with pytest.raises(RunFolderError, match=r"untrained\.safetensors.*is damaged"):
        keep_encoder(folder, trained(RED), CONFIG, collection, executor, own_encoder=Colours(RED))
    assert not folder.encoder.exists()


def test_more_features_than_can_be_whitened_are_compared_as_they_are(
    folder: RunFolder, tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MOST_WHITENED", 2)  # Colours has 3
    kept(folder, opened(tmp_path / "i.npz", executor), executor, trained(RED), trained(GREEN))
    choice = read_choice(folder)
    assert choice is not None
    assert [one.name for one in choice.candidates] == list(SHARES)


def test_where_the_start_is_gone_the_last_encoder_is_kept(
    folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    collection, said = opened(tmp_path / "i.npz", executor), list[str]()
    kept(folder, collection, executor, trained(GREEN), trained(RED))
    folder.untrained.unlink()
    keep_encoder(folder, trained(RED), CONFIG, collection, executor, say=said.append)
    assert folder.encoder.exists()
    assert read_choice(folder) is None
    assert "is gone" in said[0]


def candidate(
    name: str, neighbours: float = 1.0, knn: float = 0.5, linear: float = 0.5, error: float = 0.0
) -> Candidate:
    share = SHARES[weights_of(name)]
    return Candidate(name, share, neighbours, knn, linear, (knn + linear) / 2 - 0.5, error)


def chosen_of(*others: Candidate) -> str:
    named = {one.name: one for one in others}
    return choose_with_labels([named.get(name) or candidate(name) for name in NAMES])


def test_the_rule_with_labels() -> None:
    assert chosen_of() == "start"
    assert chosen_of(candidate("last", knn=0.7, linear=0.6)) == "last"
    assert chosen_of(candidate("average 0.5", knn=0.7, linear=0.6)) == "average 0.5"
    white = candidate("start, whitened", knn=0.7, linear=0.6)
    assert chosen_of(white, candidate("last", knn=0.6, linear=0.7)) == "start, whitened"


def test_what_chance_may_have_made_better_is_not_kept() -> None:
    assert chosen_of(candidate("last", knn=0.54, linear=0.54, error=0.05)) == "start"
    assert chosen_of(candidate("last", knn=0.54, linear=0.54, error=0.03)) == "last"


def test_where_nothing_is_clear_features_are_whitened_if_that_was_better_at_all() -> None:
    def white(name: str, knn: float, linear: float = 0.5) -> Candidate:
        return candidate(name, knn=knn, linear=linear, error=0.1)

    assert chosen_of(white("start" + INTERMEDIATE, 0.52)) == "start" + INTERMEDIATE
    assert chosen_of(white("start" + INTERMEDIATE, 0.5)) == "start"
    assert chosen_of(white("start" + INTERMEDIATE, 0.49)) == "start"
    assert chosen_of(white("start" + INTERMEDIATE, 0.52, 0.49)) == "start"  # loses by the linear
    assert chosen_of(white("last" + INTERMEDIATE, 0.52)) == "start"
    # From scratch the mean of both decides.
    for linear, wanted in ((0.49, "last, whitened"), (0.47, "last")):
        found = [candidate("last"), white("last, whitened", 0.52, linear)]
        assert choose_with_labels(found) == wanted
    words = why_chosen("last, whitened", [candidate("last"), white("last, whitened", 0.52)])
    assert words.endswith("That may be chance: whitened features are kept where they are no worse.")


def test_of_those_as_good_as_the_best_the_least_trained_is_kept() -> None:
    last = candidate("last", knn=0.7, linear=0.7, error=0.02)
    near = candidate("start, whitened", knn=0.69, linear=0.68, error=0.02)
    assert chosen_of(last, near) == "start, whitened"
    assert chosen_of(last, candidate("average 0.5", knn=0.7, linear=0.7)) == "average 0.5"
    assert chosen_of(last, candidate("start, whitened", knn=0.67, linear=0.68)) == "last"
    both = candidate("start" + INTERMEDIATE, knn=0.7, linear=0.69)
    assert chosen_of(last, near, both) == "start" + INTERMEDIATE


def test_a_better_one_that_is_not_kept_is_named() -> None:
    last = candidate("last", knn=0.7, linear=0.7, error=0.02)
    near = candidate("start, whitened", knn=0.69, linear=0.68, error=0.02)
    found = [candidate("start"), near, last]
    words = "Last is better by less than can be told."
    assert why_chosen("start, whitened", found).endswith(words)
    assert words not in why_chosen("last", found)


def test_what_loses_by_the_linear_classifier_is_not_kept() -> None:
    assert chosen_of(candidate("last", knn=0.9, linear=0.49)) == "start"
    assert chosen_of(candidate("last", knn=0.9, linear=0.496)) == "last"


def test_the_rule_without_labels() -> None:
    def chosen(*kept: float) -> str:
        plain = [candidate(name, share) for name, share in zip(SHARES, kept, strict=True)]
        white = [candidate(name + WHITENED, 0.0) for name in SHARES]
        both = [candidate(name + INTERMEDIATE, 0.0) for name in SHARES]
        with_layer = choose_without_labels([*plain, *white, *both], 500)
        found = choose_without_labels([*plain, *white], 500)
        # Ten neighbours are many of so few images, whatever training did.
        assert choose_without_labels([*plain, *white], 99) == "start, whitened"
        assert with_layer == found.replace(WHITENED, INTERMEDIATE)
        return found

    assert chosen(1.0, 0.9, 0.15) == "average 0.5, whitened"
    assert chosen(1.0, 0.9, 0.9) == "last, whitened"
    assert chosen(1.0, 0.1, 0.1) == "start, whitened"


def test_which_runs_choose() -> None:
    weights = EncoderConfig(weights="there.safetensors")
    last = TrainingConfig(keep=KeepConfig("last"))
    assert not RunConfig().keeps_best
    assert RunConfig(encoder=weights).keeps_best
    assert not RunConfig(encoder=weights, training=last).keeps_best
    assert CONFIG.keeps_best


# --- in a run ---------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "head.hidden_features": 8,
    "head.output_features": 4,
    "views.side_pixels": SIDE,
    "training.batch_size": 16,
    "training.threads": 1,
    "training.epochs": 1,
    "probe.images": 16,
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels, labels = pictures(160, 0)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


@pytest.mark.slow
def test_a_run_keeps_the_best_and_resumes_after_a_kill(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = {**SMALL, "training.keep.kind": "best"}
    module = trained(
        (1.0, 1.0, 0.0)
    )  # once: a run sets the number of threads, which its bits follow

    def run(name: str, **more: Any) -> RunFolder:
        return RunFolder(
            pretrain(images, out=tmp_path / name, encoder=module, quiet=True, **way, **more)
        )

    whole = run("whole")
    original: Callable[..., Any] = selection._compared

    def killed(*arguments: Any) -> Any:
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(selection, "_compared", killed)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    assert not (tmp_path / "killed" / "encoder.safetensors").exists()
    resumed = run("killed", resume=True)
    for file in ("candidates", "encoder", "last", "head"):
        assert getattr(resumed, file).read_bytes() == getattr(whole, file).read_bytes(), file
    assert json.loads(whole.candidates.read_bytes())["chosen"] in NAMES


def test_from_random_weights_the_last_encoder_is_compared_with_itself_whitened(
    images: Path, tmp_path: Path
) -> None:
    way = {**SMALL, "training.keep.kind": "best", "encoder.width": 4}
    folder = RunFolder(pretrain(images, out=tmp_path / "run", quiet=True, **way))
    choice = read_choice(folder)
    assert choice is not None
    assert [one.name for one in choice.candidates] == ["last", "last, whitened"]
    assert choice.candidates[0].gain == 0.0
    last, kept = load_file(folder.last), load_encoder(folder)
    for name, value in kept.network.state_dict().items():
        assert torch.equal(value, last[name]), name
    assert (kept.whitening is not None) == (choice.chosen == "last, whitened")
    assert "start" not in choice.why


def test_without_labels_the_last_encoder_of_random_weights_is_whitened(
    folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    config = replace(CONFIG, encoder=EncoderConfig(width=4))
    collection = opened(tmp_path / "i.npz", executor, labels=False)
    network = untrained_encoder(config)
    keep_encoder(folder, network, config, collection, executor)
    choice = read_choice(folder)
    assert choice is not None
    assert choice.chosen == "last, whitened"
    assert "views of an image differ less" in choice.why
    assert load_encoder(folder).whitening is not None


class Deep(nn.Module):
    """Its features are noise; what tells the classes apart stands in the map of its first stage."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv2d(3, 3, 1, bias=False)
        second = nn.Conv2d(3, 3, 2, stride=2, bias=False)
        self.layer1, self.layer2 = nn.Sequential(first), nn.Sequential(second)
        with torch.no_grad():
            first.weight.copy_(torch.eye(3)[:, :, None, None])
            blue = torch.diag(torch.tensor(BLUE))[:, :, None, None] / 4
            second.weight.copy_(blue.expand(3, 3, 2, 2))

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.layer2(self.layer1(images)).mean(dim=(2, 3)))


@pytest.mark.parametrize("labels", [True, False])
def test_features_of_an_intermediate_layer_are_kept_where_they_tell_more(
    labels: bool, folder: RunFolder, tmp_path: Path, executor: Executor
) -> None:
    collection = opened(tmp_path / "i.npz", executor, labels=labels)
    save_encoder(folder.untrained, Deep(), CONFIG)
    keep_encoder(folder, Deep(), CONFIG, collection, executor, own_encoder=Deep())
    choice = read_choice(folder)
    assert choice is not None
    assert [one.name for one in choice.candidates] == list(NAMES)
    assert choice.chosen.endswith(INTERMEDIATE)
    kept = load_encoder(folder, encoder=Deep())
    assert kept.layer == IntermediateLayer("layer1", 4)
    if not labels:
        return
    found = {one.name: one for one in choice.candidates}
    assert found["start"].knn == pytest.approx(0.25, abs=0.15)
    assert found[choice.chosen].knn == found[choice.chosen].linear == 1.0
    assert choice.chosen == "start" + INTERMEDIATE  # of equals the least trained
    assert "features of an intermediate layer beside its own, whitened" in choice.why
    views = evaluation_views(collection.train, np.arange(160), "center", CONFIG.views, executor)[0]
    cells = nn.functional.avg_pool2d(views, SIDE // 4).flatten(1)
    assert kept.whitening is not None
    whole = torch.cat([kept.network(views), cells], dim=1)
    torch.testing.assert_close(kept(views), kept.whitening(whole))


# --- on the page ------------------------------------------------------------------------------


def shown(choice: Choice | None) -> str:
    page = template("candidates.html.jinja").render(choice=choice)
    return " ".join(re.sub("<[^>]+>", " ", page).split())


def test_the_page_shows_every_candidate_with_its_figures() -> None:
    found = (
        Candidate("start", 0.0, 1.0, 0.81, 0.9, 0.0, 0.0),
        Candidate("last", 1.0, 0.42, 0.7, 0.8, -0.105, 0.02),
    )
    page = shown(Choice("start", "Kept is the start.", "On 9 images.", found, ""))
    assert "Kept is the start. On 9 images." in page
    assert "start 81.0% 90.0% +0.0 &plusmn; 0.0 100%" in page
    assert "last 70.0% 80.0% -10.5 &plusmn; 2.0 42%" in page
    assert "<b>" not in page


def test_the_page_shows_neighbours_alone_without_labels_and_nothing_without_a_choice() -> None:
    found = (Candidate("start", 0.0, 1.0), Candidate("last", 1.0, 0.42))
    assert "last - - - 42%" in shown(Choice("last", "", "", found, ""))
    assert shown(None) == ""
