"""What the training step asks of a method, and what a method answers for a batch."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from diptych.views.batches import Batch

HALF_TYPES: Final = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""For ``training.precision``: the type that autocast computes in; None for no autocast."""


@dataclass(frozen=True)
class StepOutput:
    """What one batch gave.

    Attributes:
        loss: (), mean over this process's queries.
        metrics: scalars without gradient, by their name in ``metrics.jsonl``. Each is averaged, as
            the loss is, over the directions of a symmetric method and over processes.
            ``chance_NAME`` is what NAME is where the network cannot tell one image from another.
        keys: (keys, dim), without gradient, for ``Method.after_step``; None where it needs none.
        indices: (batch,), the images that the keys are of.
        penalty: (), what is minimised beside the loss and is no part of it, as the distance from an
            anchor; None for nothing.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    keys: Tensor | None = None
    indices: Tensor | None = None
    penalty: Tensor | None = None


class Method(nn.Module):
    """What is trained: a network, and how it learns from the views of a batch.

    ``begin_step`` says where in the run a step is. The step calls ``forward``, which changes
    nothing but batch-norm statistics and what a later backward pass needs; then the optimizer
    moves, then ``update_momentum`` and ``after_step``, in this order. A method leaves out what it
    does not need, as that of a momentum encoder.

    Args:
        encoder: from (batch, channels, side, side) to (batch, features).
        head: behind it.

    Attributes:
        network: ``encoder``, the part that is kept, and ``head`` behind it, by these names.
        views: full-sized views of each image that it needs.
        needs_labels: whether every image of a batch must have a label.
    """

    network: nn.Sequential
    views: int = 2
    needs_labels: bool = False

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.add_module("encoder", encoder)
        self.network.add_module("head", head)

    @property
    def encoder(self) -> nn.Module:
        """The part that is kept."""
        return self.network.get_submodule("encoder")

    @property
    def networks(self) -> list[nn.Module]:
        """All networks that images pass; ``training.compile`` compiles them."""
        return [self.network]

    @property
    def dictionary_size(self) -> int | None:
        """Keys that a query meets beside its own once a dictionary is full; None for none."""
        return None

    def begin_step(self, step: int, *, steps_per_epoch: int, total_steps: int) -> None:
        """Sets what follows from the position in the run, as a temperature that warms up.

        Called before each step. Before the first call a method is as after all such warm-ups.

        Args:
            step: counted from 0.
            steps_per_epoch: of the run.
            total_steps: of the run, as far as known: minutes may change it.
        """

    def forward(self, batch: Batch) -> StepOutput:
        """The loss of this process's share of a batch."""
        raise NotImplementedError

    def update_momentum(self, momentum: float) -> None:
        """Moves a momentum encoder, which keeps ``momentum`` of itself, towards the network."""

    def after_step(self, output: StepOutput) -> None:
        """Takes in what outlives the batch, as keys for a queue or a bank."""

    def state_metrics(self) -> dict[str, float]:
        """Metrics of what outlives a batch, the same on all processes."""
        return {}


def autocast_to(half: torch.dtype | None, images: Tensor) -> AbstractContextManager[object]:
    """Autocast to a type of ``HALF_TYPES`` on the device of the images."""
    return torch.autocast(images.device.type, half, enabled=half is not None)


def mean_output(outputs: Sequence[StepOutput]) -> StepOutput:
    """Loss and every metric, each the mean over the directions of a symmetric method."""
    return StepOutput(
        torch.stack([one.loss for one in outputs]).mean(),
        {
            name: torch.stack([one.metrics[name] for one in outputs]).mean()
            for name in outputs[0].metrics
        },
    )


def scalar(value: float) -> Tensor:
    """A number among the metrics, in float64 and on the CPU: no device is kept waiting for it."""
    return torch.tensor(value, dtype=torch.float64)
