# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""d query of `band_forward`: a tile of rows walks over the keys it sees once more.

The weights are recomputed from the saved log-sum-exp. Where the row's output had a gate, the gate is applied
to the scores' gradient: no gated copy of grad_out is ever made. `delta` is the row sum of gate * grad_out *
out.
"""

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import Band, band_visible, key_bounds
from trisparse.triton.launch import (
    Launch,
    PinnedTiles,
    Place,
    Tile,
    dim_constants,
    heads_per_tile,
    stride_arguments,
)
from trisparse.triton.primitives import (
    LOG2_E,
    add_parts,
    add_product,
    dot_transposed,
    load_lse,
    load_parts,
    load_rows,
    row_heads,
    row_offsets,
    row_tokens,
    scale_parts,
    score_gradient,
    store_parts,
    tile_place,
    zero_parts,
)

# chosen by what compiles without spilling registers
QUERY_TILES: PinnedTiles = {
    "large": ((640, Tile(128, 64, 8, 2)), (float("inf"), Tile(32, 32, 8, 1))),
    "medium": (
        (512, Tile(64, 64, 8, 2)),
        (640, Tile(32, 64, 4, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
    "small": (
        (512, Tile(64, 32, 4, 1)),
        (640, Tile(32, 32, 4, 1)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
}


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
    key_first,
    end,
    positions,
    window,
    score_scale,
    key_stride_t,
    value_stride_t,
    MASKED: tl.constexpr,
    GATED: tl.constexpr,
    KEYS: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    WINDOWED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    """d query / scale, `sums`, after one more tile of keys."""
    keys = key_first + tl.arange(0, KEYS)
    rows = keys.to(tl.int64)
    exists = keys < end if MASKED else None
    key_parts = load_parts(key, rows * key_stride_t, exists, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    value_parts = load_parts(value, rows * value_stride_t, exists, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    weights = tl.exp2(dot_transposed(query, key_parts) * score_scale - lse[:, None])
    products = dot_transposed(grad, value_parts)
    grad_scores = score_gradient(weights, products, gate[:, None], delta[:, None], GATED)
    if MASKED:
        # set, not multiplied: 0 * inf is NaN, and a hidden key's product may have overflowed
        visible = band_visible(positions[:, None], keys[None, :], window, STRIDE, SPAN, WINDOWED)
        grad_scores = tl.where(visible, grad_scores, 0.0)
    return add_product(sums, grad_scores, key_parts)


@triton.jit(do_not_specialize=["num_tiles", "num_rows", "num_keys", "query_start", "window", "groups"])
def query_gradient_kernel(
    query,
    key,
    value,
    grad,
    lse,
    delta,
    gate,
    partial,
    grad_query,
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
    num_rows,
    num_keys,
    query_start,
    window,
    scale,
    score_scale,
    groups,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PACKED: tl.constexpr,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    WINDOWED: tl.constexpr,
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
    across = tl.num_programs(0) // num_tiles
    batch = program % across // (CHUNKS * groups)
    tile = program // across
    if not PACKED:
        # late rows see most compressed keys: longest first
        tile = num_tiles - 1 - tile
    first, stop, token_first, block_first, _, _ = tile_place(
        table, tile, ROWS // HEADS, num_rows, num_rows, PACKED
    )
    key_zero = token_first if WINDOWED else block_first
    shift = query_start - token_first

    tokens = row_tokens(first, ROWS, HEADS)
    heads = row_heads(chunk, ROWS, HEADS)
    kept = (tokens < stop) & (heads < HEADS_PER_GROUP)
    head_zero = group * HEADS_PER_GROUP
    query += batch * query_stride_b + head_zero * query_stride_h
    query_offsets = row_offsets(tokens, heads, query_stride_t, query_stride_h)
    queries = load_parts(query, query_offsets, kept, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    grad += batch * grad_stride_b + head_zero * grad_stride_h
    grad_offsets = row_offsets(tokens, heads, grad_stride_t, grad_stride_h)
    grads = load_parts(grad, grad_offsets, kept, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    # lse, delta and d query are ours and contiguous: [B, Tq, H] and [B, Tq, H, D]
    places = row_offsets(batch * num_rows + tokens, head_zero + heads, groups * HEADS_PER_GROUP, 1)
    row_lse = load_lse(lse, places, kept)
    row_delta = load_rows(delta, places, kept, 0.0)
    row_gate = row_delta
    if GATED:
        gate += batch * gate_stride_b + head_zero * gate_stride_h
        gate_offsets = row_offsets(tokens, heads, gate_stride_t, gate_stride_h)
        row_gate = load_rows(gate, gate_offsets, kept, 0.0)
    key += batch * key_stride_b + group * key_stride_h + key_zero.to(tl.int64) * key_stride_t
    value += batch * value_stride_b + group * value_stride_h + key_zero.to(tl.int64) * value_stride_t

    last = tl.minimum(first + ROWS // HEADS, stop) - 1
    begin, inner_begin, inner_end, end = key_bounds(
        first + shift, last + shift, num_keys - key_zero, window, KEYS, STRIDE, SPAN, WINDOWED
    )
    positions = tokens + shift
    sums = zero_parts(ROWS, HEAD_FIRST, HEAD_SECOND)
    for phase in tl.static_range(3):
        lower, upper = begin, tl.minimum(inner_begin, end)
        if phase == 1:
            lower, upper = inner_begin, inner_end
        if phase == 2:
            lower, upper = inner_end, end
        for key_first in range(lower, upper, KEYS):
            sums = _query_step(
                sums,
                queries,
                grads,
                row_lse,
                row_delta,
                row_gate,
                key,
                value,
                key_first,
                end,
                positions,
                window,
                score_scale,
                key_stride_t,
                value_stride_t,
                phase != 1,
                GATED,
                KEYS,
                STRIDE,
                SPAN,
                WINDOWED,
                HEAD_DIM,
                HEAD_FIRST,
                HEAD_SECOND,
                VALUE_DIM,
                VALUE_FIRST,
                VALUE_SECOND,
            )

    sums = scale_parts(sums, scale)
    if ADDED:
        sums = add_parts(
            sums, load_parts(partial, places * HEAD_DIM, kept, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
        )
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
    place: Place,
    band: Band,
    tile: Tile,
) -> Launch:
    """Fills contiguous `grad_query` [B, Tq, H, D] with d query, plus `partial` of that shape if it is given.

    `lse` and `delta` are contiguous fp32 [B, Tq, H], `gate` is any view [B, Tq, H]. `partial` may be
    `grad_query` itself.
    """
    batch, num_rows, num_heads, head_dim = query.shape
    groups = key.shape[2]
    heads_per_group = num_heads // groups
    heads = heads_per_tile(heads_per_group, tile.rows)
    chunks = triton.cdiv(heads_per_group, heads)
    tokens = tile.rows // heads
    table = None
    if place.packed is not None:
        table = place.packed.row_tiles(tokens, longest_first=band.window is None)
    num_tiles = triton.cdiv(num_rows, tokens) if table is None else table.shape[0]
    return Launch(
        kernel=query_gradient_kernel,
        programs=num_tiles * batch * groups * chunks if num_rows else 0,
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
            "table": table,
            **stride_arguments(query=query, key=key, value=value, grad=grad_out, gate=gate),
            "num_tiles": num_tiles,
            "num_rows": num_rows,
            "num_keys": key.shape[1],
            "query_start": place.query_start,
            "window": band.reach(key.shape[1]),
            "scale": place.scale,
            "score_scale": place.scale * LOG2_E.value,
            "groups": groups,
        },
        constants={
            "HEADS_PER_GROUP": heads_per_group,
            "HEADS": heads,
            "CHUNKS": chunks,
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "PACKED": table is not None,
            "GATED": gate is not None,
            "ADDED": partial is not None,
            **band.constants,
            **dim_constants(head_dim, value.shape[3]),
        },
        tile=tile,
    )
