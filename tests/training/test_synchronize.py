"""A process that differs is named; draws and statistics are the same whoever asks."""

import hashlib

import pytest
import torch
from torch import Tensor, nn

from diptych.config.run import RunConfig
from diptych.errors import DistributedError
from diptych.methods.method import Method, StepOutput
from diptych.optimization.loss_scale import LossScale
from diptych.runtime.distributed import average_over_processes, process_rank
from diptych.training.step import (
    require_synchronized,
    seed_generators,
    synchronize_step,
    train_step,
)
from diptych.views.batches import Batch
from processes import Results, run_processes


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def told(number: int, rank: int) -> str:
    """What the check says when one process alone was changed; nothing where all agree."""
    method = network()
    if rank == number:
        with torch.no_grad():
            method.get_parameter("0.weight")[1, 2] += 1e-7
    try:
        require_synchronized(method, 7)
    except DistributedError as error:
        return str(error)
    return ""


def settled(rank: int, *, overflowing: int) -> tuple[bool, float]:
    """Whether a step may be taken where the gradients of one process overflow, and the scale."""
    method, scale = network(), LossScale(enabled=True)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    loss = method(torch.ones(2, 3)).square().sum() * (1e38 if rank == overflowing else 1.0)
    torch.autograd.backward(scale.scaled(loss))
    synchronize_step(method, StepOutput(loss, {}))
    return scale.unscale_and_update(optimizer), scale.value


class Told(Method):
    """A method that reports a metric nobody knows of: the rank of its process."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3, 1))

    def forward(self, batch: Batch) -> StepOutput:
        loss = self.network(batch.views[0]).mean()
        return StepOutput(loss, {"rank": torch.tensor(float(process_rank()))})


def metrics_of_a_step(rank: int) -> dict[str, float]:
    method = Told()
    batch = Batch((torch.full((2, 3), float(rank)),), torch.arange(2), 0)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    output = train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=RunConfig())
    return {name: float(value) for name, value in output.metrics.items()}


def in_each(rank: int, count: int) -> Results:
    """Runs in each process."""
    tensors = [torch.full((3,), float(rank)), torch.tensor(rank, dtype=torch.float64)]
    tensors += [torch.arange(6.0).reshape(2, 3).T * (rank + 1)]  # not contiguous
    average_over_processes(tensors)
    said = [told(-1, rank), told(0, rank), told(count - 1, rank)]
    try:
        require_synchronized(network(), 7, images="other" if rank == 1 else "same")
    except DistributedError as error:
        said.append(str(error))
    moves, value = settled(rank, overflowing=1)
    others_move, _ = settled(rank, overflowing=9)
    torch.manual_seed(0)
    metrics = metrics_of_a_step(rank)
    seed_generators(5, 9)
    return {
        "metric": torch.tensor(metrics["rank"]),
        "settled": torch.tensor([moves, others_move, value == 2.0**15]),
        "means": torch.cat([tensor.double().reshape(-1) for tensor in tensors]),
        "draw": torch.rand(4),
        "said": torch.tensor(list("\n".join(said).encode())),
    }


@pytest.mark.slow
def test_processes_are_kept_synchronized() -> None:
    results = run_processes(in_each, 3)
    wanted = torch.tensor([1.0] * 4 + [0, 6, 2, 8, 4, 10], dtype=torch.float64)
    for result in results:
        assert torch.equal(result["means"], wanted)
        assert result["metric"] == 1.0  # the mean of 0, 1 and 2
        agreed, first, last, images = bytes(result["said"].tolist()).decode().split("\n")
        assert agreed == ""
        assert "after step 7 process 0 of 3 differs from the others in: other parts" in first
        assert "process 2 of 3 differs" in last
        assert "process 1 of 3 differs from the others in: images" in images
    # One process alone overflows: all skip the step and halve the scale; else none does.
    assert [result["settled"].tolist() for result in results] == [[False, True, True]] * 3
    draws = {hashlib.sha256(result["draw"].numpy().tobytes()).digest() for result in results}
    assert len(draws) == 3


def test_draws_follow_from_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> Tensor:
        seed_generators(seed, step)
        return torch.rand(3)

    assert torch.equal(drawn(1, 2), drawn(1, 2))
    assert not torch.equal(drawn(1, 2), drawn(1, 3))
    assert not torch.equal(drawn(1, 2), drawn(2, 2))


def test_one_process_has_nobody_to_differ_from() -> None:
    require_synchronized(network(), 0, images="any")
    tensor = torch.ones(2)
    average_over_processes([tensor])
    assert torch.equal(tensor, torch.ones(2))
