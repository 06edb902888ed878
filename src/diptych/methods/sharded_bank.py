"""A bank of which each process holds a share: the keys of images i with i mod processes = rank.

Every process computes by itself which images have a key and which keys are drawn; the keys of a
batch's images and of the drawn ones are gathered for each comparison.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from diptych.methods.dictionaries import ImageBank
from diptych.runtime.distributed import (
    gather_rows,
    own_rows,
    process_count,
    process_rank,
    send_to_first,
)

_CHUNK: Final = 65536  # rows summed, or sent, at once
_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


class ShardedBank(ImageBank):
    """An ``ImageBank`` spread over the processes; draws, losses and updates are those of a whole.

    Attributes:
        keys: (own images, dim): row r is that of image ``rank + r * processes``.
        images: in the whole bank.
        rank: of this process when the bank was built.
        processes: there were then.
    """

    def __init__(self, images: int, dim: int, **settings: Any) -> None:
        # This calls _rows_here, which is static since the rank is set only below.
        super().__init__(images, dim, **settings)
        self.images, self.rank, self.processes = images, process_rank(), process_count()
        self._sum = 0  # of the checksums of all rows; rows of zeros add nothing

    def whole(self) -> Tensor | None:
        """All keys, (images, dim), on the CPU of the first process; None on the others.

        Collective. The first process receives one share after the other, each in parts: a device
        that is full of its own share has no room for another.
        """
        if self.rank == 0:
            found = torch.empty(self.images, self.keys.shape[1], dtype=self.keys.dtype)
        for rank in range(self.processes):
            rows = len(range(rank, self.images, self.processes))
            for begin in range(0, rows, _CHUNK):
                end = min(begin + _CHUNK, rows)
                # On other ranks the slice may be shorter: of theirs only width and type are used.
                part = send_to_first(self.keys[begin:end], rank, end - begin)
                if part is not None:
                    found[rank :: self.processes][begin:end] = part.cpu()
        return found if self.rank == 0 else None

    def fetch(self, images: Int[Tensor, " images"]) -> Shaped[Tensor, "images dim"]:
        """The keys of images that all processes name alike; each sends those it has. Collective."""
        owner = images % self.processes
        # All name the same images, so each knows how many rows every other one sends.
        counts = torch.bincount(owner, minlength=self.processes).tolist()
        mine = self.keys[images[owner == self.rank] // self.processes]
        # Padded: an all-gather takes as many rows from each process.
        sent = mine.new_zeros(max(counts), mine.shape[1])
        sent[: len(mine)] = mine
        shares = torch.split(gather_rows(sent), max(counts))
        by_owner = [share[:count] for share, count in zip(shares, counts, strict=True)]
        found = mine.new_empty(len(images), mine.shape[1])
        # Stable: an owner's rows come in the order in which they were named.
        found[owner.argsort(stable=True)] = torch.cat(by_owner)
        return found

    def is_intact(self) -> bool:
        """Whether the keys are those that were stored, by a checksum that every update moves.

        No other process holds them, so they cannot be compared.
        """
        return self._checksum() == self._sum

    @staticmethod
    def _rows_here(images: int) -> int:
        return len(range(process_rank(), images, process_count()))

    def _stored_keys(self, own: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        # fetch is collective: all must name the images of the whole batch, not each its own.
        whole_batch = gather_rows(own)
        rows = self.fetch(torch.cat([whole_batch, drawn]))
        return own_rows(rows[: len(whole_batch)]), rows[len(whole_batch) :]

    def _update_rows(self, keys: Tensor, rows: Tensor, known: Tensor) -> None:
        mine = rows % self.processes == self.rank
        own = rows[mine] // self.processes
        # Only the rows that change are summed. Damage that came before stays in the difference,
        # and the check over all rows finds it.
        before = self._checksum(own)
        super()._update_rows(keys[mine], own, known[mine])
        self._sum = _wrapped(self._sum + self._checksum(own) - before)

    def _checksum(self, rows: Tensor | None = None) -> int:
        """A sum over some rows or all, so that an update changes it by that of its rows."""
        if rows is None:
            rows = torch.arange(len(self.keys), device=self.keys.device)
        # Odd factors, which lose no bit modulo 2^64, and another for each column, so that numbers
        # that change places are noticed. int64 wraps around, as it should.
        multipliers = 2 * 2654435761 * torch.arange(self.keys.shape[1], device=rows.device) + 1
        total = 0
        for some in torch.split(rows, _CHUNK):
            bits = self.keys[some].view(_BITS[self.keys.element_size()]).long()
            sums = ((bits * multipliers) ^ (bits >> 7)).sum(dim=1)
            total += int((sums * (2 * some + 1)).sum())
        return _wrapped(total)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *more: Any, **rest: Any
    ) -> None:
        """Takes its share of the keys of a whole bank, as checkpoints hold them, or a share."""
        name = f"{prefix}keys"
        saved = state_dict.get(name)
        if isinstance(saved, Tensor) and saved.ndim == 2 and len(saved) == self.images:
            state_dict = {**state_dict, name: saved[self.rank :: self.processes]}
        super()._load_from_state_dict(state_dict, prefix, *more, **rest)
        self._sum = self._checksum()


def sharded_banks(method: nn.Module) -> Iterator[tuple[str, ShardedBank]]:
    """Banks of which this process holds a share, by the name of their keys in the state dict."""
    for name, module in method.named_modules():
        if isinstance(module, ShardedBank):
            yield f"{name}.keys" if name else "keys", module


def whole_banks(method: nn.Module) -> dict[str, Tensor]:
    """The whole banks, which the first process writes instead of its shares. Collective."""
    found = {name: bank.whole() for name, bank in sharded_banks(method)}
    return {name: keys for name, keys in found.items() if keys is not None}


def _wrapped(number: int) -> int:
    """Modulo 2^64."""
    return number & 0xFFFFFFFFFFFFFFFF
