"""The whole op, forward: three branches and their gated sum; ids come from the compressed branch's own sums.

Where no backward will come, or one that computes the branches again, they exist for some rows at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.combine import combine_forward
from trisparse.triton.compressed_forward import attend_compressed, compressed_place
from trisparse.triton.row_chunks import RowChunk
from trisparse.triton.sparse_call import SparseCall, sparse_call
from trisparse.triton.topn import select_blocks_from_lse


def compressed_select_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`compressed_forward` and the selection from its log-sum-exp.

    Returns:
        out [B, Tq, H, E], lse [B, Tq, H] and ids int32 [B, Tq, G, S], bit for bit those of `select_blocks`.
    """
    place = compressed_place(query, key, config, scale, cu_seqlens, query_start)
    out, lse = place.new_results(query, value.shape[3])
    attend_compressed(query, key, value, out, lse, place)
    return out, lse, select_blocks_from_lse(query, key, lse, place)


def sparse_forward(
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    gates: Tensor,
    save: bool,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 5 with all its parts: shapes are those of `trisparse.sparse_attention`.

    Returns:
        out [B, Tq, H, E], and what the backward needs: branches [3, B, Tq, H, E] (compressed, selected,
        window) in the query's dtype, their lse fp32 [3, B, Tq, H], and ids int32 [B, Tq, G, S]. A row that
        sees no key in a branch has 0 and -inf there. Without `save`, branches and lse are empty.
    """
    pairs = (key_cmp, value_cmp), (key_slc, value_slc), (key_win, value_win)
    call = sparse_call(query, *pairs, gates, config, scale, cu_seqlens, query_start)
    if save:
        branches, lse = call.new_branches(), call.new_row_numbers()
        ids = call.attend(None, branches, lse.unbind())
        return combine_forward(branches, gates), branches, lse, ids
    out = query.new_empty(*query.shape[:3], value_slc.shape[3])
    chunks = call.chunks(call.branch_bytes)
    found = [_attend_part(call.part(chunk), chunk.of(out)) for chunk in chunks]
    ids = found[0] if len(found) == 1 else _joined(found, chunks, query.shape[:2])
    return out, out.new_empty(0, *out.shape), out.new_empty(0, *out.shape[:3], dtype=torch.float32), ids


def _attend_part(part: SparseCall, out: Tensor) -> Tensor:
    """Fill contiguous `out` and return the ids. The branches live no longer than this call."""
    branches = part.new_branches()
    ids = part.attend(None, branches, part.new_row_numbers().unbind())
    combine_forward(branches, part.gates, out)
    return ids


def _joined(found: Sequence[Tensor], chunks: Sequence[RowChunk], shape: Sequence[int]) -> Tensor:
    """Ids [B, Tq, G, S] of chunks; `shape` is (B, Tq)."""
    ids = found[0].new_empty(*shape, *found[0].shape[2:])
    for chunk, some in zip(chunks, found, strict=True):
        chunk.of(ids).copy_(some)
    return ids
