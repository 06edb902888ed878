"""Loss scaling: what keeps the small gradients of fp16 from being rounded to nothing.

The loss is multiplied by a power of two before the backward pass and the gradients are divided by
it after, which changes no digit of them. Where they overflow, the step is skipped and the scale
halved; after many good steps it is doubled (Micikevicius et al. 2018, 1710.03740, section 3.2). The
rule is that of ``torch.amp.GradScaler``.
"""

from typing import Any, Final

import torch
from torch import Tensor

_MOST: Final = 1e30  # larger numbers than any scale or count of steps are none
LEAST_SCALE: Final = 1.0
"""Below it, gradients overflow though the loss is not enlarged: no scale helps."""


class LossScale:
    """The scale of a run's loss, and how many steps were skipped.

    Attributes:
        enabled: whether there is one; without, every function leaves all as it is.
        skipped_steps: over the whole run, interruptions included.
    """

    def __init__(self, *, enabled: bool = False, device: str = "cpu", initial: float = 2.0**16):
        self.enabled = enabled
        self.skipped_steps = 0
        self._scaler = torch.amp.GradScaler(device, init_scale=initial, enabled=enabled)

    @property
    def value(self) -> float:
        """What the loss is multiplied by."""
        return float(self._scaler.get_scale())

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def unscale_and_update(self, optimizer: torch.optim.Optimizer) -> bool:
        """Divides the gradients by the scale; then halves it if they overflowed, or may double it.

        Called once a step, after gradients have been averaged over the processes: the mean is not
        finite as soon as one of them is not, so all processes decide the same.

        Args:
            optimizer: of the parameters that have gradients.

        Returns:
            Whether the gradients may be used. If not, the step is to be skipped.
        """
        if not self.enabled:
            return True
        # Not GradScaler.step: where the very first step is skipped, torch's fused SGD keeps a
        # momentum buffer that was never set.
        before = self.value
        self._scaler.unscale_(optimizer)
        self._scaler.update()
        # update lowers the scale exactly where unscale_ has met an infinity or NaN.
        finite = self.value >= before
        self.skipped_steps += not finite
        return finite

    def state_metrics(self) -> dict[str, float]:
        """For a line of metrics."""
        if not self.enabled:
            return {}
        return {"loss_scale": self.value, "skipped_steps": self.skipped_steps}

    def scalars(self) -> dict[str, Any]:
        """The state to save, as JSON values."""
        if not self.enabled:
            return {}
        return {"scaler": self._scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def restore(self, scalars: dict[str, Any]) -> None:
        """Restores what ``scalars`` gave.

        Raises:
            KeyError, TypeError, ValueError: that is not what they hold.
        """
        if not self.enabled:
            return
        scaler, skipped = scalars["scaler"], scalars["skipped_steps"]
        own = self._scaler.state_dict()
        if not isinstance(scaler, dict):
            raise TypeError(f"the scale of the loss is {scalars!r}")
        given = [*scaler.values(), skipped]
        # NaN is no number here: its comparison is false. Nor is JSON's true.
        numbers = all(type(one) in (int, float) and abs(one) < _MOST for one in given)
        if scaler.keys() != own.keys() or not numbers or not scaler["scale"] > 0:
            raise ValueError(f"the scale of the loss is {scalars!r}")
        self._scaler.load_state_dict(scaler)
        self.skipped_steps = int(skipped)


UNSCALED: Final = LossScale()
"""Of every precision but fp16; it never changes."""
