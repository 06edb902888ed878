"""What a checkpoint costs beside its bytes on disk: copies in memory, and the time of training.

With ``checkpoint.asynchronous`` the first process holds one copy of the state from the first
checkpoint on, and training waits for that copy alone. A bank in shares is gathered by it each time.
"""

from diptych.methods.contrastive import Contrastive
from diptych.methods.sharded_bank import ShardedBank
from diptych.planning.case import Case
from diptych.planning.machine import Machine
from diptych.planning.storage import state_tensors

_COPY_MOVES = 2  # in one memory: read, and written
_DISK_MOVES = 2  # summed and written, and the wait until it is on disk


def state_bytes(case: Case, method: Contrastive) -> float:
    """Of all tensors of a checkpoint; a copy of them, wherever they are."""
    return float(sum(tensor.nbytes for tensor in state_tensors(case.config, method).values()))


def gathered_bytes(method: Contrastive) -> float:
    """Of a bank in shares, which the first process gathers; 0 of any other dictionary."""
    bank = method.dictionary
    return float(bank.keys.nbytes) if isinstance(bank, ShardedBank) else 0.0


def rearranged_bytes(case: Case, method: Contrastive) -> float:
    """Copied on a CPU where nothing is copied beforehand: what is gathered, or not contiguous."""
    tensors = state_tensors(case.config, method).values()
    copied = sum(tensor.nbytes for tensor in tensors if not tensor.is_contiguous())
    return float(copied) + gathered_bytes(method)


def writing_seconds(size: float, machine: Machine) -> float:
    """Until a checkpoint of so many bytes is on disk."""
    return _DISK_MOVES * size / machine.disk_bytes_per_second


def pause_seconds(case: Case, method: Contrastive, size: float, machine: Machine) -> float:
    """For which training stands still at a checkpoint of so many bytes."""
    gathered = gathered_bytes(method)
    fetched = gathered * (case.processes - 1) / case.processes / machine.network_bytes_per_second
    if not case.config.checkpoint.asynchronous:
        return fetched + writing_seconds(size, machine)
    copied = state_bytes(case, method) - gathered
    return fetched + copied / copy_rate(machine)


def copy_rate(machine: Machine) -> float:
    """Bytes a second from the device to main memory, or within it."""
    if machine.is_one_memory:
        return machine.memory_bytes_per_second / _COPY_MOVES
    return machine.link_bytes_per_second
