"""A bank in shares answers as a whole one, is saved whole, and is checked by itself."""

import pytest
import torch

from diptych.errors import DistributedError
from diptych.methods import sharded_bank
from diptych.methods.dictionaries import ImageBank
from diptych.methods.sharded_bank import ShardedBank, whole_banks
from diptych.runtime.distributed import own_slice, process_count
from diptych.training.step import require_synchronized
from diptych.views.batches import Batch
from processes import Results, run_processes

IMAGES, DIM, BATCH, STEPS = 23, 5, 12, 9  # shares of different lengths


def build(kind: type[ImageBank], dtype: torch.dtype) -> ImageBank:
    return kind(IMAGES, DIM, negatives=7, momentum=0.3, dtype=dtype, seed=4)


def keys_and_indices(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    keys = torch.randn(BATCH, DIM, generator=generator)
    return keys, torch.randperm(IMAGES, generator=generator)[:BATCH]


def compared(bank: ImageBank, step: int) -> list[torch.Tensor]:
    """What this process's queries meet; a comparison without the queries."""
    keys, indices = keys_and_indices(step)
    own = own_slice(BATCH)
    found = bank.compare(keys[own], keys[own], Batch((), indices[own], step))
    assert found.excluded is not None
    return [found.positives, found.negatives, found.excluded, torch.tensor(found.candidates)]


def in_each(rank: int, count: int) -> Results:
    """Runs in each process; it holds a whole bank as well, to compare with."""
    results: Results = {}
    sharded_bank._CHUNK = 3  # type: ignore[misc]  # so that a share is sent in several parts
    for dtype in (torch.float32, torch.float16):
        whole, shared = build(ImageBank, dtype), build(ShardedBank, dtype)
        assert isinstance(shared, ShardedBank)
        assert len(shared.keys) == len(range(rank, IMAGES, count))
        for step in range(STEPS):
            if step == 5:  # goes on from a whole one, as from a checkpoint
                shared = build(ShardedBank, dtype)
                shared.load_state_dict(whole.state_dict())
                assert isinstance(shared, ShardedBank)
            for one, other in zip(compared(whole, step), compared(shared, step), strict=True):
                assert torch.equal(one, other), step
            for bank in (whole, shared):
                bank.update(*keys_and_indices(step))
            assert torch.equal(whole.keys[rank::count], shared.keys)
            assert shared.is_intact()
        saved = whole_banks(shared)
        assert list(saved) == (["keys"] if rank == 0 else [])
        if rank == 0:
            assert torch.equal(saved["keys"], whole.keys)
            results[str(dtype)] = saved["keys"]
        again = build(ShardedBank, dtype)
        again.load_state_dict(shared.state_dict())  # of its own share
        assert torch.equal(again.keys, shared.keys)
    results["said"] = torch.tensor(list(told(shared, rank).encode()))
    return results


def told(bank: ImageBank, rank: int) -> str:
    """What the check says once one process has lost a bit of its share."""
    require_synchronized(bank, 3)
    if rank == process_count() - 1:
        bank.keys.view(torch.int16)[2, 1] ^= 1
    try:
        require_synchronized(bank, 3)
    except DistributedError as error:
        return str(error)
    return "nothing"


@pytest.mark.slow
def test_shares_answer_as_a_whole() -> None:
    results = run_processes(in_each, 3)
    for found in results:
        said = bytes(found["said"].tolist()).decode()
        assert "after step 3 process 2 of 3 differs from the others in: the keys that it" in said
    # Another number of processes goes on with what these have saved.
    for dtype in (torch.float32, torch.float16):
        bank = build(ShardedBank, dtype)
        bank.load_state_dict({**bank.state_dict(), "keys": results[0][str(dtype)]})
        assert torch.equal(bank.keys, results[0][str(dtype)])
        assert len(bank.keys) == IMAGES


def test_a_damaged_share_is_noticed() -> None:
    for dtype in (torch.float32, torch.float16, torch.float64):
        bank = build(ShardedBank, dtype)
        assert isinstance(bank, ShardedBank)
        assert bank.is_intact()
        for step in range(3):
            bank.update(*keys_and_indices(step))
        assert bank.is_intact()
        kept = bank.keys.clone()
        for bit in range(8 * bank.keys.element_size()):
            bits = bank.keys.view(
                {2: torch.int16, 4: torch.int32, 8: torch.int64}[bank.keys.element_size()]
            )
            bits[3, 1] ^= torch.tensor(1, dtype=bits.dtype) << bit
            assert not bank.is_intact(), bit
            bank.keys.copy_(kept)
        bank.keys[[3, 4]] = kept[[4, 3]]  # two rows in each other's place
        assert not bank.is_intact() or torch.equal(kept[3], kept[4])
