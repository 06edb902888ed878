"""The network for tiny images: small enough to learn on a laptop's processor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SmallResNet(nn.Module):
    """A residual network for tiny images: 3x3 stem, no early pooling (He et al. 2015, sec. 4.2).

    With width 32 and one block in each of three stages it has 0.3 million parameters.
    """

    def __init__(
        self, channels: int, width: int, stage_blocks: Sequence[int], stem_stride: int
    ) -> None:
        super().__init__()
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
        """(batch, channels, side, side) to (batch, width x 2^(stages - 1))."""
        maps = self.blocks(self.relu(self.bn1(self.conv1(images))))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(maps, 1), 1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where sizes differ."""

    def __init__(self, features: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, wider, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
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
