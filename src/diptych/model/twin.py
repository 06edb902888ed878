"""The slowly moving copy of a network that encodes keys (MoCo, section 3.2)."""

import copy

import torch
from torch import Tensor, nn


class Twin(nn.Module):
    """A copy of a network, weights and buffers, that follows it without gradients.

    It runs in training mode like the original, so its batch norms keep statistics of their own.

    Attributes:
        momentum: share of itself that it keeps at each step, m in MoCo's equation 2.
    """

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encodes images; no gradient flows back."""
        encoded: Tensor = self.network(images)
        return encoded

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q, over all parameters at once."""
        torch._foreach_lerp_(
            list(self.network.parameters()), list(network.parameters()), 1.0 - self.momentum
        )
