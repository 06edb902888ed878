"""One step of training, its effects in order."""

from dataclasses import replace

import torch

from diptych.checkpoints.state import trainable
from diptych.config.run import RunConfig
from diptych.methods.method import Method, StepOutput
from diptych.optimization.loss_scale import UNSCALED, LossScale
from diptych.optimization.optimizers import set_learning_rate
from diptych.runtime.distributed import process_count
from diptych.runtime.stopwatch import watch
from diptych.training.synchronize import seed_generators, synchronize_step
from diptych.views.batches import Batch


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    rate: float,
    momentum: float,
    config: RunConfig,
    scale: LossScale = UNSCALED,
) -> StepOutput:
    """Learns from one batch, of which each process has a share.

    Args:
        method: is moved, and takes in what outlives the batch.
        optimizer: of the method's trainable parameters.
        batch: on the method's device; this process's share of it.
        rate: learning rate of this step.
        momentum: share of itself that the momentum encoder keeps.
        config: clipping and the loss's weight.
        scale: of the loss in half precision; moved. Where gradients overflow, the step is skipped:
            no weight moves, those of the momentum encoder included. The keys are good, and are
            taken in.

    Returns:
        Loss and metrics over all processes; tensors stay on the device until somebody reads them.
        With ``optimizer.clip_norm`` there is ``gradient_norm``, before clipping, unless the step
        was skipped.
    """
    optimizer.zero_grad(set_to_none=True)
    if process_count() > 1:
        seed_generators(config.seed, batch.step)

    with watch("forward"):
        output: StepOutput = method(batch)
    with watch("backward"):
        torch.autograd.backward(scale.enlarged(output.loss * config.method.loss.weight))
    output = synchronize_step(method, output)

    set_learning_rate(optimizer, rate)
    with watch("optimizer"):
        moves = scale.settle(optimizer)
        if moves and config.optimizer.clip_norm is not None:
            gradient_norm = torch.nn.utils.clip_grad_norm_(
                [parameter for _, parameter in trainable(method)], config.optimizer.clip_norm
            )
            output = replace(output, metrics={**output.metrics, "gradient_norm": gradient_norm})
        if moves:
            optimizer.step()

    if moves:
        with watch("momentum_encoder"):  # after the network has moved, MoCo's algorithm 1
            method.update_momentum(momentum)
    with watch("dictionary"):  # after the loss: a query must not meet its own key as a negative
        method.after_step(output)
    return output
