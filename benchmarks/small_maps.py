"""ResNets on small images: a forward and backward pass of torchvision's over one of ours.

At 32 pixels the last two stages of a ResNet with its own stem have maps of 2 x 2 and of one place,
where most weights of a 3x3 convolution meet the border alone. Both networks have the same weights
and get the same tensors, channels last and eager; they take turns, and a figure is the median over
the turns.

    python benchmarks/small_maps.py               # about five minutes on two cores
    python benchmarks/small_maps.py --quick       # ResNet-18 alone, five turns
"""

import statistics
import time

from diptych.runtime.devices import keep_freed_memory, shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import torch
import torchvision
from measuring import Figure, parse_arguments, publish
from torch import Tensor, nn

from diptych.models.resnets import ResNet

VIEWS = 256
TURNS, TURNS_QUICK = 21, 5
CASES = (
    ("resnet18", 32, 1.5),
    ("resnet18", 64, 1.1),
    ("resnet18", 96, 0.97),
    ("resnet50", 32, 1.1),
)
"""Network, pixels, and what the ratio should be at least."""


def seconds(network: nn.Module, views: Tensor) -> float:
    """Of one pass forward and backward."""
    begun = time.perf_counter()
    torch.autograd.backward(network(views).square().mean())
    network.zero_grad(set_to_none=True)
    return time.perf_counter() - begun


def measure(name: str, side: int, turns: int) -> tuple[float, float]:
    """Seconds of torchvision's and of ours, medians."""
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = nn.Identity()
    ours = ResNet(name)
    ours.load_state_dict(theirs.state_dict())
    networks = [one.train().to(memory_format=torch.channels_last) for one in (theirs, ours)]
    views = torch.randn(VIEWS, 3, side, side).contiguous(memory_format=torch.channels_last)
    for network in networks:
        seconds(network, views)
    found = [[seconds(network, views) for network in networks] for _ in range(turns)]
    usual, fast = (statistics.median(times) for times in zip(*found, strict=True))
    return usual, fast


def main() -> None:
    arguments = parse_arguments(__doc__)
    keep_freed_memory()
    use_threads(None)
    figures = []
    for name, side, goal in CASES[:1] if arguments.quick else CASES:
        theirs, ours = measure(name, side, TURNS_QUICK if arguments.quick else TURNS)
        title = f"{name} at {side} pixels"
        others = {"torchvision": theirs}
        figures.append(Figure(title, theirs / ours, goal, unit="s", ours=ours, others=others))
    title = "Forward and backward pass of torchvision's ResNets over ours"
    publish(figures, title, arguments.json)


if __name__ == "__main__":
    main()
