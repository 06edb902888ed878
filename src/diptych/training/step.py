"""One step of training, its effects in order."""

from typing import NamedTuple

import torch
from torch import Tensor

from diptych.configs import RunConfig
from diptych.contrast.dictionaries import LookUp
from diptych.contrast.method import Method
from diptych.training.optimizers import set_learning_rate


class StepResult(NamedTuple):
    """What a step reports; tensors stay on the device until somebody reads them.

    Attributes:
        look_up: loss, accuracy and candidates of the batch.
        gradient_norm: (), before clipping; None where no clipping is asked for.
    """

    look_up: LookUp
    gradient_norm: Tensor | None


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    views: tuple[Tensor, Tensor],
    *,
    rate: float,
    config: RunConfig,
) -> StepResult:
    """Learns from one batch.

    Args:
        method: is moved, and remembers the batch's keys.
        optimizer: of ``method.network``.
        views: two of (batch, channels, side, side), on the method's device.
        rate: learning rate of this step.
        config: clipping and precision.
    """
    bf16 = config.training.precision == "bf16"
    with torch.autocast(views[0].device.type, torch.bfloat16, enabled=bf16):
        output = method(*views)

    optimizer.zero_grad(set_to_none=True)
    output.look_up.loss.backward()
    gradient_norm = None
    if config.optimizer.clip_norm is not None:
        gradient_norm = torch.nn.utils.clip_grad_norm_(
            method.network.parameters(), config.optimizer.clip_norm
        )
    set_learning_rate(optimizer, rate)
    optimizer.step()

    method.follow()  # after the network has moved, MoCo's algorithm 1
    method.remember(output)  # after the loss: a query must not meet its own key as a negative
    return StepResult(output.look_up, gradient_norm)
