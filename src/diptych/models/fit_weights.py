"""Foreign weights made to fit a network: every tensor by name and shape, or a refusal.

Two things may differ and are adapted: the number of channels of the images, and the grid of a
vision transformer's position embeddings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.config.data import ViewsConfig
from diptych.errors import ConfigError
from diptych.models.foreign import Candidate, candidates, why_left_out

_POSITIONS: Final = ("pos_embed", "encoder.pos_embedding")
_PREFIX_TOKENS: Final = (1, 0, 2, 5)  # in front of the patches: a class token, and others
_COUNTER: Final = "num_batches_tracked"
_SELECTIVE: Final = ".main_conv."  # in names of SimCLR v2's networks with selective kernels
_NAMED: Final = 3  # tensors that a message names, at most


@dataclass(frozen=True)
class Fitted:
    """The state of a network, from foreign weights.

    Attributes:
        state: of the network, on the CPU, in its types.
        sentences: what matched, what was left out and why, what was adapted.
    """

    state: dict[str, Tensor]
    sentences: list[str]


@dataclass(frozen=True)
class _Comparison:
    """How a candidate compares with a network."""

    candidate: Candidate
    matched: int
    missing: list[str]
    misshapen: list[str]
    left_over: list[str]

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.misshapen or self.left_over)


def fit_weights(
    content: Mapping[str, Any], network: nn.Module, views: ViewsConfig, origin: str
) -> Fitted:
    """The state of a network from the first layout by which the whole of it is found.

    Args:
        content: of the file.
        network: an encoder; only names, shapes and types of its state are looked at, and its
            position embeddings' length, so it may be on the meta device.
        views: has the mean and the standard deviation that the weights were trained with.
        origin: of the weights, for errors.

    Raises:
        ConfigError: by no layout; names the nearest and what is wrong with it.
    """
    nearest: _Comparison | None = None
    for candidate in candidates(content):
        found = _compare(candidate, network)
        if found.is_whole:
            return _fitted(found, network, views, origin)
        if nearest is None or found.matched > nearest.matched:
            nearest = found
    raise _misfit(nearest, network, origin)


def _compare(candidate: Candidate, network: nn.Module) -> _Comparison:
    wanted, came = network.state_dict(), candidate.tensors
    missing, misshapen, matched = list[str](), list[str](), 0
    stem = stem_of(network)
    for name, ours in wanted.items():
        if name not in came:
            # Statistics do without it: files of before torch 0.4.1 have none.
            if not name.endswith(_COUNTER):
                missing.append(name)
        elif (wrong := _wrong(name, ours, came[name], stem)) is not None:
            misshapen.append(f"{name} is {wrong}")
        else:
            matched += 1
    left_over = [
        name
        for name in came
        if name not in wanted and not candidate.is_left_out(name) and not name.endswith(_COUNTER)
    ]
    return _Comparison(candidate, matched, missing, misshapen, left_over)


def _wrong(name: str, ours: Tensor, theirs: Tensor, stem: str) -> str | None:
    """What is wrong with a tensor, in words; nothing where it fits or can be adapted."""
    if theirs.layout != torch.strided or theirs.is_meta or theirs.is_quantized:
        return "sparse, quantized or empty there"
    if ours.is_floating_point() != theirs.is_floating_point():
        return f"of {theirs.dtype} there, {ours.dtype} here"
    shape, other = tuple(ours.shape), tuple(theirs.shape)
    alike = shape == other
    if name == stem and len(other) == len(shape):
        alike = shape[0] == other[0] and shape[2:] == other[2:] and other[1] > 0
    elif name in _POSITIONS and len(other) == 3 and other[::2] == shape[::2]:
        alike = _prefix_tokens(other[1], shape[1]) is not None
    return None if alike else f"{other} there, {shape} here"


def _fitted(found: _Comparison, network: nn.Module, views: ViewsConfig, origin: str) -> Fitted:
    came, stem = found.candidate.tensors, stem_of(network)
    state, sentences = dict[str, Tensor](), [_what_matched(found, network, origin)]
    if found.candidate.layout.note:
        sentences.append(found.candidate.layout.note)
    for name, ours in network.state_dict().items():
        if name not in came:
            state[name] = torch.zeros(ours.shape, dtype=ours.dtype)
            continue
        # In at least fp32, as fp16 would round what is summed; a copy, as files may be mapped.
        tensor = came[name].detach().to(ours.dtype, copy=True).contiguous()
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"weights = {origin!r}: {name} holds numbers that are not finite. Use weights from "
                "before their training went astray, or fetch them again."
            )
        if name in _POSITIONS and tensor.shape != ours.shape:
            tensor = _resampled(tensor, ours.shape[1])
            sides = [math.isqrt(n) for n in (came[name].shape[1], ours.shape[1])]
            sentences.append(
                f"Position embeddings are interpolated from {sides[0]} x {sides[0]} patches to "
                f"{sides[1]} x {sides[1]}."
            )
        state[name] = tensor
    channels, there = network.state_dict()[stem].shape[1], came[stem].shape[1]
    if channels != there:
        _change_channels(state, network, stem, channels, views)
        how = "summed" if channels == 1 else "repeated and rescaled"
        sentences.append(
            f"The first convolution saw {there} channel{'s' * (there > 1)} and the images have "
            f"{channels}: its kernels are {how}."
        )
    return Fitted(state, sentences)


def _what_matched(found: _Comparison, network: nn.Module, origin: str) -> str:
    """Which layout, how many tensors, and what is left out for which reason."""
    candidate, wanted = found.candidate, network.state_dict()
    sentence = f"Weights of {origin}: {candidate.words}; all {found.matched} tensors fit."
    reasons: dict[str, int] = {}
    for name in (*(n for n in candidate.tensors if n not in wanted), *candidate.others):
        reasons[why_left_out(name)] = reasons.get(why_left_out(name), 0) + 1
    if reasons:
        listed = ", ".join(f"{why} ({count})" for why, count in reasons.items())
        sentence += f" Left out: {listed}."
    return sentence


def _misfit(nearest: _Comparison | None, network: nn.Module, origin: str) -> ConfigError:
    if nearest is None:
        return ConfigError(
            f"weights = {origin!r} hold no tensors under names. Wanted a state dict, alone or "
            "under a key as state_dict or model."
        )
    lists = (
        ("missing", nearest.missing),
        ("of another form", nearest.misshapen),
        ("not of this network", nearest.left_over),
    )
    wrong = "; ".join(
        f"{what}: {', '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for what, names in lists
        if names
    )
    seen = nearest.candidate.settings["encoder"]
    looks = ", ".join(f"--encoder.{n.replace('_', '-')} {v}" for n, v in seen.items())
    mend = f"They look like {looks}" if seen else "Name the network they are of: --encoder NAME"
    if nearest.left_over and all("running_" in name for name in nearest.left_over):
        mend = "Their batch norms have statistics: set --norm.kind batch, split, shuffle or sync"
    if any("relative_position" in one for one in nearest.misshapen):
        mend = "Their windows go with the side that they were trained on: --views.side-pixels 224?"
    if any(_SELECTIVE in name for name in nearest.candidate.tensors):
        mend = "They have selective kernels, which are not read; take SimCLR v2's weights without"
    return ConfigError(
        f"weights = {origin!r} do not fit the encoder. Nearest is {nearest.candidate.words}: "
        f"{nearest.matched} of {len(network.state_dict())} tensors fit; {wrong}. {mend}."
    )


# --- channels ---------------------------------------------------------------------------------


def stem_of(network: nn.Module) -> str:
    """The name of the first kernel that sees the images."""
    return next(name for name, one in network.state_dict().items() if one.ndim == 4)


def _change_channels(
    state: dict[str, Tensor], network: nn.Module, stem: str, channels: int, views: ViewsConfig
) -> None:
    """Makes the first kernels take so many channels, in place.

    A channel is normalised by its own mean and deviation where there are three, else by the mean of
    each; kernels are rescaled and what is subtracted is shifted for that, so that an image whose
    channels are alike gives what it gave (but where a border of zeros begins).
    """
    kernels = state[stem]
    there = kernels.shape[1]
    # New channel j is one of theirs; one alone is the sum of all.
    sources = list(range(there)) if channels == 1 else [j % there for j in range(channels)]
    share = 1.0 if channels == 1 else there / channels
    mean, std = _statistics(views, there, sources)
    new_mean, new_std = _statistics(views, channels, [0] * there if channels == 1 else None)
    taken = kernels[:, sources] * share / std.view(1, -1, 1, 1)
    shift = (taken * (new_mean - mean).view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
    scaled = taken * new_std.view(1, -1, 1, 1)
    state[stem] = scaled.sum(dim=1, keepdim=True) if channels == 1 else scaled
    _add_before_norm(state, network, stem, shift)


def _statistics(
    views: ViewsConfig, channels: int, chosen: list[int] | None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of some channels of images with so many."""
    found = []
    for three in (views.pixel_mean, views.pixel_std):
        whole = torch.tensor(three if channels == 3 else [sum(three) / 3] * channels)
        found.append(whole if chosen is None else whole[chosen])
    return found[0], found[1]


def _add_before_norm(
    state: dict[str, Tensor], network: nn.Module, stem: str, shift: Tensor
) -> None:
    """Adds a constant to the output of the first convolution, in its bias or the norm behind it."""
    position = stem.removesuffix(".weight")
    if f"{position}.bias" in state:
        state[f"{position}.bias"] += shift
        return
    names = list(dict(network.named_modules()))
    for name in names[names.index(position) + 1 :]:
        module = network.get_submodule(name)
        if isinstance(module, _BatchNorm) and f"{name}.running_mean" in state:
            if module.num_features == len(shift):
                state[f"{name}.running_mean"] -= shift
            return


# --- positions --------------------------------------------------------------------------------


def _prefix_tokens(theirs: int, ours: int) -> int | None:
    """Tokens in front of the patches, if the rest is a square grid in both."""
    for count in _PREFIX_TOKENS:
        rests = (theirs - count, ours - count)
        if all(rest > 0 and math.isqrt(rest) ** 2 == rest for rest in rests):
            return count
    return None


def _resampled(positions: Tensor, length: int) -> Tensor:
    """Position embeddings (1, tokens, dim) for another grid, by bicubic interpolation."""
    first = _prefix_tokens(positions.shape[1], length)
    assert first is not None
    tokens, grid = positions[:, :first], positions[:, first:]
    old, new = (math.isqrt(n - first) for n in (positions.shape[1], length))
    maps = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    maps = functional.interpolate(maps, (new, new), mode="bicubic", antialias=True)
    return torch.cat([tokens, maps.permute(0, 2, 3, 1).reshape(1, new * new, -1)], dim=1)
