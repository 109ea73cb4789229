# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""d query of the selected branch: a tile of query tokens visits its blocks once more.

The weights are recomputed from the saved log-sum-exp. A gate on the output is applied to the gradient of
the scores: no gated copy of grad_out is ever made. `delta` is the row sum of gate * grad_out * out.
"""

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.launch import Launch, Place, Tile, gradient_arguments
from trisparse.triton.primitives import zero_parts
from trisparse.triton.selection_primitives import TokenTile, Visits, visit_launch
from trisparse.triton.steps import gradient_rows, query_gradient_step, store_query_gradient
from trisparse.triton.tiles import pair_of, row_places
from trisparse.triton.visits import visit_bounds, visit_tile, visited_keys


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "num_lists", "query_start"])
def selected_query_kernel(
    query,
    key,
    value,
    grad,
    lse,
    delta,
    gate,
    partial,
    grad_query,
    blocks,
    members,
    table,
    query_stride_b,
    query_stride_t,
    query_stride_h,
    key_stride_b,
    key_stride_t,
    key_stride_h,
    value_stride_b,
    value_stride_t,
    value_stride_h,
    grad_stride_b,
    grad_stride_t,
    grad_stride_h,
    gate_stride_b,
    gate_stride_t,
    gate_stride_h,
    num_tiles,
    num_lists,
    num_rows,
    query_start,
    groups,
    scale,
    score_scale,
    PACKED: tl.constexpr,
    UNION: tl.constexpr,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    TILE: tl.constexpr = (HEADS_PER_GROUP, HEADS, CHUNKS, TOKENS, ROWS)
    RAGGED: tl.constexpr = SELECT_BLOCK % KEYS > 0
    LIST: tl.constexpr = (LENGTH, WIDTH, SELECT_BLOCK)
    rows, sight, group, key_zero, visits = visit_tile(
        table, blocks, num_tiles, num_lists, num_rows, query_start, groups, TILE, LIST, PACKED
    )
    batch, _, _, kept = rows
    places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)

    # lse, delta and d query are ours and contiguous: [B, Tq, H] and [B, Tq, H, D]
    row_tile = gradient_rows(
        (query, query_stride_b, query_stride_t, query_stride_h),
        (grad, grad_stride_b, grad_stride_t, grad_stride_h),
        (gate, gate_stride_b, gate_stride_t, gate_stride_h),
        (lse, delta, places),
        rows,
        GATED,
        HEAD_DIMS,
        VALUE_DIMS,
    )
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, key_zero, group)

    sums = zero_parts(ROWS, HEAD_DIMS)
    for masked in tl.static_range(2):
        lower, upper = visit_bounds(visits, masked == 0, KEYS, SELECT_BLOCK)
        for step in range(lower, upper):
            keys, exists, visible = visited_keys(
                step, blocks, members, visits, sight, masked == 1 or RAGGED, UNION, KEYS, SELECT_BLOCK
            )
            sums = query_gradient_step(
                sums,
                row_tile,
                pair,
                keys,
                exists if masked == 1 or RAGGED else None,
                visible if masked == 1 or RAGGED or UNION else None,
                score_scale,
                GATED,
                HEAD_DIMS,
                VALUE_DIMS,
            )
    store_query_gradient(sums, scale, partial, grad_query, places, kept, ADDED, HEAD_DIMS)


def query_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    partial: Tensor | None,
    grad_query: Tensor,
    visits: Visits,
    place: Place,
    tokens: TokenTile,
    tile: Tile,
) -> Launch:
    """Fills contiguous `grad_query` [B, Tq, H, D] with d query, plus `partial` of that shape if it is given.

    `lse` and `delta` are contiguous fp32 [B, Tq, H], `gate` is any view [B, Tq, H]. `partial` may be
    `grad_query` itself.
    """
    inputs = query, key, value
    arguments = {
        **gradient_arguments(*inputs, grad_out, lse, delta, gate, place),
        "partial": partial,
        "grad_query": grad_query,
    }
    constants = {"GATED": gate is not None, "ADDED": partial is not None}
    kernel = selected_query_kernel
    return visit_launch(kernel, arguments, constants, *inputs, visits, place, tokens, tile)
