# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""d query of the selected branch: a tile of query tokens visits its blocks once more.

The weights are recomputed from the saved log-sum-exp. A gate on the output is applied to the gradient of
the scores: no gated copy of grad_out is ever made. `delta` is the row sum of gate * grad_out * out.
"""

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.launch import Launch, Place, Tile, dim_constants, stride_arguments
from trisparse.triton.primitives import LOG2_E, zero_parts
from trisparse.triton.selection_primitives import TokenTile, Visits, keys_of_step, visit_list, visited_keys
from trisparse.triton.steps import gradient_rows, query_gradient_step, store_query_gradient
from trisparse.triton.tiles import pair_of, program_digits, row_offsets, tile_place, tile_rows


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
    chunk, group, tile, batch = program_digits(CHUNKS, groups, num_tiles)
    first, stop, token_first, _, _, row_stop = tile_place(table, tile, TOKENS, num_rows, num_rows, PACKED)
    tile_stop = tl.minimum(first + TOKENS, stop)
    tokens, heads, kept = tile_rows(first, tile_stop, chunk, group, HEADS_PER_GROUP, HEADS, ROWS)
    shift = query_start - token_first
    own_first = (first + shift) // SELECT_BLOCK
    offset, past, visits = visit_list(
        blocks, batch, group, tile, first, stop, own_first, num_lists, groups, LENGTH, WIDTH
    )
    blocks += offset
    if UNION:
        members += offset

    # lse, delta and d query are ours and contiguous: [B, Tq, H] and [B, Tq, H, D]
    places = row_offsets(batch * num_rows + tokens, heads, groups * HEADS_PER_GROUP, 1)
    rows = gradient_rows(
        (query, query_stride_b, query_stride_t, query_stride_h),
        (grad, grad_stride_b, grad_stride_t, grad_stride_h),
        (gate, gate_stride_b, gate_stride_t, gate_stride_h),
        (lse, delta, places),
        (batch, tokens, heads, kept),
        GATED,
        HEAD_DIMS,
        VALUE_DIMS,
    )
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, token_first.to(tl.int64), group)

    sums = zero_parts(ROWS, HEAD_DIMS)
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    for masked in tl.static_range(2):
        lower, upper = (past, visits) if masked else (0, past)
        for step in range(lower * PARTS, upper * PARTS):
            keys, exists, visible = visited_keys(
                step,
                blocks,
                members,
                tokens - first,
                tokens + shift,
                row_stop + shift,
                masked,
                UNION,
                KEYS,
                SELECT_BLOCK,
            )
            sums = query_gradient_step(
                sums, rows, pair, keys, exists, visible, score_scale, GATED, HEAD_DIMS, VALUE_DIMS
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
    return Launch(
        kernel=selected_query_kernel,
        programs=visits.programs(tokens),
        arguments={
            "query": query,
            "key": key,
            "value": value,
            "grad": grad_out,
            "lse": lse,
            "delta": delta,
            "gate": gate,
            "partial": partial,
            "grad_query": grad_query,
            **visits.arguments,
            **stride_arguments(query=query, key=key, value=value, grad=grad_out, gate=gate),
            "num_rows": query.shape[1],
            "query_start": place.query_start,
            "groups": key.shape[2],
            "scale": place.scale,
            "score_scale": place.scale * LOG2_E.value,
        },
        constants={
            "GATED": gate is not None,
            "ADDED": partial is not None,
            "HEADS_PER_GROUP": query.shape[2] // key.shape[2],
            "KEYS": keys_of_step(place.config.select_block, tile.keys),
            "SELECT_BLOCK": place.config.select_block,
            **visits.constants,
            **tokens.constants,
            **dim_constants(query.shape[3], value.shape[3]),
        },
        tile=tile,
    )
