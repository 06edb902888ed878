"""One step of training, its effects in order."""

from typing import NamedTuple

import torch
from torch import Tensor

from diptych.checkpoints.state import trainable
from diptych.config.run import RunConfig
from diptych.methods.build import Learner
from diptych.methods.contrastive import Method, Output
from diptych.methods.grad_cache import backward_in_chunks
from diptych.methods.objective import LookUp
from diptych.optimization.loss_scale import UNSCALED, LossScale
from diptych.optimization.optimizers import set_learning_rate
from diptych.runtime.distributed import process_count
from diptych.runtime.stopwatch import watch
from diptych.training.synchronize import average_step, seed_draws
from diptych.views.batches import Batch


class StepResult(NamedTuple):
    """What a step reports; tensors stay on the device until somebody reads them.

    Attributes:
        look_up: loss, accuracy and candidates of the batch, over all processes.
        gradient_norm: (), before clipping; None where no clipping is asked for, or the step was
            skipped.
    """

    look_up: LookUp
    gradient_norm: Tensor | None


def train_step(
    method: Learner,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    rate: float,
    momentum: float,
    config: RunConfig,
    scale: LossScale = UNSCALED,
) -> StepResult:
    """Learns from one batch, of which each process has a share.

    Args:
        method: is moved, and remembers the batch's keys.
        optimizer: of the method's trainable parameters.
        batch: on the method's device; this process's share of it.
        rate: learning rate of this step.
        momentum: share of itself that the momentum encoder keeps.
        config: clipping, chunks and the loss's weight.
        scale: of the loss in half precision; moved. Where gradients overflow, the step is skipped:
            no weight moves, those of the momentum encoder included. The keys are good, and are
            remembered.
    """
    optimizer.zero_grad(set_to_none=True)
    if process_count() > 1:
        seed_draws(config.seed, batch.step)
    output = _forward_and_backward(method, batch, config, scale)
    found = average_step(method, output.look_up)

    gradient_norm = None
    set_learning_rate(optimizer, rate)
    with watch("optimizer"):
        moves = scale.settle(optimizer)
        if moves and config.optimizer.clip_norm is not None:
            gradient_norm = torch.nn.utils.clip_grad_norm_(
                [parameter for _, parameter in trainable(method)], config.optimizer.clip_norm
            )
        if moves:
            optimizer.step()

    if moves:
        with watch("momentum_encoder"):  # after the network has moved, MoCo's algorithm 1
            method.follow(momentum)
    with watch("dictionary"):  # after the loss: a query must not meet its own key as a negative
        method.remember(output)
    return StepResult(found, gradient_norm)


def _forward_and_backward(
    method: Learner, batch: Batch, config: RunConfig, scale: LossScale
) -> Output:
    """The batch at once, or in chunks where that is asked for; the same gradients."""
    chunk_size, weight = config.training.chunk_size, config.method.loss.weight
    if chunk_size is not None and chunk_size < len(batch) and isinstance(method, Method):
        return backward_in_chunks(
            method, batch, chunk_size=chunk_size, weight=weight, enlarge=scale.enlarged
        )
    with watch("forward"):
        output: Output = method(batch)
    with watch("backward"):
        torch.autograd.backward(scale.enlarged(output.look_up.loss * weight))
    return output
