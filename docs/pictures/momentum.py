"""How a momentum encoder follows the network, and how much of its start is left."""

from typing import Any, Final

import numpy as np
import torch
from _style import BLUE, GRAY, GREEN, RED, panels
from torch import nn

from diptych import MomentumEncoder

STEPS: Final = 300
MOMENTA: Final = {0.9: RED, 0.99: BLUE, 0.999: GREEN}


def draw() -> Any:
    """Left: a weight in training, and its slow copies. Right: what is left of its start."""
    figure, (weight, start) = panels(2, height=2.9, widths=(3, 2))
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    copies = {momentum: MomentumEncoder(network) for momentum in MOMENTA}
    lines = {momentum: [0.0] for momentum in MOMENTA}
    path, draws = [0.0], np.random.default_rng(3)
    for step in range(STEPS):
        with torch.no_grad():
            network.weight.fill_(1 - np.exp(-step / 80) + draws.normal(scale=0.12))
        path.append(network.weight.item())
        for momentum, copy in copies.items():
            copy.update(network, momentum)
            lines[momentum].append(next(copy.parameters()).item())
    weight.plot(path, color=GRAY, lw=0.7, label="network")
    for momentum, color in MOMENTA.items():
        weight.plot(lines[momentum], color=color, label=f"m = {momentum}")
        steps = np.arange(3001)
        start.plot(steps, momentum**steps, color=color)
        start.text(0.72 / (1 - momentum), 0.52, f"{momentum}", color=color)
    weight.set(title="one weight of network and momentum encoder", xlabel="step")
    weight.legend(frameon=False, loc="lower right", ncols=2, fontsize=8)
    start.set(title="share of the random start", xlabel="steps", xscale="log", xlim=(1, 3000))
    return figure
