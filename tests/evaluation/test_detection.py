"""Detectors on our ResNets: their weights, what they learn, and how they are scored."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from diptych.cli.main import main
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.downstream import DetectionConfig, DetectionNorm, detection_learning_rate
from diptych.config.files import to_toml
from diptych.config.model import EncoderConfig, NormConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.evaluation.detection import protocol as detection
from diptych.evaluation.detection.average_precision import (
    RECALLS,
    THRESHOLDS,
    average_precisions,
    match,
    resampled,
    summary,
)
from diptych.evaluation.detection.detector import (
    Detections,
    anchor_sides,
    build_backbone,
    build_detector,
    frozen_norm,
    image_sides,
    run_detector,
    set_statistics,
    stem_remark,
    train_detector,
)
from diptych.evaluation.detection.protocol import measure_detection, train_and_detect
from diptych.images.sources.boxes import BoxedImages, Boxes, open_boxes
from diptych.models.norms import GlobalBatchNorm
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime
from processes import Results, run_processes

CPU = Runtime(device="cpu")

RUN = RunConfig(
    encoder=EncoderConfig(name="resnet18", stem="imagenet"), views=ViewsConfig(side_pixels=64)
)
SMALL = DetectionConfig(
    epochs=1, batch_size=4, side=64, pyramid_channels=16, proposals=32, warmup_steps=4, jitter=0.0
)
NORMS: tuple[DetectionNorm, ...] = ("frozen", "batch", "sync")
pytestmark = pytest.mark.filterwarnings("ignore:.*pkg_resources.*:UserWarning")


# --- average precision --------------------------------------------------------------------------


def boxes_of(rows: Sequence[Sequence[float]], **flags: Sequence[bool]) -> Boxes:
    """Rows of label, left, top, right, bottom."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    plain = np.zeros(len(table), dtype=np.bool_)
    marks = {
        name: np.array(flags.get(name, plain), dtype=np.bool_) for name in ("difficult", "crowd")
    }
    return Boxes(table[:, 1:].astype(np.float32), table[:, 0].astype(np.int64), **marks)


def detections_of(images: Sequence[Sequence[Sequence[float]]]) -> Detections:
    """For each image rows of label, score, left, top, right, bottom."""
    table = np.array([row for rows in images for row in rows], dtype=np.float64).reshape(-1, 6)
    return Detections(
        counts=np.array([len(rows) for rows in images], dtype=np.int64),
        corners=table[:, 2:].astype(np.float32),
        labels=table[:, 0].astype(np.int64),
        scores=table[:, 1].astype(np.float32),
    )


def scored(found: Detections, truth: tuple[Boxes, ...], classes: int) -> NDArray[np.float64]:
    return summary(average_precisions(match(found, truth, classes)))


def test_average_precision_by_hand() -> None:
    """Two boxes; found at score 0.9 with overlap 1, missed at 0.8, found at 0.7 with overlap 0.6.

    Up to 0.6 precision is 1 to recall 1/2 (51 of 101 points) and 2/3 beyond (50 points); above,
    the second box is never found: 51 points of 1.
    """
    truth = (boxes_of([[0, 0, 0, 10, 10], [0, 50, 50, 60, 60]]),)
    found = detections_of(
        [[[0, 0.9, 0, 0, 10, 10], [0, 0.8, 20, 20, 30, 30], [0, 0.7, 50, 50, 60, 56]]]
    )
    easy, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    got = scored(found, truth, 1)
    assert got[1] == pytest.approx(easy)
    assert got[2] == pytest.approx(strict)
    assert got[0] == pytest.approx((3 * easy + 7 * strict) / 10)


def test_difficult_boxes_and_crowds_neither_help_nor_hurt() -> None:
    plain = [[0.0, 0, 0, 10, 10]]
    hit, beside = [0, 0.5, 0, 0, 10, 10], [0, 0.9, 40, 40, 50, 50]
    both = [*plain, [0.0, 40, 40, 50, 50]]
    crowd = [*plain, [0.0, 30, 30, 90, 90]]
    two = [beside, [0, 0.8, 60, 60, 70, 70], hit]
    assert scored(detections_of([[beside, hit]]), (boxes_of(plain),), 1)[0] == pytest.approx(0.5)
    difficult = boxes_of(both, difficult=[False, True])
    assert scored(detections_of([[beside, hit]]), (difficult,), 1)[0] == pytest.approx(1.0)
    assert scored(detections_of([[hit]]), (difficult,), 1)[0] == pytest.approx(1.0)
    # A difficult box takes one detection, a crowd any number.
    twice = [beside, [0, 0.8, 40, 40, 50, 50], hit]
    assert scored(detections_of([twice]), (difficult,), 1)[0] == pytest.approx(0.5)
    crowded = boxes_of(crowd, crowd=[False, True])
    assert scored(detections_of([two]), (crowded,), 1)[0] == pytest.approx(1.0)


def random_scene(rng: np.random.Generator, images: int, classes: int) -> Any:
    truth, found = [], []
    for _ in range(images):
        corner = rng.uniform(0, 80, (rng.integers(0, 7), 2))
        rows = np.column_stack(
            [
                rng.integers(0, classes, len(corner)),
                corner,
                corner + rng.uniform(8, 30, corner.shape),
            ]
        )
        truth.append(boxes_of(rows.tolist()))
        near = rows[rng.random(len(rows)) < 0.8]
        near = np.column_stack([near[:, 0], rng.random(len(near)).round(2), near[:, 1:]])
        near[:, 2:] += rng.normal(0, 1.2, (len(near), 4))
        wild = rng.uniform(0, 60, (rng.integers(0, 5), 2))
        wrong = np.column_stack(
            [rng.integers(0, classes, len(wild)), rng.random(len(wild)), wild, wild + 20]
        )
        found.append([*near.tolist(), *wrong.tolist()])
    return detections_of(found), tuple(truth)


def plain_loops(found: Detections, truth: tuple[Boxes, ...], label: int, threshold: float) -> float:
    """Average precision from the definition: greedy by score, the best free box, 101 recalls."""
    starts = np.cumsum(found.counts) - found.counts
    entries = []
    for image, (start, count) in enumerate(zip(starts, found.counts, strict=True)):
        for k in range(start, start + count):
            entry = -float(found.scores[k]), image, found.corners[k].astype(float)
            entries += [entry] * int(found.labels[k] == label)
    entries.sort(key=lambda entry: entry[0])
    free = [[c.astype(float) for c in b.corners[b.labels == label]] for b in truth]
    wanted, hits = sum(map(len, free)), []
    for _, image, box in entries:
        overlaps = [overlap(box, other) for other in free[image]]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=-1)
        hit = best >= 0 and overlaps[best] >= threshold
        if hit:
            free[image].pop(best)
        hits.append(hit)
    curve = [(sum(hits[: n + 1]) / wanted, sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))]
    reached = [max((p for r, p in curve if r >= level), default=0.0) for level in RECALLS]
    return float(np.mean(reached))


def overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return float(shared / (areas[0] + areas[1] - shared))


def test_average_precision_equals_the_loops(rng: np.random.Generator) -> None:
    found, truth = random_scene(rng, 25, 3)
    got = average_precisions(match(found, truth, 3))
    wanted = [[plain_loops(found, truth, label, t) for t in THRESHOLDS] for label in range(3)]
    np.testing.assert_allclose(got, wanted, atol=1e-9)
    assert 0.2 < got.mean() < 0.9


def test_average_precision_equals_torchmetrics(rng: np.random.Generator) -> None:
    from torchmetrics.detection import MeanAveragePrecision

    found, truth = random_scene(rng, 30, 3)
    ends = np.cumsum(found.counts)
    theirs = MeanAveragePrecision(backend="pycocotools", class_metrics=True)
    for boxes, end, count in zip(truth, ends, found.counts, strict=True):
        some = slice(end - count, end)
        prediction = {
            "boxes": torch.from_numpy(found.corners[some]),
            "scores": torch.from_numpy(found.scores[some]),
            "labels": torch.from_numpy(found.labels[some]),
        }
        wanted = {
            "boxes": torch.from_numpy(boxes.corners),
            "labels": torch.from_numpy(boxes.labels),
        }
        theirs.update([prediction], [wanted])
    result = theirs.compute()
    want = [result["map"], result["map_50"], result["map_75"], *result["map_per_class"]]
    np.testing.assert_allclose(scored(found, truth, 3), torch.stack(want).numpy(), atol=1e-6)


def test_a_resample_is_the_set_with_images_repeated(rng: np.random.Generator) -> None:
    found, truth = random_scene(rng, 12, 2)
    draws = rng.multinomial(12, np.full(12, 1 / 12))
    chosen = np.repeat(np.arange(12), draws)
    starts = np.cumsum(found.counts) - found.counts
    rows = np.concatenate([np.arange(starts[i], starts[i] + found.counts[i]) for i in chosen])
    again = Detections(
        found.counts[chosen], found.corners[rows], found.labels[rows], found.scores[rows]
    )
    whole = average_precisions(match(again, tuple(truth[i] for i in chosen), 2))
    # Not to the last digit: copies of an image have equal scores, whose order may differ.
    drawn = average_precisions(match(found, truth, 2), draws)
    np.testing.assert_allclose(drawn, whole, atol=0.02)
    samples = resampled(match(found, truth, 2), 50, rng)
    assert samples.shape == (50, 5)
    assert samples[:, 0].min() < scored(found, truth, 2)[0] < samples[:, 0].max()


def test_a_class_without_boxes_has_no_figure() -> None:
    got = scored(detections_of([[[1, 0.9, 0, 0, 9, 9]]]), (boxes_of([[0, 0, 0, 9, 9]]),), 2)
    assert got[0] == 0.0
    assert np.isnan(got[4])
    assert np.isnan(scored(detections_of([[]]), (boxes_of([]),), 1)).all()


# --- the network --------------------------------------------------------------------------------


def body_of(detector: nn.Module) -> dict[str, torch.Tensor]:
    return detector.get_submodule("backbone.body").state_dict()


WIDE = EncoderConfig(name="resnet18", stem="imagenet", width_multiplier=2)


@pytest.mark.parametrize(
    ("norm", "encoder"), [*((norm, RUN.encoder) for norm in NORMS), ("batch", WIDE)]
)
def test_the_backbone_has_the_weights_of_the_encoder(
    norm: DetectionNorm, encoder: EncoderConfig
) -> None:
    run = replace(RUN, encoder=encoder, norm=NormConfig(kind="shuffle", images_per_group=4))
    network = untrained_encoder(run)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detector = build_detector(network, run, replace(SMALL, norm=norm), classes=2)
    for name, value in body_of(detector).items():
        assert torch.equal(value, before[name]), name
    missing = before.keys() - body_of(detector).keys()
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert bool(missing) == (norm == "frozen")


def test_the_maps_are_those_of_the_encoder() -> None:
    """Pooled, the last stage's maps are the encoder's own features, whatever the norm."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = untrained_encoder(RUN)
    set_statistics(network, [images])
    wanted = network.eval()(images)
    for norm in NORMS:
        backbone = build_backbone(network, replace(SMALL, norm=norm)).eval()
        maps = backbone.body(images)
        assert [m.shape[-1] for m in maps.values()] == [16, 8, 4, 2]
        torch.testing.assert_close(maps["3"].mean(dim=(2, 3)), wanted, rtol=1e-4, atol=1e-4)
        assert all(level.shape[1] == 16 for level in backbone(images).values())


def test_norms_are_what_was_asked_for() -> None:
    kinds = {}
    for norm in NORMS:
        detector = build_detector(untrained_encoder(RUN), RUN, replace(SMALL, norm=norm), classes=1)
        kinds[norm] = {
            type(m).__name__ for m in detector.modules() if "BatchNorm" in type(m).__name__
        }
    assert kinds["frozen"] == {"FrozenBatchNorm2d"}
    assert kinds["batch"] == {"BatchNorm2d"}
    assert kinds["sync"] == {GlobalBatchNorm.__name__}


def test_a_frozen_norm_is_the_norm_in_evaluation() -> None:
    norm = nn.BatchNorm2d(3).eval()
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(3) + 0.5)
    values = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(frozen_norm(norm).train()(values), norm(values))


def test_statistics_are_the_mean_over_batches() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    batches = [torch.randn(4, 2, 5, 5) * 3 + 1 for _ in range(3)]
    set_statistics(network, batches)
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    wanted = torch.stack([b.var(dim=(0, 2, 3)) for b in batches]).mean(dim=0)
    torch.testing.assert_close(norm.running_var, wanted)
    assert norm.momentum == 0.1


def test_statistics_of_norms_over_groups_are_taken_over_batches_of_any_size() -> None:
    run = replace(RUN, norm=NormConfig(kind="split", images_per_group=4))
    found, wanted = untrained_encoder(run), untrained_encoder(RUN)
    batches = [torch.randn(count, 3, 32, 32) for count in (8, 5)]
    for network in (found, wanted):
        set_statistics(network, batches)
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_another_network_is_refused() -> None:
    run = replace(RUN, encoder=EncoderConfig(name="small_resnet"))
    with pytest.raises(ConfigError, match=r"resnet18.* the run's is 'small_resnet'"):
        build_detector(untrained_encoder(run), run, SMALL, classes=1)


def test_the_small_stem_is_kept_and_said() -> None:
    run = replace(RUN, encoder=EncoderConfig(name="resnet18", stem="small"))
    backbone = build_backbone(untrained_encoder(run), SMALL).eval()
    assert [m.shape[-1] for m in backbone.body(torch.zeros(1, 3, 32, 32)).values()] == [
        32,
        16,
        8,
        4,
    ]
    assert "small stem" in str(stem_remark(run))
    assert stem_remark(RUN) is None


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"epochs": 0}, {"learning_rate": float("nan")}, {"jitter": 0.9}, {"side": 8}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DetectionConfig(**wrong)


def test_learning_rates() -> None:
    config = DetectionConfig(learning_rate=1.0, warmup_steps=4)
    rates = [detection_learning_rate(config, step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert image_sides(replace(SMALL, side=100, jitter=0.1), jitter=True)[0][::8] == [90, 110]


# --- learning -----------------------------------------------------------------------------------


def write_squares(root: Path, counts: dict[str, int]) -> Path:
    """A set in VOC's layout: 64 pixels, a red or a blue square on gray noise in each image."""
    rng = np.random.default_rng(11)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, count in counts.items():
        names = [f"{part}{number}" for number in range(count)]
        (root / f"ImageSets/Main/{part}.txt").write_text("\n".join(names))
        for number, name in enumerate(names):
            pixels = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
            side, (left, top) = rng.integers(20, 32), rng.integers(0, 32, 2)
            red = number % 2
            pixels[top : top + side, left : left + side] = (220, 30, 30) if red else (30, 30, 220)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
            (root / "Annotations" / f"{name}.xml").write_text(
                "<annotation><size><width>64</width><height>64</height></size><object>"
                f"<name>{'red' if red else 'blue'}</name><bndbox><xmin>{left + 1}</xmin>"
                f"<ymin>{top + 1}</ymin><xmax>{left + side}</xmax><ymax>{top + side}</ymax>"
                "</bndbox></object></annotation>"
            )
    return root


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares") / "data", {"train": 24, "test": 8})


@pytest.fixture(scope="module")
def few_squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what does not need to be learned well."""
    return write_squares(tmp_path_factory.mktemp("squares") / "data", {"train": 8, "test": 4})


def opened(squares: Path) -> list[BoxedImages]:
    with ThreadPoolExecutor(1) as executor:
        return open_boxes(squares, ("train", "test"), ImagesConfig(), executor)


def ap50(found: Detections, test: BoxedImages) -> float:
    return float(scored(found, test.boxes, 2)[1])


@pytest.mark.slow
def test_squares_are_learned(squares: Path) -> None:
    train, test = opened(squares)
    config = replace(SMALL, epochs=5, side=48, learning_rate=0.02)
    start = build_detector(untrained_encoder(RUN), RUN, config, classes=2)
    before = ap50(run_detector(start, test, config), test)
    found, losses = train_and_detect(untrained_encoder(RUN), RUN, config, train, test, CPU, seed=0)
    assert before < 0.2
    assert ap50(found, test) > before + 0.5
    assert losses[-1] < 0.7 * losses[0]


def test_boxes_come_back_in_pixels_of_the_full_image(squares: Path) -> None:
    """At half the side the same detector must give boxes of the same images in full pixels."""
    _, test = opened(squares)
    detector = build_detector(untrained_encoder(RUN), RUN, replace(SMALL, side=32), classes=2)
    given = torch.tensor([[1.0, 2.0, 30.0, 31.0]])
    answer = {"boxes": given, "labels": torch.tensor([2]), "scores": torch.tensor([0.5])}

    transform = detector.get_submodule("transform").eval()

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = next(detector.parameters())

        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            assert images[0].shape == (3, 32, 32)
            sized, _ = transform(images)
            assert sized.image_sizes == [(32, 32)]  # torchvision's resizing has nothing to do
            return [answer]

    found = run_detector(Fixed(), test, replace(SMALL, side=32))
    assert found.corners[0].tolist() == [2.0, 4.0, 60.0, 62.0]
    assert found.labels[0] == 1


def test_what_moves_when_it_is_fine_tuned(few_squares: Path) -> None:
    train, _ = opened(few_squares)
    for norm in NORMS[:2]:
        torch.manual_seed(0)
        config = replace(SMALL, norm=norm)
        detector = build_detector(untrained_encoder(RUN), RUN, config, classes=2)
        before = {name: value.clone() for name, value in body_of(detector).items()}
        train_detector(detector, train, config, seed=0)
        after = body_of(detector)
        for name in ("conv1.weight", "layer1.0.conv1.weight", "layer4.1.conv2.weight"):
            assert not torch.equal(before[name], after[name]), (norm, name)
        for name in ("bn1.running_mean", "bn1.weight", "layer4.1.bn2.running_var"):
            assert torch.equal(before[name], after[name]) == (norm == "frozen"), (norm, name)


@pytest.mark.slow
def test_a_seed_decides_every_bit(few_squares: Path) -> None:
    train, test = opened(few_squares)
    config = replace(SMALL, jitter=0.2)

    def once(seed: int) -> tuple[Detections, list[float]]:
        torch.rand(seed + 3)  # the state of the global generator must not matter
        return train_and_detect(untrained_encoder(RUN), RUN, config, train, test, CPU, seed=seed)

    (first, losses), (again, same), (_, other) = once(0), once(0), once(1)
    assert losses == same
    assert losses != other
    assert np.array_equal(first.corners, again.corners)
    assert np.array_equal(first.scores, again.scores)


def in_processes(rank: int, count: int) -> Results:
    """Trains on a share of each batch, with norms over all processes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        train, _ = opened(write_squares(Path(folder) / "data", {"train": 8, "test": 1}))
        torch.manual_seed(0)
        config = replace(SMALL, norm="sync")
        detector = build_detector(untrained_encoder(RUN), RUN, config, classes=2)
        train_detector(detector, train, config, seed=0)
    state = detector.state_dict()
    return {name: state[name].clone() for name in _WATCHED}


_WATCHED = (
    "backbone.body.conv1.weight",
    "backbone.body.layer4.1.bn2.running_var",
    "rpn.head.cls_logits.bias",
)


@pytest.mark.slow
def test_processes_stay_together() -> None:
    first, second = run_processes(in_processes, 2)
    for name in _WATCHED:
        assert torch.equal(first[name], second[name]), name


# --- a run --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    save_encoder(folder / "encoder.safetensors", untrained_encoder(replace(RUN, seed=5)), RUN)
    (folder / "config.toml").write_text(to_toml(RUN))
    return folder


def boxed(*labels: Sequence[int]) -> BoxedImages:
    """One image for each list of labels, a box of 10 pixels for each label side by side."""
    boxes = []
    for some in labels:
        left = 12.0 * np.arange(len(some), dtype=np.float32)
        corners = np.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1)
        plain = np.zeros(len(some), dtype=bool)
        boxes.append(Boxes(corners, np.array(some, dtype=np.int64), plain, plain))
    images: Any = None
    return BoxedImages(images, tuple(boxes), ("known", "unknown"))


def test_a_class_without_a_box_to_train_on_is_counted_apart() -> None:
    train, test = boxed([0], [0, 0]), boxed([0, 1], [1])
    unknown = detection._unknown_classes(train, test)
    assert unknown == {"unknown": 2}
    assert "no box of them: unknown (2 boxes)" in detection._unknown_remark(unknown)
    right = Detections(  # every known box found, no unknown one
        counts=np.array([1, 0]),
        corners=test.boxes[0].corners[:1],
        labels=np.array([0]),
        scores=np.array([0.9], dtype=np.float32),
    )
    as_before = summary(average_precisions(match(right, test.boxes, 2)))
    assert as_before[0] == pytest.approx(0.5)  # half the classes seem to be missed
    found = summary(average_precisions(detection._matches(right, test, unknown)))
    assert found[0] == pytest.approx(1.0)
    assert np.isnan(found[4])


FLAGS = [
    *("--epochs", "1", "--side", "64", "--pyramid-channels", "16", "--proposals", "32"),
    *("--threads", "1"),
]


@pytest.mark.slow
def test_a_run_is_measured_and_resumed(
    run: Path,
    few_squares: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(detection, "RESAMPLES", 20)
    command = ["detect", str(run), "--data", str(few_squares), *FLAGS]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "pretrained ResNet, seed 0: done" in said
    assert "AP50" in said
    found = json.loads((run / "detection.json").read_text())
    assert set(found["backbones"]) == {"pretrained", "untrained"}
    assert list(found["difference"]) == ["mAP", "AP50", "AP75", "blue", "red"]
    assert found["protocol"]["train_images"] == 8
    assert found["split"]["test_images_in_train"] == 0
    assert "Fitted on 8 images and measured on" in said.replace("\n", " ")
    cells = {file.name: file.stat().st_mtime_ns for file in (run / "detection").iterdir()}
    assert len(cells) == 2

    damaged = next(file for file in (run / "detection").iterdir() if "untrained" in file.name)
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert main([*command, "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "pretrained ResNet, seed 0: found" in said
    assert "untrained ResNet, seed 0: done" in said
    assert "pretrained ResNet, seed 1: done" in said
    again = json.loads((run / "detection.json").read_text())
    for backbone, was in found["backbones"].items():
        assert again["backbones"][backbone]["seeds"][0] == was["seeds"][0]
        values = [seed["mAP"] for seed in again["backbones"][backbone]["seeds"]]
        mean = again["backbones"][backbone]["figures"]["mAP"]
        assert mean["value"] == pytest.approx(np.mean(values))
        assert mean["low"] <= mean["high"]
    assert cells.items() <= {
        file.name: file.stat().st_mtime_ns
        for file in (run / "detection").iterdir()
        if file.name in cells and file != damaged
    }.items() | {(damaged.name, cells[damaged.name])}


def test_the_pretrained_backbone_is_the_runs(run: Path, squares: Path) -> None:
    train, test = opened(squares)
    work = detection._Work(
        run=RunFolder(run),
        config=RUN,
        detection=SMALL,
        train=train,
        test=test,
        key="",
        runtime=CPU,
    )
    trained = load_encoder(run).network.state_dict()
    pretrained = detection._backbone(work, "pretrained", 1).state_dict()
    untrained = detection._backbone(work, "untrained", 1).state_dict()
    assert all(torch.equal(trained[name], pretrained[name]) for name in trained)
    assert not torch.equal(trained["conv1.weight"], untrained["conv1.weight"])
    other = detection._backbone(work, "untrained", 0).state_dict()
    assert not torch.equal(other["conv1.weight"], untrained["conv1.weight"])


def test_wrong_use_is_said_plainly(
    run: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(run), "--data", str(squares), "--test-part", "val"]) == 2
    assert "val.txt cannot be read" in capsys.readouterr().err
    assert main(["detect", str(run), "--data", str(squares), "--epochs", "0"]) == 2
    assert "epochs must be 1 or more" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="learning_rate"):
        measure_detection(run, squares, DetectionConfig(learning_rate=-1.0))


def test_anchors_go_with_the_side_and_span_four_strides() -> None:
    assert anchor_sides(RUN, replace(SMALL, side=800)) == [32, 64, 128, 256, 512]
    assert anchor_sides(RUN, replace(SMALL, side=160)) == [16, 32, 64, 128, 256]
    small = replace(RUN, encoder=EncoderConfig(name="resnet18", stem="small"))
    assert anchor_sides(small, replace(SMALL, side=200)) == [8, 16, 32, 64, 128]
