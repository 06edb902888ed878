"""A detector trained on images with boxes, and run over others."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.config.downstream import DetectionConfig, detection_learning_rate
from diptych.errors import TrainingError
from diptych.evaluation.detection.detector import image_sides
from diptych.images.listing import Progress, ignore_progress
from diptych.images.sources.boxes import BoxedImages
from diptych.runtime.distributed import process_count, process_rank, sum_over_processes

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
        scale = (
            data.images.widths[index] / image.shape[2],
            data.images.heights[index] / image.shape[1],
        )
        one = {name: value.cpu() for name, value in detector([image.to(device)])[0].items()}
        found.append(
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
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = sum_over_processes(own) / process_count()


def _batches(count: int, size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The indices in a new order for each epoch, in batches of which the last may be smaller.

    A last batch that has not an image for every process is left out.
    """
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
        wide = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
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
