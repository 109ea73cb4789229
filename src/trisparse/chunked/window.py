"""Window branch: tiles along the diagonal, each against its rows' own tokens and the w - 1 before them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trisparse.chunked.sequences import Sequence, compute_dtype, sequences
from trisparse.chunked.tile import (
    Tile,
    attend_tiles,
    attend_tiles_backward,
    row_slices,
    rows_per_tile,
)
from trisparse.config import SparseConfig


def _tiles(query: Tensor, sequence: Sequence, config: SparseConfig) -> Iterator[Tile]:
    """Position t sees s iff t - w < s <= t (spec 6). `query` is [Tq, M, D]."""
    num_rows, heads, _ = query.shape
    reach = min(config.window, sequence.query_start + num_rows)
    # a tile of R rows meets w + R keys, of which each row sees w: more rows would mostly mask
    size = min(rows_per_tile(reach, heads), max(32, reach // 2))
    before = reach - 1
    rows_of_tile = torch.arange(size, device=query.device)[:, None]
    ahead = torch.arange(-before, size, device=query.device) - rows_of_tile
    hidden = (ahead > 0) | (ahead <= -config.window)
    for rows in row_slices(num_rows, size):
        first, last = sequence.query_start + rows.start, sequence.query_start + rows.stop
        keys = slice(max(0, first - before), last)
        columns = slice(before - (first - keys.start), before + last - first)
        yield Tile(rows=rows, keys=keys, hidden=hidden[: last - first, columns])


def window_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """-> out [B, Tq, H, E] in the query's dtype, lse [B, Tq, H] in the compute dtype."""
    out = query.new_zeros(*query.shape[:3], value.shape[3])
    lse = query.new_full(query.shape[:3], float("-inf"), dtype=compute_dtype(query))
    for sequence in sequences(query, key.shape[2], config, cu_seqlens, query_start):
        rows = sequence.of_heads(query)
        tokens = sequence.of_tokens(key), sequence.of_tokens(value)
        tiles = _tiles(rows, sequence, config)
        attend_tiles(tiles, rows, *tokens, scale, sequence.of_heads(out), sequence.of_heads(lse))
    return out, lse


def window_backward(
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
            sequence.of_tokens(key),
            sequence.of_tokens(value),
            scale,
            sequence.of_heads(out),
            sequence.of_heads(lse),
            sequence.of_heads(grad_out),
            (sequence.of_heads(grads[0]), sequence.of_tokens(grads[1]), sequence.of_tokens(grads[2])),
        )
    return grads[0], grads[1], grads[2]
