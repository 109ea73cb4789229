"""Gates: how much each branch adds, per token and head (eq. 5)."""

import torch
from torch import Tensor, nn


class Gates(nn.Module):
    """sigmoid(linear(hidden)): independent gates in (0, 1) that need not sum to 1.

    Args:
        hidden_size: channels of the layer's input.
        num_heads: query heads (H).
        num_branches: gates per head; 3 for NSA (compressed, selected, window), 1 for gated full attention.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_branches: int = 3) -> None:
        super().__init__()
        self.num_branches = num_branches
        self.proj = nn.Linear(hidden_size, num_heads * num_branches)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every gate near 1/2, so that no branch is favoured or cut off from gradients."""
        nn.init.normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, hidden_size] -> [B, T, H, num_branches]"""
        return torch.sigmoid(self.proj(hidden)).unflatten(-1, (-1, self.num_branches))
