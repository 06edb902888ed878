"""Normalisation: over what set of images encoder and head take their statistics.

Batch norm lets the images of one batch see each other. In contrastive learning that leaks which
key belongs to which query (MoCo, section 3.3), and it makes one batch in chunks differ from the
batch as a whole. `use_norm` puts any of these in its place:

    split, shuffle  SplitBatchNorm: groups of images, as if each had its own device
    sync            GlobalBatchNorm: the batches of all processes together
    layer, group    ChannelNorm: each image alone (Wu and He 2018)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.config.model import NormConfig
from diptych.errors import ConfigError
from diptych.runtime.distributed import gather_rows, process_count, sum_over_processes


def use_norm(network: nn.Module, config: NormConfig) -> nn.Module:
    """Replaces the batch norms of a network by the norm that a config asks for.

    Names and initial values of weights stay as they are, and the parameters are the same
    objects. The statistics stay too, where the new norm keeps any. Norms of other kinds, as
    the layer norms of a transformer, are left alone.

    Args:
        network: any; it is changed in place.
        config: what to put in place of the batch norms. `batch` changes nothing.

    Returns:
        The network, or its replacement if the network is itself a batch norm.

    Raises:
        ConfigError: there is a batch norm of a type that is not known, or a group of channels
            that would hold one value only.
    """
    if config.kind == "batch":
        return network
    # By object: a norm that stands in two places is replaced by one, and its weights stay tied.
    replacements = {
        module: _replacement(module, config)
        for module in network.modules()
        if isinstance(module, _BatchNorm)
    }
    for parent in list(network.modules()):
        # Not named_children: it names a norm that stands in two places only once.
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, replacements[child])
    return replacements[network] if isinstance(network, _BatchNorm) else network


class OwnBatchNorm(_BatchNorm):
    """A batch norm that differs from torch's only in the batch that it takes in training.

    Child modules are applied after it: timm keeps a dropout and an activation inside its norms.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, ...) to the same shape."""
        self._check_input_dim(input)
        if self.training or self.running_mean is None:
            normalised = self.normalise_batch(input)
        else:
            normalised = super().forward(input)
        return _followed(self, normalised)

    def normalise_batch(self, values: Tensor) -> Tensor:
        """Normalises by the statistics of the batch, and moves the running ones."""
        raise NotImplementedError

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Moves the running statistics one step, if they are tracked and this is training.

        Args:
            mean: (channels,).
            unbiased_variance: (channels,).
        """
        if not (self.training and self.track_running_stats):
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        # Before the count moves on: a plain mean is taken over it and one more.
        momentum = _next_momentum(self)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"wanted (batch, channels, ...), got the shape {tuple(input.shape)}")


class SplitBatchNorm(OwnBatchNorm):
    """Batch norm over groups of consecutive images of a batch (MoCo, section 3.3).

    On one device it does what many devices do that each normalise their share of the batch. The
    running statistics move once per batch, by the mean over groups of mean and unbiased variance.

    Attributes:
        images_per_group: rows that share statistics. The last group of a batch may be smaller.
    """

    def __init__(self, num_features: int, *, images_per_group: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.images_per_group = images_per_group

    def normalise_batch(self, values: Tensor) -> Tensor:
        """Normalises each group by itself.

        Raises:
            ConfigError: one image would be left alone in the last group.
        """
        groups = torch.split(values, self.images_per_group)
        if len(groups[-1]) < 2:
            raise ConfigError(
                f"norm.images_per_group = {self.images_per_group} leaves one image of a batch of "
                f"{len(values)} alone in the last group, where it has no statistics to share. Use "
                "a group size that divides the batch, or another batch size."
            )
        shape = (len(groups), values.shape[1])
        means = values.new_zeros(shape, dtype=_statistics_type(values))
        variances = torch.zeros_like(means)
        weight, bias = (_as_type(means.dtype, weight) for weight in (self.weight, self.bias))
        # A loop, although groups could become channels of a single call. That call needs a copy
        # of the maps in another layout before and after: on CPU, forward and backward took 1.9
        # (contiguous) and 2.6 times (channels-last) as long at 256x64x32x32 in groups of 32, and
        # 1.2 to 2 times at smaller maps. The loop keeps the layout; it costs 6 to 12% more than
        # plain batch norm there, and up to twice on maps of 4x4, where both take next to nothing.
        normalised = torch.cat(
            [
                # The statistics are rows of means and variances, written in place.
                # With momentum 1 the "running" statistics become those of the group.
                functional.batch_norm(group, mean, variance, weight, bias, True, 1.0, self.eps)
                for group, mean, variance in zip(groups, means, variances, strict=True)
            ]
        )
        self.update_statistics(means.mean(dim=0), variances.mean(dim=0))
        return normalised

    def extra_repr(self) -> str:
        """Torch's, and the size of a group."""
        inherited = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inherited}, images_per_group={self.images_per_group}"


class GlobalBatchNorm(OwnBatchNorm):
    """Batch norm over the batches of all processes, which may be of unequal size.

    Unlike `nn.SyncBatchNorm` it works on CPU as well. Output, gradients and running statistics
    are those of one process with the whole batch; the gradients of weight and bias are this
    process's part of the sum. Forward and backward each cost one exchange of 2 x channels numbers.
    """

    def normalise_batch(self, values: Tensor) -> Tensor:
        """Normalises by the statistics of all processes, each of which has an image at least.

        In evaluation mode, where a norm keeps none, by those of this process's batch: the others
        need not evaluate at the same time, or anything.
        """
        if process_count() == 1 or not self.training:
            return _BatchNorm.forward(self, values)
        if torch.compiler.is_compiling():
            return _out_of_the_graph(self, values)
        return self.normalise_over_processes(values)

    def normalise_over_processes(self, values: Tensor) -> Tensor:
        """The same by this project's own arithmetic, whatever the number of processes."""
        count, mean, variance = _statistics_over_processes(values)
        self.update_statistics(mean, variance * (count / (count - 1)))
        weight, bias = (_as_type(mean.dtype, weight) for weight in (self.weight, self.bias))
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        normalised: Tensor = _NormalisedOverProcesses.apply(
            values, weight, bias, mean, variance, count, self.eps
        )
        return normalised


# Not torch.compiler.disable, which imports torch._dynamo at once: that takes a second or two.
@_disable_dynamo
def _out_of_the_graph(norm: GlobalBatchNorm, values: Tensor) -> Tensor:
    """Normalises over processes outside of a compiled graph, which knows no exchange."""
    return norm.normalise_over_processes(values)


class ChannelNorm(nn.GroupNorm):
    """Group norm with what follows a batch norm inside one module (see OwnBatchNorm).

    With one group it is the layer norm of maps. It takes (batch, channels) as well.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, ...) to the same shape."""
        return _followed(self, super().forward(input))


@contextmanager
def pooled_statistics(network: nn.Module, chunk: int, chunks: int) -> Iterator[None]:
    """Makes the passes of a batch in equal chunks move the running statistics as one pass.

    After the last chunk r = (1 - m) r0 + m mean(s_0 ... s_{k-1}), for the momentum m and the
    statistics s_j of k chunks. This fixes the momentum of each: its share in the end is
    a_j (1 - a_{j+1}) ... (1 - a_{k-1}) = m / k, so a_{k-1} = m / k, and going backwards
    a_j = m / (k - (k - 1 - j) m). `num_batches_tracked` advances with the last chunk only.

    Args:
        network: whose batch norms, torch's and ours, pass one chunk, once, in the context.
        chunk: which, from 0, in order.
        chunks: how many there are.

    Raises:
        ValueError: there is no such chunk.
    """
    if not 0 <= chunk < chunks:
        raise ValueError(f"chunk {chunk} is not one of {chunks}, counted from 0")
    norms = _tracking_norms(network)
    momenta = [norm.momentum for norm in norms]
    batches = [norm.num_batches_tracked for norm in norms]
    batches_before = [None if count is None else count.clone() for count in batches]
    for norm in norms:
        momentum = _next_momentum(norm)
        norm.momentum = momentum / (chunks - (chunks - 1 - chunk) * momentum)
    try:
        yield
    finally:
        for norm, original in zip(norms, momenta, strict=True):
            norm.momentum = original
        if chunk < chunks - 1:
            for count, before in zip(batches, batches_before, strict=True):
                if count is not None and before is not None:
                    count.copy_(before)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Keeps passes in training mode from moving running statistics, as when one is repeated."""
    norms = _tracking_norms(network)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # A share of 0, and not `track_running_stats = False`: the pass must save the same tensors
        # for its backward pass as one that is not frozen, or it could not be repeated for it.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _tracking_norms(network: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


def _next_momentum(norm: _BatchNorm) -> float:
    """The share of the next batch in the running statistics; torch's None is a plain mean."""
    if norm.momentum is not None:
        return norm.momentum
    assert norm.num_batches_tracked is not None
    return 1.0 / (int(norm.num_batches_tracked) + 1)


def _replacement(norm: _BatchNorm, config: NormConfig) -> nn.Module:
    """The norm that a config asks for, with what the old one holds."""
    _require_known(norm)
    new: nn.Module
    if config.is_per_image:
        groups = 1 if config.kind == "layer" else _group_count(norm, config.group.channel_groups)
        new = ChannelNorm(groups, norm.num_features, eps=norm.eps, affine=norm.affine)
        held = ["weight", "bias"]
    else:
        options: dict[str, Any] = {
            name: getattr(norm, name) for name in ("eps", "momentum", "affine")
        }
        options["track_running_stats"] = norm.track_running_stats
        if config.is_grouped:
            options["images_per_group"] = config.images_per_group
            new = SplitBatchNorm(norm.num_features, **options)
        else:
            new = GlobalBatchNorm(norm.num_features, **options)
        held = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    for name in held:  # the same objects: device, type and requires_grad come with them
        setattr(new, name, getattr(norm, name))
    for name, follower in norm.named_children():
        new.add_module(name, follower)
    new.training = norm.training
    return new


def _require_known(norm: _BatchNorm) -> None:
    """Refuses subclasses of batch norm that may do more than is known here."""
    is_torchs = type(norm).__module__.startswith("torch.nn.modules.")
    # By name: importing timm takes half a second, which other networks need not pay.
    is_timms = type(norm).__name__ == "BatchNormAct2d" and set(dict(norm.named_children())) <= {
        "drop",
        "act",
    }
    is_lazy = isinstance(norm, nn.modules.lazy.LazyModuleMixin)
    if is_lazy or not (is_torchs or is_timms or isinstance(norm, OwnBatchNorm)):
        raise ConfigError(
            f"norm.kind replaces BatchNorm1d, BatchNorm2d and timm's BatchNormAct2d, but the "
            f"network has a {type(norm).__name__}. Use norm.kind = 'batch', or another network."
        )


def _group_count(norm: _BatchNorm, most: int) -> int:
    """The largest divisor of the channels that is at most so many."""
    channels = norm.num_features
    groups = next(count for count in range(min(most, channels), 0, -1) if channels % count == 0)
    # One value has no variance: the norm of vectors would give zero for whatever it gets.
    if groups == channels and isinstance(norm, nn.BatchNorm1d):
        raise ConfigError(
            f"norm.group.channel_groups = {most} leaves one of {channels} features in a group, "
            f"whose norm is always 0. Use at most {max(1, channels // 2)}."
        )
    return groups


def _followed(norm: nn.Module, normalised: Tensor) -> Tensor:
    """What a fused norm does next: in timm's, dropout and then the activation."""
    for follower in norm.children():
        normalised = follower(normalised)
    return normalised


def _statistics_type(values: Tensor) -> torch.dtype:
    """Statistics of half-precision values are kept in float32."""
    return torch.promote_types(values.dtype, torch.float32)


def _as_type(wanted: torch.dtype, weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.to(wanted)


@torch.no_grad()
def _statistics_over_processes(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance over all processes, by the formula of Chan et al. (1979).

    Sums of squared deviations from each process's own mean are joined, not sums of squares: the
    difference of the mean square and the squared mean has no correct digit when means are large.

    Args:
        values: (batch, channels, ...), the batch of any size.

    Returns:
        A count of values per channel, a mean of (channels,), a variance of (channels,).
    """
    channels = values.shape[1]
    unused = values.new_zeros(channels, dtype=_statistics_type(values))
    # The kernel of batch norm itself: on channels-last maps on CPU 30 times as fast as var_mean.
    mean, variance = torch.batch_norm_update_stats(values, unused, unused.clone(), 0.0)
    count = mean.new_full((1,), values.numel() // channels)
    gathered = gather_rows(torch.cat([mean, variance * count, count])[None])
    means, squares, counts = torch.split(
        gathered, [channels, channels, 1], dim=1
    )  # a row per process
    whole = counts.sum()
    # Relative to one of them, so that rounding is relative to how means differ.
    mean = means[0] + (counts * (means - means[0])).sum(dim=0) / whole
    squares = squares + counts * (means - mean).square()
    return whole, mean, squares.sum(dim=0) / whole


class _NormalisedOverProcesses(torch.autograd.Function):
    """Batch norm by the statistics of all processes, with the gradient that flows through them.

    y = w (x - mean) s + b with s = 1 / sqrt(variance + eps). With dw = sum dy (x - mean) s and
    db = sum dy over all n values on all processes, the gradient of the values is
    dx = w s dy - w s (db + (x - mean) s dw) / n (Ioffe and Szegedy 2015, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.eps = eps
        return functional.batch_norm(values, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, variance, count = ctx.saved_tensors
        (gradient,) = gradients
        wanted = [False, True, True]  # not that of the values, for which both sums are needed first
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, values, weight, mean, variance, None, None, False, ctx.eps, wanted
        )
        weight_sum, bias_sum = sum_over_processes(torch.stack([of_weight, of_bias])) / count
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias, None, None, None, None
        slope = weight * torch.rsqrt(variance + ctx.eps)
        # Passes over the maps are what takes the time. The second term is a norm of the values with
        # other weights, one pass of torch's kernel; the first one is added in another.
        of_values = functional.batch_norm(
            values.to(mean.dtype),
            mean,
            variance,
            -slope * weight_sum,
            -slope * bias_sum,
            eps=ctx.eps,
        )
        shape = (1, -1, *[1] * (values.dim() - 2))
        of_values.addcmul_(gradient.to(mean.dtype), slope.view(shape))
        return of_values.to(values.dtype), of_weight, of_bias, None, None, None, None
