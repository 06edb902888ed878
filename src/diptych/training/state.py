"""All that must be saved of a run, in one object."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import DamagedCheckpoint
from diptych.training.learner import Learner
from diptych.training.loss_scale import LossScale


@dataclass
class RunState:
    """A run between two steps.

    The learning rate and the position in the data follow from the step, the views from the seed;
    neither needs saving.

    Attributes:
        method: encoder, head, twin and dictionary with its pointer; or a student and its teacher.
        optimizer: of the method's trainable parameters.
        scale: of the loss, in fp16.
        step: steps done.
        seconds: spent in training, over all sittings.
    """

    method: Learner
    optimizer: torch.optim.Optimizer
    scale: LossScale = field(default_factory=LossScale)
    step: int = 0
    seconds: float = 0.0

    def named_tensors(self, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Every tensor of the state by a stable name, where it is; the next step changes it.

        Args:
            whole: tensors that take the place of those of the method of which this process holds a
                share only.
        """
        held = {**self.method.state_dict(), **(whole or {})}
        named = {f"method/{name}": value for name, value in held.items()}
        for name, parameter in trainable(self.method):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    named[f"optimizer/{name}/{key}"] = value
        named["generator/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            named["generator/cuda"] = torch.cuda.get_rng_state()
        return {name: value.detach() for name, value in named.items()}

    def tensors(self, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The same on the CPU, contiguous; copied only where they are not."""
        named = self.named_tensors(whole)
        return {name: value.cpu().contiguous() for name, value in named.items()}

    def scalars(self) -> dict[str, Any]:
        """Every plain number of the state."""
        scale = {"loss_scale": self.scale.scalars()} if self.scale.enabled else {}
        return {"step": self.step, "seconds": self.seconds, **scale}

    def restore(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Takes back what ``tensors`` and ``scalars`` gave.

        Raises:
            DamagedCheckpoint: a name or a shape is not the one of this run.
        """
        prefix = "method/"
        saved = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            self.method.load_state_dict(saved, strict=True)
        except RuntimeError as error:
            raise DamagedCheckpoint(f"the checkpoint is of another network: {error}") from error
        for name, parameter in trainable(self.method):
            prefix = f"optimizer/{name}/"
            for key in [key for key in tensors if key.startswith(prefix)]:
                value = tensors[key].to(parameter.device)
                if value.shape == parameter.shape and value.ndim:
                    # In the parameter's own layout, so that the next step computes the same bits.
                    value = torch.empty_like(parameter).copy_(value)
                # A copy: the file that it came from may go away.
                self.optimizer.state[parameter][key.removeprefix(prefix)] = value.detach().clone()
        torch.set_rng_state(tensors["generator/cpu"])
        if "generator/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["generator/cuda"])
        self.scale.restore(scalars.get("loss_scale", {}))
        self.step, self.seconds = int(scalars["step"]), float(scalars["seconds"])

    def is_finite(self) -> bool:
        """Whether every weight that is trained is a number."""
        return all(bool(torch.isfinite(p).all()) for _, p in trainable(self.method))


def trainable(method: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the optimizer moves, by name; not those of a twin or a teacher."""
    return [(name, p) for name, p in method.named_parameters() if p.requires_grad]
