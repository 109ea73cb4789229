"""Where tokens and compressed blocks of packed documents lie: one call serves all documents of a batch."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trisparse import validate
from trisparse.config import SparseConfig


@dataclass(frozen=True, kw_only=True)
class PackedPlaces:
    """Documents side by side in one sequence of T tokens, seen from their C compressed blocks.

    A chunk is the tokens of one stride; blocks are runs of chunks, and share them with their neighbours.

    Attributes:
        cu_seqlens: int32 bounds of the documents, [N + 1].
        config: the block sizes for which the places hold.
        lengths: tokens of each document.
        positions: of each token in its document, [T].
        chunk_tokens: the tokens of the chunks that blocks cover, [N, compress_stride].
        first_chunks: each block's first chunk, [C].
        block_numbers: of each block in its document, [C].
    """

    cu_seqlens: Tensor
    config: SparseConfig
    lengths: list[int]
    positions: Tensor
    chunk_tokens: Tensor
    first_chunks: Tensor
    block_numbers: Tensor


def document_lengths(cu_seqlens: Tensor, num_tokens: int) -> list[int]:
    """Tokens of each document between `cu_seqlens` [N + 1]; on a GPU this waits for the device.

    Raises:
        ValueError: bounds that do not begin at 0, fall, or end elsewhere than at `num_tokens`.
    """
    bounds = cu_seqlens.tolist()
    validate.check_bounds(bounds, num_tokens)
    return [stop - start for start, stop in pairwise(bounds)]


def packed_places(cu_seqlens: Tensor, num_tokens: int, config: SparseConfig) -> PackedPlaces:
    """The places of documents between `cu_seqlens` int32 [N + 1], int64 on its device.

    On a GPU this waits for the device, for how many blocks there are is known by nobody else.

    Raises:
        ValueError: as `document_lengths`.
    """
    lengths = document_lengths(cu_seqlens, num_tokens)
    blocks = [config.num_compressed(length) for length in lengths]
    more = config.compress_block // config.compress_stride - 1
    chunks = [count + more if count else 0 for count in blocks]
    table = torch.tensor([lengths, blocks, chunks], device=cu_seqlens.device)
    token_counts, block_counts, chunk_counts = table
    block_numbers = _numbers(block_counts, sum(blocks))
    chunk_numbers = _numbers(chunk_counts, sum(chunks))
    chunk_starts = (
        _each(cu_seqlens[:-1].long(), chunk_counts, sum(chunks)) + config.compress_stride * chunk_numbers
    )
    first_chunks = _each(chunk_counts.cumsum(0) - chunk_counts, block_counts, sum(blocks))
    return PackedPlaces(
        cu_seqlens=cu_seqlens,
        config=config,
        lengths=lengths,
        positions=_numbers(token_counts, num_tokens),
        chunk_tokens=chunk_starts[:, None] + torch.arange(config.compress_stride, device=table.device),
        first_chunks=first_chunks + block_numbers,
        block_numbers=block_numbers,
    )


def _each(values: Tensor, counts: Tensor, total: int) -> Tensor:
    """values[i] counts[i] times, [total]: their sum is told, so that no device is asked."""
    return values.repeat_interleave(counts, output_size=total)


def _numbers(counts: Tensor, total: int) -> Tensor:
    """0, 1, ... for each of `counts` [N], one after the other: [total], their sum."""
    return torch.arange(total, device=counts.device) - _each(counts.cumsum(0) - counts, counts, total)
