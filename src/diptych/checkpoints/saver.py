"""Saves a run beside its training: one checkpoint at a time, in a thread, until it is written."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor

from diptych.checkpoints.save_and_load import own_checkpoints, save_checkpoint, step_of_checkpoint
from diptych.checkpoints.state import RunState
from diptych.checkpoints.stores import CheckpointLocation
from diptych.config.run import CheckpointConfig
from diptych.errors import ForeignCheckpoint, NotSaved, TrainingError, UnreachableFolder
from diptych.runs.folder import Identity

RETRY_SECONDS: Final = 30.0
REMIND_SECONDS: Final = 600.0  # between two sentences about the same trouble
LAST_PAUSES: Final = (1.0, 3.0)  # seconds between the tries when a run ends

Whole = Mapping[str, Tensor]
"""Tensors by their names in the method's state."""


@dataclass(frozen=True)
class SaveOutcome:
    """What came of writing a checkpoint.

    Attributes:
        step: after which it was taken.
        trouble: why it could not be written; None if it was.
        kept: a sentence on which checkpoint is there.
    """

    step: int
    trouble: str | None
    kept: str


class Saver:
    """Writes the checkpoints of a run, in the process that writes.

    Trouble with the disk does not stop training: it is printed, and the next try comes soon. Any
    other exception in the thread is kept as ``error``, which the training thread reads.

    Args:
        place: where the checkpoints lie.
        run: that they are of.
        config: how often, how many, and whether training goes on meanwhile.
        say: prints a sentence when writing fails, and when it works again.
        prepare: called before each checkpoint is written; may raise ``OSError``.
        resumed_step: after which training goes on. What was saved after more steps is damaged, or
            it would go on from there.

    Attributes:
        error: that the thread ended in, or None; no checkpoint is taken after it.
    """

    def __init__(
        self,
        place: CheckpointLocation,
        run: Identity,
        config: CheckpointConfig,
        say: Callable[[str], None],
        prepare: Callable[[], None] = lambda: None,
        resumed_step: int = 0,
    ) -> None:
        self._place, self._run, self._config = place, run, config
        self._say, self._prepare = say, prepare
        self._resumed_step = resumed_step
        self._passed_over: set[int] | None = None  # known when the place has first been listed
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[SaveOutcome] | None = None
        self._trouble: str | None = None
        self._begun = time.monotonic()
        self._step = 0
        self._told = -REMIND_SECONDS
        self.error: BaseException | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)  # what is being written is finished
        self.look()
        # An error of training is the one to raise: that of the thread must not hide it.
        if error is None and self.error is not None:
            raise self.failure()

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._pending is not None

    def look(self) -> None:
        """Notes the result of a checkpoint once its writing has ended."""
        if self._pending is None or not self._pending.done():
            return
        pending, self._pending = self._pending, None
        self.error = pending.exception()
        if self.error is None:
            self._tell(pending.result())

    def failure(self) -> TrainingError:
        """What to raise when ``error`` is set."""
        failure = TrainingError(
            f"the checkpoint before step {self._step + 1} could not be written, by no fault of the "
            f"disk: {type(self.error).__name__}: {self.error}. {self._kept()}"
        )
        failure.__cause__ = self.error
        return failure

    def is_due(self) -> bool:
        """Whether the next checkpoint should be taken now."""
        self.look()
        every = self._config.every_seconds
        pause = every if self._trouble is None else min(every, RETRY_SECONDS)
        # Never while one is written: the next copy goes into the same memory.
        return self._pending is None and time.monotonic() - self._begun >= pause

    def begin(self, state: RunState, whole: Whole | None = None, **more: Any) -> None:
        """Takes a checkpoint and begins to write it; the one before must be finished.

        With ``checkpoint.asynchronous`` it returns as soon as the state is copied.

        Args:
            state: between two steps.
            whole: on the CPU, contiguous, of tensors of which this process holds a share only; the
                saver keeps them as they are until they are written.
            more: JSON values to be saved with its own.
        """
        self._begun, self._step = time.monotonic(), state.step
        scalars = {**state.scalars(), **more}
        # Copied here, before submit: the next step changes these tensors in place.
        self._pending = self._thread.submit(self._write, self._taken(state, whole), scalars)
        if self._config.asynchronous:
            return
        wait([self._pending])
        self.look()
        # Counted anew, or after a slow disk the next one would be due at once.
        self._begun = time.monotonic()

    def finish(self, state: RunState, whole: Whole | None = None, **more: Any) -> None:
        """Writes the last checkpoint and returns when it is there; see ``begin``.

        Raises:
            NotSaved: it cannot be written.
            TrainingError: the one before ended in an error.
        """
        if self._pending is not None:
            wait([self._pending])
            self.look()
        if self.error is not None:
            raise self.failure()
        tensors, scalars = self._taken(state, whole), {**state.scalars(), **more}
        outcome = self._write(tensors, scalars)
        for pause in LAST_PAUSES:
            if outcome.trouble is None:
                break
            time.sleep(pause)
            outcome = self._write(tensors, scalars)
        if outcome.trouble is not None:
            raise NotSaved(
                f"the run could not be saved after step {outcome.step}, the last one done: "
                f"{self._place} cannot be written ({outcome.trouble}). {outcome.kept} Mend that, "
                "then go on with --resume."
            )
        self._tell(outcome)

    def _taken(self, state: RunState, whole: Whole | None) -> dict[str, Tensor]:
        """The state as it is now, on the CPU, contiguous.

        What was gathered for this checkpoint is not used elsewhere, and needs no second copy.
        """
        if not self._config.asynchronous:
            return state.tensors(whole)
        named = state.named_tensors(whole)
        gathered = {name: named.pop(name) for name in (f"method/{key}" for key in whole or {})}
        return self._copy.take(named) | gathered

    def _write(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> SaveOutcome:
        """Runs in the thread, or in its place."""
        # Prints nothing: the training thread does, when it looks for the outcome.
        step = int(scalars["step"])
        try:
            self._prepare()
            if self._passed_over is None:
                there = map(step_of_checkpoint, own_checkpoints(self._place, self._run))
                self._passed_over = {one for one in there if one > self._resumed_step}
            keep, damaged = self._config.keep, self._passed_over
            save_checkpoint(
                self._place, self._run, tensors, scalars, keep=keep, passed_over=damaged
            )
            damaged.discard(step)
        # Trouble that may pass. Anything else is a fault of ours, and stops training.
        except (OSError, ForeignCheckpoint) as error:
            return SaveOutcome(step, _reason(error), self._kept())
        return SaveOutcome(step, None, f"The one after step {step} is there.")

    def _kept(self) -> str:
        try:
            newest = next(iter(own_checkpoints(self._place, self._run)), None)
        except ForeignCheckpoint:
            return "No other of this run is there."
        except OSError:
            return "What is there already cannot be listed."
        return "No other is there." if newest is None else f"{newest} is kept."

    def _tell(self, outcome: SaveOutcome) -> None:
        if outcome.trouble is None:
            if self._trouble is not None:
                self._say(f"Checkpoints are written again: {outcome.kept}")
            self._trouble = None
            return
        now = time.monotonic()
        if outcome.trouble != self._trouble or now - self._told >= REMIND_SECONDS:
            self._told = now
            seconds = min(self._config.every_seconds, RETRY_SECONDS)
            self._say(
                f"The checkpoint after step {outcome.step} could not be written to {self._place}: "
                f"{outcome.trouble}. {outcome.kept} Training goes on, and the next try comes in "
                f"{seconds:g} seconds."
            )
        self._trouble = outcome.trouble


def _reason(error: OSError | ForeignCheckpoint) -> str:
    if isinstance(error, UnreachableFolder | ForeignCheckpoint):
        return str(error).rstrip(".")
    return error.strerror or str(error) or type(error).__name__


class HostCopy:
    """Holds as much memory as the tensors from the first copy on; it is not asked for again.

    Memory is pinned where tensors come from a CUDA device, so that they all travel at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies tensors; what was taken before is overwritten.

        Args:
            tensors: of any device and layout, by name.

        Returns:
            Their bits as they are now, on the CPU, contiguous.
        """
        self._buffers = {name: self._buffer(name, one) for name, one in tensors.items()}
        for name, one in tensors.items():
            self._buffers[name].copy_(one, non_blocking=True)
        # Copies from a device are under way until then; the next step would change their sources.
        for device in {one.device for one in tensors.values() if one.device.type != "cpu"}:
            torch.accelerator.synchronize(device)
        return dict(self._buffers)

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and old.shape == like.shape and old.dtype == like.dtype:
            return old
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")
