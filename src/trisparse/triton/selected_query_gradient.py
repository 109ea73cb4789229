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
from trisparse.triton.primitives import (
    LOG2_E,
    add_parts,
    add_product,
    dot_transposed,
    load_lse,
    load_parts,
    load_rows,
    row_offsets,
    scale_parts,
    score_gradient,
    store_parts,
    tile_place,
    zero_parts,
)
from trisparse.triton.selection_primitives import TokenTile, Visits, hide, keys_of_step, visit_list


@triton.jit
def _query_step(
    sums,
    query,
    grad,
    lse,
    delta,
    gate,
    key,
    value,
    blocks,
    members,
    step,
    positions,
    reach,
    token,
    score_scale,
    key_stride_t,
    value_stride_t,
    MASKED: tl.constexpr,
    GATED: tl.constexpr,
    UNION: tl.constexpr,
    KEYS: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    """d query / scale, `sums`, after step number `step`: a block, or KEYS tokens of it."""
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    RAGGED: tl.constexpr = SELECT_BLOCK % KEYS > 0
    offsets = step % PARTS * KEYS + tl.arange(0, KEYS)
    keys = tl.load(blocks + step // PARTS) * SELECT_BLOCK + offsets
    bits = tl.load(members + step // PARTS) if UNION else 0
    # a key behind the last row is not even loaded: it may be NaN
    exists = (offsets < SELECT_BLOCK) & (keys < reach) if MASKED or RAGGED else None
    places = keys.to(tl.int64)
    key_parts = load_parts(key, places * key_stride_t, exists, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    value_parts = load_parts(value, places * value_stride_t, exists, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    weights = tl.exp2(dot_transposed(query, key_parts) * score_scale - lse[:, None])
    products = dot_transposed(grad, value_parts)
    grad_scores = score_gradient(weights, products, gate[:, None], delta[:, None], GATED)
    # set, not multiplied: 0 * inf is NaN, and a hidden key's product may have overflowed
    grad_scores = hide(
        grad_scores,
        0.0,
        keys,
        offsets,
        reach,
        positions,
        bits,
        token,
        MASKED,
        UNION,
        RAGGED,
        SELECT_BLOCK,
    )
    return add_product(sums, grad_scores, key_parts)


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
    program = tl.program_id(0).to(tl.int64)
    chunk = program % CHUNKS
    group = program // CHUNKS % groups
    tile = program // (CHUNKS * groups) % num_tiles
    batch = program // (CHUNKS * groups) // num_tiles
    first, stop, token_first, _, _, row_stop = tile_place(table, tile, TOKENS, num_rows, num_rows, PACKED)
    shift = query_start - token_first

    row = tl.arange(0, ROWS)
    token, head = row // HEADS, chunk * HEADS + row % HEADS
    kept = (token < TOKENS) & (first + token < stop) & (head < HEADS_PER_GROUP)
    positions = first + token + shift
    head += group * HEADS_PER_GROUP
    query += batch * query_stride_b
    query_offsets = row_offsets(first + token, head, query_stride_t, query_stride_h)
    queries = load_parts(query, query_offsets, kept, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    grad += batch * grad_stride_b
    grad_offsets = row_offsets(first + token, head, grad_stride_t, grad_stride_h)
    grads = load_parts(grad, grad_offsets, kept, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    # lse, delta and d query are ours and contiguous: [B, Tq, H] and [B, Tq, H, D]
    places = row_offsets(batch * num_rows + first + token, head, groups * HEADS_PER_GROUP, 1)
    row_lse = load_lse(lse, places, kept)
    row_delta = load_rows(delta, places, kept, 0.0)
    row_gate = row_delta
    if GATED:
        gate += batch * gate_stride_b
        gate_offsets = row_offsets(first + token, head, gate_stride_t, gate_stride_h)
        row_gate = load_rows(gate, gate_offsets, kept, 0.0)
    key += batch * key_stride_b + group * key_stride_h + token_first.to(tl.int64) * key_stride_t
    value += batch * value_stride_b + group * value_stride_h + token_first.to(tl.int64) * value_stride_t

    offset, past, visits = visit_list(
        blocks,
        batch,
        group,
        tile,
        first,
        stop,
        (first + shift) // SELECT_BLOCK,
        num_lists,
        groups,
        LENGTH,
        WIDTH,
    )
    blocks += offset
    if UNION:
        members += offset
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    sums = zero_parts(ROWS, HEAD_FIRST, HEAD_SECOND)
    for masked in tl.static_range(2):
        begin, end = 0, past
        if masked == 1:
            begin, end = past, visits
        for step in range(begin * PARTS, end * PARTS):
            sums = _query_step(
                sums,
                queries,
                grads,
                row_lse,
                row_delta,
                row_gate,
                key,
                value,
                blocks,
                members,
                step,
                positions,
                row_stop + shift,
                token,
                score_scale,
                key_stride_t,
                value_stride_t,
                masked == 1,
                GATED,
                UNION,
                KEYS,
                SELECT_BLOCK,
                HEAD_DIM,
                HEAD_FIRST,
                HEAD_SECOND,
                VALUE_DIM,
                VALUE_FIRST,
                VALUE_SECOND,
            )

    sums = scale_parts(sums, scale)
    if ADDED:
        before = load_parts(partial, places * HEAD_DIM, kept, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
        sums = add_parts(sums, before)
    store_parts(grad_query, places * HEAD_DIM, kept, sums, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)


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
