"""The whole op, backward, which shares what the branches share.

One pass over the branches' outputs gives d gates and all three `delta`; the gates are applied inside of the
branches' kernels; and d query is summed in fp32 from branch to branch, in a fixed order, some rows at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.band_backward import fill_query_gradient, key_gradients
from trisparse.triton.combine import combine_backward
from trisparse.triton.compressed_backward import num_splits
from trisparse.triton.compressed_forward import block_band
from trisparse.triton.selected_backward import selected_key_gradients, selected_query_gradient
from trisparse.triton.sparse_call import SparseCall, sparse_call
from trisparse.triton.window_forward import token_band

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _query_gradients(
    call: SparseCall,
    grad_out: Tensor,
    ids: Tensor,
    lse: Sequence[Tensor],
    delta: Sequence[Tensor],
    grad_query: Tensor,
) -> None:
    """Fill contiguous `grad_query` [B, Tq, H, D]; `lse` and `delta` are three of [B, Tq, H] each."""
    query, place = call.query, call.place
    total = query.new_empty(query.shape, dtype=torch.float32)
    # lse, delta and gate of each branch
    compressed, selected, window = zip(lse, delta, call.gates.unbind(dim=-1), strict=True)
    blocks, tokens = block_band(place.config), token_band(place.config)
    fill_query_gradient(grad_out, query, *call.compressed, *compressed, None, total, place, blocks)
    everything = call.everything
    if everything is None:
        selected_query_gradient(grad_out, query, *call.selected, ids, *selected, total, total, place)
    else:
        band = token_band(everything.config)
        fill_query_gradient(grad_out, query, *call.selected, *selected, total, total, everything, band)
    fill_query_gradient(grad_out, query, *call.window, *window, total, grad_query, place, tokens)


def _key_gradients(
    call: SparseCall, grad_out: Tensor, ids: Tensor, lse: Sequence[Tensor], delta: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """d key and d value of the three branches; arguments as in `_query_gradients`."""
    query, place = call.query, call.place
    rows = list(zip(lse, delta, call.gates.unbind(dim=-1), strict=True))
    blocks, splits = block_band(place.config), num_splits(query.shape[1])
    compressed = key_gradients(grad_out, query, *call.compressed, *rows[0], place, blocks, splits)
    everything = call.everything
    if everything is None:
        selected = selected_key_gradients(grad_out, query, *call.selected, ids, *rows[1], place)
    else:
        band = token_band(everything.config)
        selected = key_gradients(grad_out, query, *call.selected, *rows[1], everything, band)
    window = key_gradients(grad_out, query, *call.window, *rows[2], place, token_band(place.config))
    return *compressed, *selected, *window


def _total_bytes(query: Tensor) -> int:
    """The fp32 sum of d query for one query row."""
    return 4 * query.shape[2] * query.shape[3]


def sparse_backward(
    grad_out: Tensor,
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    gates: Tensor,
    branches: Tensor,
    lse: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Gradients:
    """The gradients of `sparse_forward`'s first eight arguments, shaped and typed like them.

    `branches`, `lse` and `ids` are what it returned. What no row sees gets 0.
    """
    pairs = (key_cmp, value_cmp), (key_slc, value_slc), (key_win, value_win)
    call = sparse_call(query, *pairs, gates, config, scale, cu_seqlens, query_start)
    lse = lse.contiguous()
    grad_gates, delta = combine_backward(grad_out, branches, gates)
    grad_query = call.place.new_rows(query, *query.shape)
    for chunk in call.chunks(_total_bytes(query)):
        some_lse, some_delta = ([chunk.of(x) for x in numbers] for numbers in (lse, delta))
        rows = (chunk.of(grad_out), chunk.of(ids), some_lse, some_delta, chunk.of(grad_query))
        _query_gradients(call.part(chunk), *rows)
    return grad_query, *_key_gradients(call, grad_out, ids, lse.unbind(), delta.unbind()), grad_gates


def sparse_recompute_backward(
    grad_out: Tensor,
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    gates: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Gradients:
    """The gradients of `sparse_backward`, bit for bit, without what a forward saves but the ids.

    The branches are computed again, of some rows at a time.
    """
    pairs = (key_cmp, value_cmp), (key_slc, value_slc), (key_win, value_win)
    call = sparse_call(query, *pairs, gates, config, scale, cu_seqlens, query_start)
    lse, delta = call.new_row_numbers(), call.new_row_numbers()
    grad_query, grad_gates = call.place.new_rows(query, *query.shape), gates.new_empty(gates.shape)
    for chunk in call.chunks(call.branch_bytes + _total_bytes(query)):
        some_lse, some_delta = ([chunk.of(x) for x in numbers] for numbers in (lse, delta))
        rows = (chunk.of(grad_out), chunk.of(ids), some_lse, some_delta)
        part = call.part(chunk)
        _row_gradients(part, *rows, chunk.of(grad_gates))
        _query_gradients(part, *rows, chunk.of(grad_query))
    return grad_query, *_key_gradients(call, grad_out, ids, lse.unbind(), delta.unbind()), grad_gates


def _row_gradients(
    part: SparseCall,
    grad_out: Tensor,
    ids: Tensor,
    lse: Sequence[Tensor],
    delta: Sequence[Tensor],
    grad_gates: Tensor,
) -> None:
    """Fill `lse`, `delta` and `grad_gates`. The branches live no longer than this call."""
    branches = part.new_branches()
    part.attend(ids, branches, lse)
    some_gates, some_delta = combine_backward(grad_out, branches, part.gates)
    grad_gates.copy_(some_gates)
    for numbers, some in zip(delta, some_delta, strict=True):
        numbers.copy_(some)
