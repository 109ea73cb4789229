"""The compressor phi (eq. 7): every block of l tokens becomes one key or value.

Blocks overlap (d < l). Instead of unfolding them, which would copy every token l / d times, the projection is
split into l / d parts, each applied once to the non-overlapping chunks of d tokens; a block is the sum of its
shifted parts.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from trisparse.config import SparseConfig
from trisparse.nn.packed import PackedPlaces

CompressorKind = Literal["mlp", "linear", "mean"]


def _stride_chunks(tokens: Tensor, config: SparseConfig, packed: PackedPlaces | None) -> Tensor:
    """[B, T, G, D] -> chunks [B, N, G, d * D] of the tokens that complete blocks cover."""
    if packed is not None:
        chunks = tokens[:, packed.chunk_tokens]
    else:
        batch, length, *head = tokens.shape
        count = config.num_compressed(length)
        num_chunks = count + config.compress_block // config.compress_stride - 1 if count else 0
        covered = tokens[:, : num_chunks * config.compress_stride]
        chunks = covered.reshape(batch, num_chunks, config.compress_stride, *head)
    return chunks.transpose(2, 3).flatten(3)


def _block_sums(parts: Sequence[Tensor], packed: PackedPlaces | None) -> Tensor:
    """Numbers of chunks, parts[i] [B, N, G, F] where a chunk is a block's i-th, added up: [B, C, G, F].

    Part by part: a reduction may add in another order for another number of blocks.
    """
    count = max(0, parts[0].shape[1] - len(parts) + 1)
    if packed is not None:
        return reduce(torch.add, (part[:, packed.first_chunks + i] for i, part in enumerate(parts)))
    return reduce(torch.add, (part[:, i : i + count] for i, part in enumerate(parts)))


def _project_blocks(chunks: Tensor, weight: Tensor, packed: PackedPlaces | None) -> Tensor:
    """Every block, flattened to l * D numbers, times `weight` [l * D, F]: [B, C, G, F]."""
    parts = weight.split(chunks.shape[-1])
    return _block_sums([chunks @ part for part in parts], packed)


def _mean_blocks(chunks: Tensor, config: SparseConfig, packed: PackedPlaces | None) -> Tensor:
    """The mean of every block: [B, C, G, D]."""
    sums = chunks.unflatten(-1, (config.compress_stride, -1)).sum(dim=-2)
    overlap = config.compress_block // config.compress_stride
    return _block_sums([sums] * overlap, packed) / config.compress_block


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

    def forward(self, tokens: Tensor, packed: PackedPlaces | None = None) -> Tensor:
        """[B, T, G, D] -> [B, C, G, D]; C = 0 for fewer than l tokens.

        Args:
            packed: where the blocks of documents lie that share one sequence, B = 1.
        """
        chunks = _stride_chunks(tokens, self.config, packed)
        if self.kind == "linear":
            return _project_blocks(chunks, self.weight, packed).to(tokens.dtype)
        # under autocast a sum may come back wider than what went in, and keys must match their queries
        mean = _mean_blocks(chunks, self.config, packed).to(tokens.dtype)
        if self.kind == "mean":
            return mean
        # (tokens + position) @ up, the position's part once instead of for every block
        bias = self.position.flatten() @ self.up + self.up_bias
        inner = _project_blocks(chunks, self.up, packed) + bias
        return mean + self.down(nn.functional.gelu(inner)).to(mean.dtype)
