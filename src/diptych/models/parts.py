"""The parts of any encoder, from the input on, and how some of them are kept from training."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.errors import ConfigError
from diptych.models.activations import stages_of


def encoder_parts(encoder: nn.Module) -> list[list[str]]:
    """Names of the parameters of each part of an encoder: the stem, then stages, in their order.

    Stages are those of ``stages_of``: of a transformer, its blocks. What comes before the first is
    the stem, with the tokens and positions of a transformer. What comes after a stage belongs to
    it, as the last norm or convolution to the last stage (as timm groups layers).

    Args:
        encoder: from ``build_encoder``, or any other.

    Returns:
        One list for each part; one part for all where no stages are known.
    """
    return list(_numbered(encoder).values())


def hold_statistics(norms: Sequence[_BatchNorm]) -> None:
    """Keeps batch norms in evaluation mode: they use their running statistics and move none.

    ``train()`` of what they are in no longer reaches them, until ``release_statistics``. A copy of
    one is held too.
    """
    for norm in norms:
        norm.eval()
        # On this object alone: another module in its place would rename its weights.
        object.__setattr__(norm, "train", _stay)


def release_statistics(norms: Sequence[_BatchNorm]) -> None:
    """Undoes ``hold_statistics``, back to training mode."""
    for norm in norms:
        object.__delattr__(norm, "train")
        norm.train()


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """All batch norms of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


class FrozenParts:
    """The first parts of an encoder, which do not train while they are frozen.

    Their parameters get no gradients, so that autograd keeps nothing of what they compute, and
    their batch norms stay in evaluation mode, in the copies of the encoder too.

    Args:
        encoder: in training mode.
        count: of parts.
        copies: of the encoder, as a momentum encoder.

    Raises:
        ConfigError: the encoder has fewer parts.
    """

    def __init__(self, encoder: nn.Module, count: int, copies: Sequence[nn.Module] = ()) -> None:
        parts = encoder_parts(encoder)
        if count > len(parts):
            known = "are known: it has no stages" if len(parts) == 1 else "there are"
            raise ConfigError(
                f"encoder.frozen_parts = {count}: of {type(encoder).__name__} {len(parts)} "
                f"{'part' if len(parts) == 1 else 'parts'} {known}. Use at most {len(parts)}."
            )
        self._count, self._all = count, len(parts)
        names = [name for part in parts[:count] for name in part]
        # Not those that never train, as a random patch projection: they stay as they are.
        self._parameters = [p for p in map(encoder.get_parameter, names) if p.requires_grad]
        self._norms = [norm for one in (encoder, *copies) for norm in _norms_of(one, count)]
        self._frozen = False

    @property
    def leaves_some(self) -> bool:
        """Whether a part of the encoder trains while these are frozen."""
        return self._count < self._all

    def set(self, *, frozen: bool) -> None:
        """Freezes the parts, or lets them train; nothing where that is so already."""
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
            parameter.grad = None
        (hold_statistics if frozen else release_statistics)(self._norms)


def _stay(mode: bool = True) -> None:
    """In the place of ``train`` of a module that stays in evaluation mode."""


def _norms_of(encoder: nn.Module, count: int) -> list[_BatchNorm]:
    """The batch norms of the first parts that nothing else holds in evaluation mode."""
    first, numbers = list(_numbered(encoder))[:count], _part_numbers(encoder)
    return [norm for norm in batch_norms(encoder) if norm.training and numbers[norm] in first]


def _numbered(encoder: nn.Module) -> dict[int, list[str]]:
    """Names of the parameters by the number of their part, in the order of the parts."""
    numbers, parts = _part_numbers(encoder), dict[int, list[str]]()
    for name, _ in encoder.named_parameters():
        number = numbers[encoder.get_submodule(name.rpartition(".")[0])]
        parts.setdefault(number, []).append(name)
    return dict(sorted(parts.items()))


def _part_numbers(encoder: nn.Module) -> dict[nn.Module, int]:
    """Of each module the part that it is in, 0 for the stem; a part may have no parameters."""
    stages = {stage: number for number, stage in enumerate(stages_of(encoder), start=1)}
    numbers, latest = dict[nn.Module, int](), 0
    # A module comes before what is inside it, in the order in which they were registered.
    for module in encoder.modules():
        latest = stages.get(module, latest)
        numbers[module] = latest
    return numbers
