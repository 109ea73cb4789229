"""The compressor phi (eq. 7): every block of l tokens becomes one key or value.

Blocks overlap (d < l). Instead of unfolding them, which would copy every token l / d times, the projection is
split into l / d parts, each applied once to the non-overlapping chunks of d tokens; a block is the sum of its
shifted parts.
"""

from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from trisparse.config import SparseConfig

CompressorKind = Literal["mlp", "linear", "mean"]


def _stride_chunks(tokens: Tensor, config: SparseConfig) -> tuple[Tensor, int]:
    """[B, T, G, D] -> chunks [B, C + l/d - 1, G, d * D] of the tokens that complete blocks cover, and C."""
    batch, length, groups, dim = tokens.shape
    count = config.num_compressed(length)
    num_chunks = count + config.compress_block // config.compress_stride - 1 if count else 0
    covered = tokens[:, : num_chunks * config.compress_stride]
    chunks = covered.reshape(batch, num_chunks, config.compress_stride, groups, dim)
    return chunks.transpose(2, 3).flatten(3), count


def project_blocks(tokens: Tensor, weight: Tensor, config: SparseConfig) -> Tensor:
    """Every block, flattened to l * D numbers, times `weight` [l * D, F]: [B, T, G, D] -> [B, C, G, F]."""
    chunks, count = _stride_chunks(tokens, config)
    parts = weight.chunk(config.compress_block // config.compress_stride)
    return _added([(chunks @ part)[:, i : i + count] for i, part in enumerate(parts)])


def _added(parts: list[Tensor]) -> Tensor:
    """Their sum, part by part: a reduction may add in another order for another number of blocks."""
    return reduce(torch.add, parts)


def mean_blocks(tokens: Tensor, config: SparseConfig) -> Tensor:
    """The mean of every block: [B, T, G, D] -> [B, C, G, D]."""
    chunks, count = _stride_chunks(tokens, config)
    sums = chunks.unflatten(-1, (config.compress_stride, tokens.shape[-1])).sum(dim=-2)
    overlap = config.compress_block // config.compress_stride
    return _added([sums[:, i : i + count] for i in range(overlap)]) / config.compress_block


class Compressor(nn.Module):
    """phi for keys or for values; the groups share its weights.

    Args:
        kind: "mlp" adds to the mean of the block a two-layer network over all its tokens, each with a learned
            position inside the block; "linear" is one learned projection of the block; "mean" learns nothing.
            All three equal the mean of the block before training.
        dim: channels of a token (D for keys, E for values).
        config: block and stride.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(self, kind: CompressorKind, dim: int, config: SparseConfig) -> None:
        super().__init__()
        if kind not in ("mlp", "linear", "mean"):
            raise ValueError(f"compressor: expected 'mlp', 'linear' or 'mean', got {kind!r}")
        self.kind, self.dim, self.config = kind, dim, config
        block = config.compress_block
        if kind == "linear":
            self.weight = nn.Parameter(torch.empty(block * dim, dim))
        elif kind == "mlp":
            self.position = nn.Parameter(torch.empty(block, dim))
            self.up = nn.Parameter(torch.empty(block * dim, dim))
            self.up_bias = nn.Parameter(torch.empty(dim))
            self.down = nn.Linear(dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as the mean of the block: the exact one, so that training starts from a sane place."""
        block, dim = self.config.compress_block, self.dim
        if self.kind == "linear":
            self.weight.copy_(torch.eye(dim, device=self.weight.device).repeat(block, 1) / block)
        elif self.kind == "mlp":
            nn.init.normal_(self.position, std=0.02)
            nn.init.normal_(self.up, std=(block * dim) ** -0.5)
            nn.init.zeros_(self.up_bias)
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, G, D] -> [B, C, G, D]; C = 0 for fewer than l tokens."""
        if self.kind == "linear":
            return project_blocks(tokens, self.weight, self.config).to(tokens.dtype)
        # under autocast a sum may come back wider than what went in, and keys must match their queries
        mean = mean_blocks(tokens, self.config).to(tokens.dtype)
        if self.kind == "mean":
            return mean
        # (tokens + position) @ up, the position's part once instead of for every block
        bias = self.position.flatten() @ self.up + self.up_bias
        inner = project_blocks(tokens, self.up, self.config) + bias
        return mean + self.down(nn.functional.gelu(inner)).to(mean.dtype)
