"""Where tokens and compressed blocks of packed documents lie, so that one call serves all documents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse import validate
from trisparse.config import SparseConfig


@dataclass(frozen=True, kw_only=True)
class PackedPlaces:
    """Documents side by side in one sequence of T tokens, seen from their C compressed blocks.

    A chunk is the tokens of one stride; blocks are runs of chunks, and share them with their neighbours.

    Attributes:
        positions: of each token in its document, [T].
        chunk_tokens: the tokens of the chunks that blocks cover, [N, compress_stride].
        first_chunks: each block's first chunk, [C].
        block_numbers: of each block in its document, [C].
    """

    positions: Tensor
    chunk_tokens: Tensor
    first_chunks: Tensor
    block_numbers: Tensor


def packed_places(cu_seqlens: Tensor, num_tokens: int, config: SparseConfig) -> PackedPlaces:
    """The places of documents between `cu_seqlens` int32 [N + 1], int64 on its device.

    On a GPU this waits for the device once, for how many blocks there are is known by nobody else.

    Raises:
        ValueError: bounds that do not begin at 0, fall, or end elsewhere than at `num_tokens`.
    """
    bounds = cu_seqlens.cpu().long()
    validate.check_bounds(bounds.tolist(), num_tokens)
    starts, lengths = bounds[:-1], bounds.diff()
    stride = config.compress_stride
    blocks = ((lengths - config.compress_block).div(stride, rounding_mode="floor") + 1).clamp(min=0)
    chunks = torch.where(blocks > 0, blocks + config.compress_block // stride - 1, 0)
    block_numbers = _numbers(blocks)
    chunk_starts = starts.repeat_interleave(chunks) + stride * _numbers(chunks)
    places = {
        "positions": _numbers(lengths),
        "chunk_tokens": chunk_starts[:, None] + torch.arange(stride),
        "first_chunks": (chunks.cumsum(0) - chunks).repeat_interleave(blocks) + block_numbers,
        "block_numbers": block_numbers,
    }
    return PackedPlaces(**{name: index.to(cu_seqlens.device) for name, index in places.items()})


def _numbers(counts: Tensor) -> Tensor:
    """0, 1, ... for each of `counts` [N], one after the other: [sum of counts]."""
    firsts = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) - firsts.repeat_interleave(counts)
