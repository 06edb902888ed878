"""Backbones: an image to a feature vector h."""

from collections.abc import Sequence

import torch
import torchvision.models
from torch import Tensor, nn

from diptych.configs import EncoderConfig
from diptych.errors import ConfigError

SMALL_RESNET = "small_resnet"


def build_encoder(config: EncoderConfig, *, channels: int, seed: int) -> nn.Module:
    """Builds a backbone with random weights that follow from the seed.

    Args:
        config: which one.
        channels: of the images, 1 or 3.
        seed: of the initial weights; the global generator is left as it was.

    Returns:
        A module from (batch, channels, side, side) to (batch, features).

    Raises:
        ConfigError: there is no such ResNet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name == SMALL_RESNET:
            return SmallResNet(channels, config.width, config.stage_blocks, config.stem_stride)
        return _torchvision_resnet(config, channels)


def count_features(encoder: nn.Module, *, channels: int, side_pixels: int) -> int:
    """Length of the feature vector, found by encoding one blank image."""
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, channels, side_pixels, side_pixels))
    encoder.train(training)
    return int(features.shape[1])


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


def _torchvision_resnet(config: EncoderConfig, channels: int) -> nn.Module:
    """A ResNet of torchvision without its classifier; all other names are torchvision's."""
    resnets = [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if name.startswith(("resnet", "resnext", "wide_resnet"))
    ]
    if config.name not in resnets:
        raise ConfigError(
            f"encoder.name = {config.name!r} is not known. Wanted {SMALL_RESNET!r} or one of "
            f"{', '.join(resnets)}."
        )
    network: nn.Module = torchvision.models.get_model(config.name, weights=None)
    network.fc = nn.Identity()
    width = next(network.parameters()).shape[0]  # of the first convolution
    if config.stem == "small":  # SimCLR, appendix B.9: 3x3 with stride 1, no max-pool
        network.conv1 = _first_convolution(channels, width, 3, stride=1)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _first_convolution(channels, width, 7, stride=2)
    return network


def _first_convolution(channels: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
