"""The whole op: three branches and their gated sum, and the backward that shares what the branches share.

Forward, the ids come from the compressed branch's own log-sum-exp. Backward, one pass over the branches'
outputs gives d gates and all three `delta`; the gates are applied inside of the branches' kernels; and d
query is summed in fp32 from branch to branch, in a fixed order.
"""

from dataclasses import replace

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.combine import combine_backward, combine_forward
from trisparse.triton.compressed_backward import compressed_gradients
from trisparse.triton.compressed_forward import attend_compressed, compressed_place
from trisparse.triton.launch import Place
from trisparse.triton.selected_backward import selected_gradients
from trisparse.triton.selected_forward import attend_selected
from trisparse.triton.sequences import packed_sequences
from trisparse.triton.topn import select_blocks_from_lse
from trisparse.triton.window_backward import window_gradients
from trisparse.triton.window_forward import attend_window


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
    out = query.new_empty(*query.shape[:3], value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    place = compressed_place(query, key, config, scale, cu_seqlens, query_start)
    attend_compressed(query, key, value, out, lse, place)
    return out, lse, select_blocks_from_lse(query, key, lse, place)


def _place(
    query: Tensor,
    key_cmp: Tensor,
    key_slc: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Place:
    """One place for all branches, so that the tables of a packed sequence are made once."""
    packed = packed_sequences(
        cu_seqlens,
        config,
        num_rows=query.shape[1],
        query_start=query_start,
        num_tokens=key_slc.shape[1],
        num_blocks=key_cmp.shape[1],
    )
    return Place(config=config, scale=scale, query_start=query_start, packed=packed)


def _as_window(place: Place, num_tokens: int) -> Place | None:
    """The selected branch as a window, where every row selects all blocks there are before it; else None.

    In sequences that short a list of blocks per row only gets in the way: neighbouring rows share all keys.
    Packed ones keep their lists, for a document's bits must not depend on how long its neighbours are.
    """
    if place.packed is not None or place.config.num_select_blocks(num_tokens) > place.config.num_selected:
        return None
    return replace(place, config=replace(place.config, window=max(1, num_tokens)))


def _new_branches(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for outputs [3, B, Tq, H, E] and log-sum-exps [3, B, Tq, H]."""
    branches = query.new_empty(3, *query.shape[:3], value.shape[3])
    return branches, query.new_empty(3, *query.shape[:3], dtype=torch.float32)


def _attend_tokens(
    query: Tensor,
    selected: tuple[Tensor, Tensor],
    window: tuple[Tensor, Tensor],
    ids: Tensor,
    branches: Tensor,
    lse: Tensor,
    place: Place,
) -> None:
    """Fill what the branches of raw tokens have in `branches` and `lse`."""
    everything = _as_window(place, selected[0].shape[1])
    if everything is None:
        attend_selected(query, *selected, ids, branches[1], lse[1], place)
    else:
        attend_window(query, *selected, branches[1], lse[1], everything)
    attend_window(query, *window, branches[2], lse[2], place)


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
    place = _place(query, key_cmp, key_slc, config, scale, cu_seqlens, query_start)
    branches, lse = _new_branches(query, value_slc)
    attend_compressed(query, key_cmp, value_cmp, branches[0], lse[0], place)
    ids = select_blocks_from_lse(query, key_cmp, lse[0], place)
    _attend_tokens(query, (key_slc, value_slc), (key_win, value_win), ids, branches, lse, place)
    out = combine_forward(branches, gates)
    if not save:
        branches, lse = (kept.new_empty(0, *kept.shape[1:]) for kept in (branches, lse))
    return out, branches, lse, ids


def sparse_branches(
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """The branches and lse that `sparse_forward` returns with `save`, bit for bit, from its ids."""
    place = _place(query, key_cmp, key_slc, config, scale, cu_seqlens, query_start)
    branches, lse = _new_branches(query, value_slc)
    attend_compressed(query, key_cmp, value_cmp, branches[0], lse[0], place)
    _attend_tokens(query, (key_slc, value_slc), (key_win, value_win), ids, branches, lse, place)
    return branches, lse


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `sparse_forward`'s first eight arguments, shaped and typed like them.

    `branches`, `lse` and `ids` are what it returned. What no row sees gets 0.
    """
    place = _place(query, key_cmp, key_slc, config, scale, cu_seqlens, query_start)
    lse = lse.contiguous()
    grad_gates, delta = combine_backward(grad_out, branches, gates)
    total = query.new_empty(query.shape, dtype=torch.float32)
    grad_query = query.new_empty(query.shape)
    grads_cmp = compressed_gradients(
        grad_out, query, key_cmp, value_cmp, lse[0], delta[0], gates[..., 0], None, total, place
    )
    everything = _as_window(place, key_slc.shape[1])
    selected = (lse[1], delta[1], gates[..., 1], total, total)
    if everything is None:
        grads_slc = selected_gradients(grad_out, query, key_slc, value_slc, ids, *selected, place)
    else:
        grads_slc = window_gradients(grad_out, query, key_slc, value_slc, *selected, everything)
    grads_win = window_gradients(
        grad_out, query, key_win, value_win, lse[2], delta[2], gates[..., 2], total, grad_query, place
    )
    return grad_query, *grads_cmp, *grads_slc, *grads_win, grad_gates
