"""Faster R-CNN with a feature pyramid on a ResNet of ours: weights by torchvision's names.

The ResNet's stages become the maps of a feature pyramid (Lin et al. 2017, 1612.03144); MoCo
(1911.05722, section 4.2) judges representations by fine-tuning such a detector from end to end.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.config.downstream import (
    USUAL_SIDE,
    DetectionConfig,
    DetectionNorm,
    detection_learning_rate,
)
from diptych.config.model import NormConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, TrainingError
from diptych.images.listing import Progress, ignore_progress
from diptych.images.sources.boxes import BoxedImages
from diptych.models.norms import use_norm
from diptych.models.resnets import STAGE_BLOCKS
from diptych.runtime.distributed import process_count, process_rank, sum_over_processes

STAGES: Final = ("layer1", "layer2", "layer3", "layer4")
_STEM: Final = ("conv1", "bn1", "relu", "maxpool")
_FINEST_ANCHOR: Final = 32  # pixels in an image of the usual side; each level doubles it
_STRIDES: Final = 4  # of its map, that an anchor spans at least
_ASPECTS: Final = (0.5, 1.0, 2.0)
_ROI_ANCHORS: Final = 7  # 224 / 32: the paper's 224 pixels belong to the level of stride 16
_LONGEST: Final = 5 / 3  # longer side over shorter one


class ResNetStages(nn.Module):
    """A ResNet without its pooling: the maps after each stage. Names of weights stay as they are.

    Args:
        network: of torchvision, or of ``diptych.models.resnets``; its modules are taken over.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name in (*_STEM, *STAGES):
            self.add_module(name, network.get_submodule(name))

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """(batch, channels, height, width) to maps "0" .. "3" from fine to coarse."""
        maps = images
        for name in _STEM:
            maps = self.get_submodule(name)(maps)
        found = OrderedDict[str, Tensor]()
        for index, name in enumerate(STAGES):
            maps = found[str(index)] = self.get_submodule(name)(maps)
        return found


class PyramidBackbone(nn.Module):
    """The maps of a ResNet through a feature pyramid, as torchvision's detectors take them.

    Attributes:
        body: the ResNet.
        fpn: the pyramid: four levels, and a fifth by pooling.
        out_channels: of every level.
    """

    def __init__(self, body: ResNetStages, widths: list[int], channels: int, norm: Any) -> None:
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), norm_layer=norm)
        self.out_channels = channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """(batch, channels, height, width) to five levels of ``out_channels`` channels."""
        levels: OrderedDict[str, Tensor] = self.fpn(self.body(images))
        return levels


def build_detector(
    encoder: nn.Module, run: RunConfig, config: DetectionConfig, *, classes: int
) -> nn.Module:
    """Torchvision's Faster R-CNN on an encoder; what is new draws from torch's generator.

    Anchors and the rule that gives a box its level go with ``config.side``, see ``anchor_sides``.

    Args:
        encoder: a ResNet; its modules become the detector's ``backbone.body``, all of them trained.
        run: of the encoder: gives the network's name, colours and normalisation.
        config: gives the norm, the side and the pyramid's width.
        classes: of objects, the background not counted.

    Raises:
        ConfigError: the encoder is no ResNet-18 to -152.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    _require_resnet(run)
    sides = anchor_sides(run, config)
    anchors = AnchorGenerator(tuple((side,) for side in sides), (_ASPECTS,) * len(sides))
    pool = MultiScaleRoIAlign(
        featmap_names=["0", "1", "2", "3"],
        output_size=7,
        sampling_ratio=2,
        canonical_scale=round(_ROI_ANCHORS * sides[0]),
    )
    mean, std = normalisation(run)
    _, longest = image_sides(config, jitter=False)
    detector: nn.Module = FasterRCNN(
        build_backbone(encoder, config),
        num_classes=classes + 1,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool,
        box_batch_size_per_image=config.proposals,
        image_mean=mean,
        image_std=std,
        # Images come at their size, since torchvision's own resizing here has no filter against
        # aliasing. It is left out in training only; in evaluation it finds nothing to do.
        _skip_resize=True,
        min_size=config.side,
        max_size=longest,
    )
    return detector.to(memory_format=torch.channels_last)


def build_backbone(encoder: nn.Module, config: DetectionConfig) -> PyramidBackbone:
    """The encoder with a feature pyramid and the norm that the config asks for.

    With trained norms the pyramid's convolutions are normalised too, which keeps new layers at
    the scale of pretrained ones (MoCo, section 4.2); with frozen ones they have a bias instead.
    """
    body = ResNetStages(encoder.requires_grad_(True))
    widths = _widths(body)
    new_norm = None if config.norm == "frozen" else nn.BatchNorm2d
    backbone = PyramidBackbone(body, widths, config.pyramid_channels, new_norm)
    _set_norms(backbone, config.norm)
    return backbone


def stem_remark(run: RunConfig) -> str | None:
    """A sentence on what the run's stem means for a detector; None for the usual one."""
    if run.encoder.stem == "imagenet":
        return None
    return (
        "The encoder has the small stem, which is kept as it was trained: maps are four times as "
        "fine as a detector's usually are (strides 1, 2, 4, 8 instead of 4, 8, 16, 32), cost up to "
        "16 times as much, and see a quarter of the surroundings. A side of a quarter is fair."
    )


def anchor_sides(run: RunConfig, config: DetectionConfig) -> list[float]:
    """Of the anchors of each level, in pixels: in proportion to the side, with a least size.

    32 to 512 pixels are for a shorter side of 800, where an anchor spans eight strides of its map.
    Anchors of fewer than four would leave objects between neighbours that match none.
    """
    stride = 4 if run.encoder.stem == "imagenet" else 1
    finest = max(_FINEST_ANCHOR * config.side / USUAL_SIDE, _STRIDES * stride)
    return [finest * 2**level for level in range(len(STAGES) + 1)]


def image_sides(config: DetectionConfig, *, jitter: bool) -> tuple[list[int], int]:
    """The shorter sides to draw from, and the longest longer side, in pixels."""
    if not jitter or not config.jitter:
        return [config.side], round(_LONGEST * config.side)
    shares = torch.linspace(1 - config.jitter, 1 + config.jitter, 9).tolist()
    most = round(_LONGEST * (1 + config.jitter) * config.side)
    return sorted({round(config.side * share) for share in shares}), most


# --- norms --------------------------------------------------------------------------------------


def frozen_norm(norm: _BatchNorm) -> nn.Module:
    """The affine map that a batch norm is in evaluation; all of it constant."""
    from torchvision.ops import FrozenBatchNorm2d

    frozen: nn.Module = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    state = {name: value for name, value in norm.state_dict().items() if "batches" not in name}
    if not norm.affine:
        state |= {"weight": torch.ones(norm.num_features), "bias": torch.zeros(norm.num_features)}
    frozen.load_state_dict(state)
    return frozen


def plain_norm(norm: _BatchNorm) -> nn.Module:
    """Torch's batch norm with what another one holds."""
    new = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
    new.load_state_dict(norm.state_dict())
    return new


@torch.no_grad()
def set_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the running statistics of a network's batch norms to the mean over some batches.

    An untrained network has none; frozen norms would then let its features grow block by block. The
    norms become torch's: those of a run may take groups of images, which need not divide a batch.
    """
    _set_norms(network, "batch")
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean
    network.train()
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _set_norms(network: nn.Module, norm: DetectionNorm) -> None:
    if norm == "sync":
        use_norm(network, NormConfig(kind="sync"))
        return
    make = frozen_norm if norm == "frozen" else plain_norm
    # Lists, as modules are replaced while they are walked through.
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, make(child))


# --- from the run's config ------------------------------------------------------------------------


def _widths(body: ResNetStages) -> list[int]:
    """Channels after each stage: those of the last convolution of its last block."""
    return [
        [m for m in body.get_submodule(name).modules() if isinstance(m, nn.Conv2d)][-1].out_channels
        for name in STAGES
    ]


def _require_resnet(run: RunConfig) -> None:
    if run.encoder.name not in STAGE_BLOCKS:
        raise ConfigError(
            f"detection needs an encoder of {', '.join(STAGE_BLOCKS)}, whose stages make the "
            f"levels of a feature pyramid; the run's is {run.encoder.name!r}. Pretrain one with "
            "`diptych pretrain PATH --scale small` (a ResNet-18)."
        )


def normalisation(run: RunConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, as the run's views have them."""
    mean, std, channels = run.views.pixel_mean, run.views.pixel_std, run.images.channels
    if channels == 3:
        return list(mean), list(std)
    return [sum(mean) / 3] * channels, [sum(std) / 3] * channels


_MOMENTUM = 0.9
_LARGEST_GRADIENT = 10.0  # of the whole; new layers on a short warm-up overshoot otherwise


@dataclass(frozen=True)
class Detections:
    """What a detector found in some images, one image after the other.

    Attributes:
        counts: int64 (images,), boxes found in each image.
        corners: float32 (boxes, 4), left, top, right, bottom in pixels of the full image.
        labels: int64 (boxes,), positions in the classes.
        scores: float32 (boxes,), 0 .. 1.
    """

    counts: NDArray[np.int64]
    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


def train_detector(
    detector: nn.Module,
    data: BoxedImages,
    config: DetectionConfig,
    *,
    seed: int,
    on_images: Progress = ignore_progress,
) -> list[float]:
    """Trains a detector in place by SGD on random flips and scales; returns each epoch's mean loss.

    Draws from torch's generator, which the caller has seeded; the order of the images follows from
    ``seed``. Every image comes once in an epoch, the last batch may be smaller. In a process group
    each process takes its share of every batch, and gradients are means over processes.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    device = next(detector.parameters()).device
    optimizer = torch.optim.SGD(
        detector.parameters(), momentum=_MOMENTUM, weight_decay=config.weight_decay
    )
    batches = -(-len(data) // config.batch_size)
    losses = list[float]()
    detector.train()
    for epoch in range(config.epochs):
        total = 0.0
        for index, chosen in enumerate(_batches(len(data), config.batch_size, seed, epoch)):
            rate = detection_learning_rate(config, epoch * batches + index, config.epochs * batches)
            for group in optimizer.param_groups:
                group["lr"] = rate
            own = chosen[process_rank() :: process_count()]
            images, targets = _training_batch(data, own, config, device)
            loss = sum(detector(images, targets).values())
            total += _step(detector, optimizer, loss, epoch) * len(chosen)
            seen = epoch * len(data) + min((index + 1) * config.batch_size, len(data))
            on_images(seen, config.epochs * len(data))
        losses.append(total / len(data))
    return losses


@torch.no_grad()
def run_detector(
    detector: nn.Module,
    data: BoxedImages,
    config: DetectionConfig,
    *,
    on_images: Progress = ignore_progress,
) -> Detections:
    """Runs a detector over images in evaluation mode.

    One image after the other: in a batch the smaller ones would be padded, which changes what is
    found at their edges.
    """
    device = next(detector.parameters()).device
    detector.eval()
    found = []
    for index in range(len(data)):
        image, _ = _resized(data, index, config, jitter=False)
        # By axis: each side was rounded to whole pixels by itself.
        scale = (
            data.images.widths[index] / image.shape[2],
            data.images.heights[index] / image.shape[1],
        )
        one = {name: value.cpu() for name, value in detector([image.to(device)])[0].items()}
        found.append(
            # Twice, for x, y, x, y. The background is label 0 and never found.
            (one["boxes"] * torch.tensor(scale * 2).float(), one["labels"] - 1, one["scores"])
        )
        on_images(index + 1, len(data))
    corners, labels, scores = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    counts = np.array([len(one[1]) for one in found], dtype=np.int64)
    return Detections(counts, corners, labels, scores)


def normalised_batches(
    data: BoxedImages, config: DetectionConfig, mean: list[float], std: list[float]
) -> Iterator[Tensor]:
    """The images in their order without jitter, normalised, in padded batches of 8."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = GeneralizedRCNNTransform(0, 0, mean, std, _skip_resize=True)
    for start in range(0, len(data), 8):
        some = range(start, min(start + 8, len(data)))
        batch, _ = transform([_resized(data, index, config, jitter=False)[0] for index in some])
        yield batch.tensors


def _step(detector: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, epoch: int) -> float:
    value = float(loss.detach())
    if not np.isfinite(value):
        raise TrainingError(
            f"the detector's loss is {value} in epoch {epoch + 1}. Try a lower --learning-rate, or "
            "more --warmup-steps."
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    # Before the clipping, whose bound is for the gradient of the whole batch.
    _average_gradients(detector)
    nn.utils.clip_grad_norm_(detector.parameters(), _LARGEST_GRADIENT)
    optimizer.step()
    return value


def _average_gradients(detector: nn.Module) -> None:
    """Over processes. A part that a batch has left out on one of them has no gradient there."""
    if process_count() == 1:
        return
    for parameter in detector.parameters():
        if parameter.requires_grad:
            # Zeros instead of skipping it: every process must take part in every sum.
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = sum_over_processes(own) / process_count()


def _batches(count: int, size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The indices in a new order for each epoch, in batches of which the last may be smaller.

    A last batch that has not an image for every process is left out.
    """
    # Not by torch's generator, which other draws may have moved on differently in each process: all
    # must have the same order.
    order = np.random.Generator(np.random.Philox([seed, epoch])).permutation(count)
    batches = np.split(order, range(size, count, size))
    return [one for one in batches if len(one) >= process_count()]


def _training_batch(
    data: BoxedImages, chosen: NDArray[np.int64], config: DetectionConfig, device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    from torchvision.transforms import v2

    flip = v2.RandomHorizontalFlip()
    images, targets = [], []
    for index in chosen.tolist():
        image, boxes = flip(*_resized(data, index, config, jitter=True))
        images.append(image.as_subclass(Tensor).to(device))
        labels = torch.from_numpy(data.boxes[index].labels[data.boxes[index].plain])
        # torchvision refuses boxes without width or height.
        wide = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        # Its label 0 is the background.
        target = {"boxes": boxes.as_subclass(Tensor)[wide], "labels": labels[wide] + 1}
        targets.append({name: value.to(device) for name, value in target.items()})
    return images, targets


def _resized(
    data: BoxedImages, index: int, config: DetectionConfig, *, jitter: bool
) -> tuple[Tensor, Any]:
    """An image in 0 .. 1 and the boxes that count, at a side that is drawn if it is jittered."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    full = data.images.pixels.gather(np.array([index])).image(0)
    image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(full.transpose(2, 0, 1))))
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(data.boxes[index].corners[data.boxes[index].plain]),
        format="XYXY",
        canvas_size=full.shape[:2],
    )
    sides, longest = image_sides(config, jitter=jitter)
    image, boxes = v2.RandomShortestSize(sides, longest, antialias=True)(image, boxes)
    return image.as_subclass(Tensor).float() / 255, boxes
