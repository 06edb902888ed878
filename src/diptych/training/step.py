"""One step of training, its effects in order, and what keeps the processes of a run synchronized.

Each process computes the loss of its own queries; the loss of the batch is the mean of theirs, and
so is the gradient. After a step every process holds the same weights, statistics and dictionary, by
construction. A check at intervals notices where a faulty machine makes them differ.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.checkpoints.state import trainable
from diptych.config.run import RunConfig
from diptych.errors import DistributedError
from diptych.methods.method import Method, StepOutput
from diptych.methods.sharded_bank import sharded_banks
from diptych.models.norms import GlobalBatchNorm
from diptych.optimization.loss_scale import UNSCALED, LossScale
from diptych.optimization.optimizers import set_learning_rate, set_weight_decay
from diptych.runs.tensor_files import tensor_bytes
from diptych.runtime.distributed import (
    average_over_processes,
    gather_rows,
    process_count,
    process_rank,
)
from diptych.runtime.stopwatch import watch
from diptych.views.batches import Batch

DRAW_STREAM: Final = 0x44524157  # "DRAW": keeps these draws apart from any other use of the seed

_SHARE: Final = "the keys that it alone holds, which are not those that were stored"


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    rate: float,
    momentum: float,
    config: RunConfig,
    decay: float | None = None,
    scale: LossScale = UNSCALED,
) -> StepOutput:
    """Learns from one batch, of which each process has a share.

    Args:
        method: its weights move, and its dictionary gets the keys of the batch.
        optimizer: of the method's trainable parameters.
        batch: on the method's device; this process's share of it.
        rate: learning rate of this step.
        momentum: share of itself that the momentum encoder keeps.
        config: clipping and the loss's weight.
        decay: weight decay of this step; None leaves that of the optimizer.
        scale: of the loss in half precision; changed by the step. Where gradients overflow, the
            step is skipped: no weight moves, those of the momentum encoder included. The keys are
            good, and the dictionary gets them.

    Returns:
        Loss and metrics over all processes; tensors stay on the device until somebody reads them.
        With ``optimizer.clip_norm`` there is ``gradient_norm``, before clipping, unless the step
        was skipped.
    """
    optimizer.zero_grad(set_to_none=True)
    seed_generators(config.seed, batch.step)

    with watch("forward"):
        output: StepOutput = method(batch)
    with watch("backward"):
        # The weight scales gradients only; the loss in the metrics stays comparable.
        minimised = output.loss * config.loss_weight
        if output.penalty is not None:
            minimised = minimised + output.penalty
        torch.autograd.backward(scale.scaled(minimised))
    # Before overflow is looked for: all must skip the same steps, so all see the same gradients.
    output = synchronize_step(method, output)

    set_learning_rate(optimizer, rate)
    if decay is not None:
        set_weight_decay(optimizer, decay)
    with watch("optimizer"):
        moves = scale.unscale_and_update(optimizer)
        if moves and config.optimizer.clip_norm is not None:
            # Of gradients that are unscaled and averaged: the bound is meant for the true ones.
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


def synchronize_step(method: nn.Module, output: StepOutput) -> StepOutput:
    """Averages gradients and running statistics over the processes, after the backward pass.

    Running statistics move by the same share on each process, so that their mean is what moves
    by the mean of the statistics of all.

    Args:
        method: its gradients are those of this process's queries.
        output: of this process's queries.

    Returns:
        The loss and every metric over the queries of all processes, without gradient; no penalty,
        whose graph would keep the images of the step until the next one has ended.
    """
    if process_count() == 1:
        return replace(output, loss=output.loss.detach(), penalty=None)
    # Copies: averaging is in place, and the method may still hold these tensors.
    loss = output.loss.detach().clone()
    metrics = {name: value.detach().clone() for name, value in output.metrics.items()}
    # The same parameters must have gradients everywhere, or the buckets would not match.
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    averaged = [*gradients, *local_statistics(method), loss, *metrics.values()]
    average_over_processes(averaged)
    return replace(output, loss=loss, metrics=metrics, penalty=None)


def seed_generators(seed: int, step: int) -> None:
    """Sets torch's generators, as dropout uses them: a function of seed, step and rank.

    So checkpoints need no states of generators, whatever the device, no two processes drop the same
    units, and a run can go on with another number of them.
    """
    stream = np.random.SeedSequence([seed, DRAW_STREAM, step, process_rank()])
    torch.manual_seed(int(stream.generate_state(1, np.uint64)[0] >> 1))


def require_synchronized(method: nn.Module, step: int, **more: str) -> None:
    """Compares what the processes hold, by checksums.

    Args:
        method: with its dictionary.
        step: steps done.
        more: texts that must be the same too, by what they are.

    Raises:
        DistributedError: names the processes that differ from most of the others, and in what.
    """
    if process_count() == 1:
        return
    texts = {
        name: hashlib.sha256(text.encode(errors="surrogatepass")) for name, text in more.items()
    }
    digests = {"step": hashlib.sha256(str(step).encode()), **texts, **_digests(method)}
    # A gather carries tensors, and eight bytes, signed, fit into an int64.
    own = [int.from_bytes(one.digest()[:8], "big", signed=True) for one in digests.values()]
    own.append(sum(not bank.is_intact() for _, bank in sharded_banks(method)))
    everyone = gather_rows(torch.tensor([own])).tolist()
    for part, sums in zip([*digests, _SHARE], zip(*everyone, strict=True), strict=True):
        # Of shares, which nobody else holds, no majority can tell: each process counts its damage.
        usual = 0 if part == _SHARE else Counter(sums).most_common(1)[0][0]
        others = [rank for rank, one in enumerate(sums) if one != usual]
        if others:
            raise DistributedError(_difference(others, part, step))


def _difference(ranks: list[int], part: str, step: int) -> str:
    which = ", ".join(map(str, ranks))
    many = len(ranks) > 1
    return (
        f"after step {step} {'processes' if many else 'process'} {which} of {process_count()} "
        f"{'differ' if many else 'differs'} from the others in: {part}. Everywhere there must "
        "be the same run folder, the same images and the same versions of diptych and torch; if "
        "there are, suspect the machine. Go on from a checkpoint by --resume."
    )


def _digests(method: nn.Module) -> "Mapping[str, hashlib._Hash]":
    """A checksum of each part of a method that every process holds."""
    digests = {
        name: hashlib.sha256()
        for name in ("network", "momentum_encoder", "dictionary", "other parts")
    }
    shares = {name for name, _ in sharded_banks(method)}
    for name, value in method.state_dict().items():
        if name in shares:
            continue
        part = name.partition(".")[0]
        digest = digests[part if part in digests else "other parts"]
        digest.update(name.encode())
        digest.update(tensor_bytes(value))
    return digests


def local_statistics(method: nn.Module) -> list[Tensor]:
    """Running statistics of norms that see this process's images only.

    Those of a norm in evaluation mode, as a teacher's, have not moved and are the same everywhere:
    their mean could only differ from them by rounding.
    """
    return [
        statistics
        for norm in method.modules()
        if isinstance(norm, _BatchNorm) and not isinstance(norm, GlobalBatchNorm) and norm.training
        for statistics in (norm.running_mean, norm.running_var)
        if statistics is not None
    ]
