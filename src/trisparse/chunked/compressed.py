"""Compressed branch: tiles against the compressed keys up to the last one a row sees, scored on the way."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trisparse.chunked.sequences import Sequence, compute_dtype, sequences
from trisparse.chunked.tile import (
    Tile,
    attend_tiles,
    attend_tiles_backward,
    exponentiate_,
    row_slices,
    rows_per_tile,
    tile_scores,
)
from trisparse.chunked.topn import group_scores, top_blocks
from trisparse.config import SparseConfig


def _tiles(query: Tensor, sequence: Sequence, config: SparseConfig) -> Iterator[Tile]:
    """Position t sees block i iff i*d + l - 1 <= t (spec 1). `query` is [Tq, M, D]."""
    num_rows, heads, _ = query.shape
    reach = config.num_compressed(sequence.query_start + num_rows)
    for rows in row_slices(num_rows, rows_per_tile(reach, heads)):
        first, last = sequence.query_start + rows.start, sequence.query_start + rows.stop
        keys = slice(0, config.num_compressed(last))
        ends = torch.arange(keys.stop, device=query.device) * config.compress_stride + config.compress_block
        positions = torch.arange(first, last, device=query.device)[:, None]
        yield Tile(rows=rows, keys=keys, hidden=ends > positions + 1)


def _selector(sequence: Sequence, config: SparseConfig, ids: Tensor) -> Callable[[Tile, Tensor], None]:
    """A function that turns a tile's probabilities into its rows of `ids` [Tq, S]."""

    def select(tile: Tile, probabilities: Tensor) -> None:
        first = sequence.query_start + tile.rows.start
        last = sequence.query_start + tile.rows.stop
        scores = group_scores(probabilities, config.num_select_blocks(last), config)
        positions = torch.arange(first, last, device=ids.device)
        ids[tile.rows] = top_blocks(scores, positions, config)

    return select


def compressed_select_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    with_ids: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> out [B, Tq, H, E], lse [B, Tq, H], ids int32 [B, Tq, G, S] from one pass over the scores."""
    batch, num_rows, heads, _ = query.shape
    groups = key.shape[2]
    out = query.new_zeros(batch, num_rows, heads, value.shape[3])
    lse = query.new_full((batch, num_rows, heads), float("-inf"), dtype=compute_dtype(query))
    ids = query.new_full((batch, num_rows, groups, config.num_selected), -1, dtype=torch.int32)
    for sequence in sequences(query, groups, config, cu_seqlens, query_start):
        rows = sequence.of_heads(query)
        attend_tiles(
            _tiles(rows, sequence, config),
            rows,
            sequence.of_blocks(key),
            sequence.of_blocks(value),
            scale,
            sequence.of_heads(out),
            sequence.of_heads(lse),
            _selector(sequence, config, sequence.of_rows(ids)) if with_ids else None,
        )
    return out, lse, ids


def compressed_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """-> out [B, Tq, H, E] in the query's dtype, lse [B, Tq, H] in the compute dtype."""
    out, lse, _ = compressed_select_forward(
        query, key, value, config, scale, cu_seqlens, query_start, with_ids=False
    )
    return out, lse


def select_blocks(
    query: Tensor,
    key: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Tensor:
    """-> ids int32 [B, Tq, G, S], bit for bit those of `compressed_select_forward`."""
    dtype = compute_dtype(query)
    shape = (*query.shape[:2], key.shape[2], config.num_selected)
    ids = query.new_full(shape, -1, dtype=torch.int32)
    for sequence in sequences(query, key.shape[2], config, cu_seqlens, query_start):
        rows = sequence.of_heads(query)
        blocks = sequence.of_blocks(key).to(dtype)
        select = _selector(sequence, config, sequence.of_rows(ids))
        for tile in _tiles(rows, sequence, config):
            scores = tile_scores(rows[tile.rows].to(dtype) * scale, blocks[tile.keys], tile.hidden)
            total, _ = exponentiate_(scores)
            select(tile, scores.div_(total))
    return ids


def compressed_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients shaped and typed like query, key, value."""
    grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    for sequence in sequences(query, key.shape[2], config, cu_seqlens, query_start):
        rows = sequence.of_heads(query)
        attend_tiles_backward(
            _tiles(rows, sequence, config),
            rows,
            sequence.of_blocks(key),
            sequence.of_blocks(value),
            scale,
            sequence.of_heads(out),
            sequence.of_heads(lse),
            sequence.of_heads(grad_out),
            (sequence.of_heads(grads[0]), sequence.of_blocks(grads[1]), sequence.of_blocks(grads[2])),
        )
    return grads[0], grads[1], grads[2]
