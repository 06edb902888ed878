"""ResNets: torchvision's, k times as wide, with selective kernels, and one for tiny images."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

STAGE_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")
_TORCHVISIONS_CLASSES = 1000
_SQUEEZE_RATIO = 16  # channels of a branch to each hidden feature of its attention
_SQUEEZED_FEATURES_AT_LEAST = 32
_WIDE: Final = 256
"""Channels of a convolution whose maps of 3 x 3 are small, too; narrower ones gain to 2 x 2."""
_GEOMETRY: Final = ((3, 3), (1, 1), (1, 1), 1, "zeros")
"""Kernel, padding, dilation, groups and what the border holds."""
_STRIDES: Final = ((1, 1), (2, 2))
_BATCHED: Final = 4  # dimensions; an image without a batch has three
_Window = tuple[slice, slice]


class Convolution3x3(nn.Conv2d):
    """A 3x3 convolution with a border of one pixel, which learns fast on maps of a few places.

    On a map of 2 x 2 more than half of the weights meet the border alone, and on a single place
    eight of nine. Libraries for CPUs multiply by it all the same, and one image at a time. Here
    each place of the output is one product of matrices over the batch: training ResNet-18 at 32
    pixels takes two thirds of the time (`benchmarks/small_maps.py`). Sums are rounded in another
    order. Encoders are used, compared and exported as the convolution that they are.

    Args:
        features: channels in.
        outer: channels out.
        stride: 1 or 2.
    """

    def __init__(self, features: int, outer: int, stride: int = 1) -> None:
        super().__init__(features, outer, 3, stride, padding=1, bias=False)

    def _conv_forward(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(batch, features, height, width) to (batch, outer, height / stride, width / stride)."""
        if self.training and self._is_small(maps, weight) and self._is_as_built(bias):
            stride = self.stride[0]
            places: Tensor = _PlaceByPlace.apply(
                maps.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1), stride
            )
            sides = [-(-side // stride) for side in maps.shape[-2:]]
            return places.view(len(maps), *sides, self.out_channels).permute(0, 3, 1, 2)
        return super()._conv_forward(maps, weight, bias)

    def _get_name(self) -> str:
        return "Conv2d"  # as which it is printed, and built by code that others run

    def _is_as_built(self, bias: Tensor | None) -> bool:
        """Whether nobody has dilated it, given it a bias, or made it another convolution."""
        geometry = self.kernel_size, self.padding, self.dilation, self.groups, self.padding_mode
        return bias is None and geometry == _GEOMETRY and self.stride in _STRIDES

    def _is_small(self, maps: Tensor, weight: Tensor) -> bool:
        """Whether products are faster, as measured.

        Lower precision is left to the library, and so is what only counts or traces the network,
        for which there are tensors of other classes.
        """
        if type(maps) is not Tensor or maps.device.type != "cpu" or maps.ndim != _BATCHED:
            return False
        most = 3 if self.out_channels >= _WIDE else 2
        places = -(-max(maps.shape[-2:]) // self.stride[0])
        lower = torch.is_autocast_enabled("cpu") or maps.dtype != weight.dtype
        return places <= most and not lower and not torch.compiler.is_compiling()


class _PlaceByPlace(torch.autograd.Function):
    """A 3x3 convolution as one product for each place of the output.

    Of the weights only those take part that meet a pixel there, and not the border. Channels are
    last in all tensors here. Gradients have gradients, and ``torch.func`` may map over it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(pixels: Tensor, kernel: Tensor, stride: int) -> Tensor:
        """(batch, height, width, in) and (out, 3, 3, in) to (batch, places, out)."""
        places = [
            pixels[:, *reach].flatten(1) @ kernel[:, *met].flatten(1).T
            for reach, met in _places(pixels, stride)
        ]
        return torch.stack(places, dim=1)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps what gradients are computed from."""
        pixels, kernel, context.stride = inputs
        context.save_for_backward(pixels, kernel)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Those of the pixels and of the kernel, as far as they are asked for."""
        pixels, kernel = context.saved_tensors
        to_pixels, to_kernel, _ = context.needs_input_grad
        of_pixels = gradients[0].new_zeros(pixels.shape) if to_pixels else None
        of_kernel = gradients[0].new_zeros(kernel.shape) if to_kernel else None
        # A caller may have autocast on here that was off in the forward pass.
        with torch.autocast("cpu", enabled=False):
            for place, (reach, met) in enumerate(_places(pixels, context.stride)):
                gradient = gradients[0][:, place]
                seen, weights = pixels[:, *reach], kernel[:, *met]
                if of_pixels is not None:
                    of_pixels[:, *reach] += (gradient @ weights.flatten(1)).view(seen.shape)
                if of_kernel is not None:
                    of_kernel[:, *met] += (gradient.T @ seen.flatten(1)).view(weights.shape)
        return of_pixels, of_kernel, None


def _places(pixels: Tensor, stride: int) -> list[tuple[_Window, _Window]]:
    """For each place of the output, row by row: the pixels in reach, and the weights they meet."""
    rows, columns = (_windows(size, stride) for size in pixels.shape[1:3])
    return [((height, width), (over, across)) for height, over in rows for width, across in columns]


def _windows(size: int, stride: int) -> list[tuple[slice, slice]]:
    """The same along one side."""
    found = []
    for place in range(0, size, stride):
        first, end = max(0, place - 1), min(size, place + 2)
        found.append((slice(first, end), slice(first - place + 1, end - place + 1)))
    return found


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015, 1512.03385, figure 5, left).

    Args:
        features: channels in.
        inner: channels of the convolutions, and out.
        stride: of the first convolution.
        downsample: the shortcut; the identity when None.
    """

    expansion = 1
    """Channels out for each inner one."""

    def __init__(
        self, features: int, inner: int, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = Convolution3x3(features, inner, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Convolution3x3(inner, inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, features, height, width) to (batch, inner, height / stride, width / stride)."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        inner = self.relu(self.bn1(self.conv1(maps)))
        joined: Tensor = self.relu(self.bn2(self.conv2(inner)).add_(shortcut))
        return joined


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2015, figure 5, right).

    The stride is that of the 3x3 convolution, as in torchvision and SimCLR, and not of the first.

    Args:
        features: channels in.
        inner: channels of the first two convolutions; four times as many come out.
        stride: of the second convolution.
        downsample: the shortcut; the identity when None.
    """

    expansion = 4
    """Channels out for each inner one."""

    def __init__(
        self, features: int, inner: int, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2: nn.Module = Convolution3x3(inner, inner, stride)
        self.bn2: nn.Module = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, inner * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, features, height, width) to (batch, 4 x inner, height / stride, ...)."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        inner = self.relu(self.bn1(self.conv1(maps)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        joined: Tensor = self.relu(self.bn3(self.conv3(inner)).add_(shortcut))
        return joined


class ResNet(nn.Module):
    """A ResNet under torchvision's attribute names, of any width, with or without SK.

    Of one width and without SK it is torchvision's, weights of a seed included; importing
    torchvision takes longer than a small network its first step. All channels are multiplied, the
    stem's and the output's as well (SimCLR, section 4.1 and figure 7); torchvision's
    ``width_per_group`` widens the inside of bottlenecks only.

    With selective kernels it is SimCLR v2's network (section 2, in the form of its published code):
    each bottleneck's 3x3 convolution is a ``SelectiveKernels``, the stem is three 3x3
    convolutions and a shortcut averages before its 1x1 convolution (ResNet-D).
    Without the classifier it has as many millions of parameters as the papers say: ResNet-50 24,
    94, 375 (1x, 2x, 4x); with SK 35 (1x), 140 (2x), ResNet-152 89 (1x), 795 (3x).

    Args:
        name: of resnet18 to resnet152; selective kernels need a network of bottlenecks.
        width_multiplier: k.
        selective_kernels: whether bottlenecks choose their kernels.
    """

    def __init__(
        self, name: str, *, width_multiplier: int = 1, selective_kernels: bool = False
    ) -> None:
        super().__init__()
        width = 64 * width_multiplier
        self.selective_kernels = selective_kernels
        self.block = Bottleneck if name in BOTTLENECKS else BasicBlock
        self.conv1: nn.Module
        if selective_kernels:
            self.conv1 = _three_convolutions(3, width)
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        one, two, three, four = STAGE_BLOCKS[name]
        expansion = self.block.expansion
        self.layer1 = self._stage(width, width, one, stride=1)
        self.layer2 = self._stage(width * expansion, width * 2, two, stride=2)
        self.layer3 = self._stage(width * expansion * 2, width * 4, three, stride=2)
        self.layer4 = self._stage(width * expansion * 4, width * 8, four, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        # Torchvision draws a classifier before the weights that stay.
        self.fc: nn.Module = nn.Linear(width * expansion * 8, _TORCHVISIONS_CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, 512 x expansion x width_multiplier)."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        features: Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return features

    def _stage(self, features: int, inner: int, count: int, stride: int) -> nn.Sequential:
        """So many blocks, the first of which takes the stride and the change of channels."""
        outer = inner * self.block.expansion
        blocks = nn.Sequential()
        for index in range(count):
            first = index == 0
            shortcut = None
            if first and (stride != 1 or features != outer):
                shortcut = self._shortcut(features, outer, stride)
            block = self.block(features, inner, stride if first else 1, shortcut)
            if self.selective_kernels:
                # What it mixes is normalised and not negative: the block's own norm has nothing
                # left to do, and its ReLU changes nothing.
                block.conv2 = SelectiveKernels(inner, stride if first else 1)
                block.bn2 = nn.Identity()
            blocks.append(block)
            features = outer
        return blocks

    def _shortcut(self, features: int, outer: int, stride: int) -> nn.Sequential:
        if not self.selective_kernels or stride == 1:
            convolution = nn.Conv2d(features, outer, 1, stride, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outer))
        return nn.Sequential(
            # Rounded up, as the convolutions beside it do: maps of odd sides must fit the sum.
            nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(features, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )


class SelectiveKernels(nn.Module):
    """Two 3x3 convolutions, mixed channel by channel by attention (SimCLR v2, section 2).

    In Li et al. 2019 (1903.06586, section 3.1) the second branch is dilated, as if it were 5x5.
    Here both are 3x3 and one convolution computes them, as in SimCLR v2's published code, which
    the sizes in its table 1 are of.

    Args:
        features: channels in, and channels out.
        stride: of the convolution.
    """

    def __init__(self, features: int, stride: int) -> None:
        super().__init__()
        squeezed = max(features // _SQUEEZE_RATIO, _SQUEEZED_FEATURES_AT_LEAST)
        self.conv = Convolution3x3(features, 2 * features, stride)
        self.bn = nn.BatchNorm2d(2 * features)
        self.relu = nn.ReLU(inplace=True)
        self.squeeze = nn.Linear(features, squeezed, bias=False)
        self.squeeze_bn = nn.BatchNorm1d(squeezed)
        self.attend = nn.Linear(squeezed, 2 * features, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, features, height, width) to (batch, features, height / stride, ...)."""
        branches = self.relu(self.bn(self.conv(maps))).unflatten(1, (2, -1))
        mixed: Tensor = (branches * self.attention(branches)[..., None, None]).sum(dim=1)
        return mixed

    def attention(self, branches: Tensor) -> Tensor:
        """(batch, 2, features, height, width) to weights (batch, 2, features); the two sum to 1."""
        pooled = branches.sum(dim=1).mean(dim=(2, 3))
        squeezed = self.relu(self.squeeze_bn(self.squeeze(pooled)))
        scores: Tensor = self.attend(squeezed).unflatten(1, (2, -1))
        return scores.softmax(dim=1)


def small_stem(channels: int, width: int, *, border: int) -> nn.Conv2d:
    """One 3x3 convolution for the stem (SimCLR, B.9), with torchvision's initial weights."""
    convolution = nn.Conv2d(channels, width, 3, padding=border, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _three_convolutions(channels: int, width: int) -> nn.Sequential:
    """The stem of ResNet-D (1812.01187, section 4): 3x3 three times, for the view of a 7x7."""
    narrow = width // 2
    return nn.Sequential(
        nn.Conv2d(channels, narrow, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, width, 3, padding=1, bias=False),
    )


class SmallResNet(nn.Module):
    """A residual network for tiny images: 3x3 stem, no early pooling (He et al. 2015, sec. 4.2).

    With width 32 and one block in each of three stages it has 0.3 million parameters.

    Args:
        channels: of the images.
        width: channels of the first stage; each later one doubles them.
        stage_blocks: residual blocks in each stage.
        stem_stride: 1 or 2.
        pool: cells along each side in which the last maps are averaged; Goyal et al. (2019,
            1905.01235) pool in cells too, so that a linear classifier sees where something is.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stage_blocks: Sequence[int],
        stem_stride: int,
        *,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.conv1 = nn.Conv2d(channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        features = width
        for stage, count in enumerate(stage_blocks):
            wider = width * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(features, wider, stride))
                features = wider
        self.blocks = nn.Sequential(*blocks)
        self.relu = nn.ReLU(inplace=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, width x 2^(stages - 1) x pool^2)."""
        maps = self.blocks(self.relu(self.bn1(self.conv1(images))))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(maps, self.pool), 1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where sizes differ."""

    def __init__(self, features: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Convolution3x3(features, wider, stride)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = Convolution3x3(wider, wider)
        self.bn2 = nn.BatchNorm2d(wider)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or features != wider:
            self.shortcut = nn.Sequential(
                nn.Conv2d(features, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, features, height, width) to (batch, wider, height / stride, width / stride)."""
        inner = self.relu(self.bn1(self.conv1(maps)))
        joined: Tensor = self.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))
        return joined
