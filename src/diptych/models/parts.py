"""The parts of any encoder, from the input on; how some are kept from training; the last map.

And networks that have shapes and no memory.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

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


# --- maps -------------------------------------------------------------------------------------


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode for a while; then each part in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            # One by one: train() on the whole would wake parts that are held in evaluation mode.
            module.training = training


@contextmanager
def without_memory() -> Iterator[None]:
    """What is built inside takes no memory, and no random numbers are drawn for it.

    torch knows the shape that ``normal_`` gives without help, but asks ``torch._dynamo`` for it,
    whose import takes two seconds of each command that reads an encoder.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


def last_map(encoder: nn.Module, blank: Tensor) -> tuple[str, torch.Size] | None:
    """The layer that gives a map with more than one place last, before it is averaged.

    Args:
        encoder: any, in evaluation mode.
        blank: an image (1, channels, side, side) to try it on.

    Returns:
        Its name, and the shape (channels, height, width) of its map; None if there is none.
    """
    found, hooks = list[tuple[str, torch.Size]](), []
    for name, part in encoder.named_modules():
        if isinstance(part, nn.AdaptiveAvgPool2d):
            continue

        def take(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            placed = as_map(encoder, module, output)
            if name and placed is not None and placed.ndim == 4 and placed[0, 0].numel() > 1:
                found.append((name, placed.shape[1:]))

        hooks.append(part.register_forward_hook(take))
    try:
        with torch.no_grad():
            encoder(blank)
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1] if found else None


def is_of_last_part(encoder: nn.Module, layer: str) -> bool:
    """Whether a layer is in the last part of an encoder, or holds it."""
    numbers = _part_numbers(encoder)
    inside = (numbers[module] for module in encoder.get_submodule(layer).modules())
    return max(inside) == max(numbers.values())


def output_and_map(
    network: nn.Module, encoder: nn.Module, layer: str, images: Tensor
) -> tuple[Tensor, Tensor]:
    """What a network gives, and the map that a layer of its encoder gave on the way.

    Args:
        network: with the encoder in it.
        encoder: its part that has the layer.
        layer: as ``last_map`` found it.
        images: (batch, channels, side, side).

    Returns:
        The output, and (batch, channels, height, width).
    """
    found, part = list[Tensor](), encoder.get_submodule(layer)
    hook = part.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        vectors: Tensor = network(images)
    finally:
        hook.remove()
    placed = as_map(encoder, part, found[-1])
    assert placed is not None
    return vectors, placed


def as_map(encoder: nn.Module, part: nn.Module, output: Any) -> Tensor | None:
    """(batch, dim) or (batch, channels, height, width); None for anything else.

    Args:
        encoder: says in which form its maps are.
        part: of it, that gave the output.
        output: a tensor, or anything.
    """
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        return None
    if output.ndim == 4:
        # timm says so where the channels are last, torchvision does not of its Swin transformers.
        said = (getattr(one, "output_fmt", "") for one in (encoder, part))
        last = "NHWC" in said or type(encoder).__name__ == "SwinTransformer"
        return output.permute(0, 3, 1, 2) if last else output
    return output if output.ndim == 2 else _patches(encoder, output)


def _patches(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """(batch, tokens, channels) to (batch, channels, height, width), without the first tokens."""
    first = int(getattr(encoder, "num_prefix_tokens", hasattr(encoder, "class_token")))
    count = tokens.shape[1]
    # Views are square, so patches are: before the class token joins them, they are so already.
    skipped = next((n for n in (first, 0) if math.isqrt(max(0, count - n)) ** 2 == count - n), 0)
    patches = tokens[:, skipped:].transpose(1, 2)
    side = math.isqrt(patches.shape[2])
    square = side * side == patches.shape[2]
    return patches.reshape(*patches.shape[:2], *((side, side) if square else (-1, 1)))


class _NothingDrawn(TorchFunctionMode):
    """Leaves a tensor without memory as it is where normal numbers would be drawn into it."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        if function is Tensor.normal_ and arguments[0].is_meta:
            return arguments[0]
        return function(*arguments, **(options or {}))


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
