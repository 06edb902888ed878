"""The slowly moving copy of a network that encodes keys (MoCo, section 3.2)."""

import copy

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """A copy of a network, weights and buffers, that moves after it without gradients.

    It runs in training mode like the original, so its batch norms keep statistics of their own.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encodes images; no gradient flows back."""
        encoded: Tensor = self.network(images)
        return encoded

    @torch.no_grad()
    def update(self, network: nn.Module, momentum: float) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q, over all parameters at once (MoCo, eq. 2).

        Args:
            network: what this is a copy of.
            momentum: m, the share of itself that it keeps; 0 makes it a plain copy.
        """
        # As lerp: where both are equal nothing moves, while m k + (1 - m) q would round.
        torch._foreach_lerp_(
            list(self.network.parameters()), list(network.parameters()), 1.0 - momentum
        )
