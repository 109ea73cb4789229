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

from trisparse.triton.band_forward import Band, band_keys, band_tile, phase_bounds, row_launch
from trisparse.triton.launch import Launch, PinnedTiles, Place, Tile, gradient_arguments
from trisparse.triton.primitives import zero_parts
from trisparse.triton.steps import gradient_rows, query_gradient_step, store_query_gradient
from trisparse.triton.tiles import pair_of, row_places

# chosen by what compiles without spilling registers
QUERY_TILES: PinnedTiles = {
    "large": ((640, Tile(128, 64, 8, 2)), (float("inf"), Tile(32, 32, 8, 1))),
    "medium": (
        (256, Tile(64, 64, 4, 2)),
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
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    TILE: tl.constexpr = (HEADS_PER_GROUP, HEADS, CHUNKS, ROWS, KEYS)
    BAND: tl.constexpr = (STRIDE, SPAN, WINDOWED)
    rows, positions, group, key_zero, bounds = band_tile(
        table, num_tiles, num_rows, num_keys, query_start, window, groups, TILE, BAND, PACKED
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
    for phase in tl.static_range(3):
        lower, upper = phase_bounds(bounds, phase)
        for key_first in range(lower, upper, KEYS):
            keys, exists, visible = band_keys(key_first, bounds[3], positions, window, KEYS, BAND)
            sums = query_gradient_step(
                sums,
                row_tile,
                pair,
                keys,
                exists if phase != 1 else None,
                visible if phase != 1 else None,
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
    place: Place,
    band: Band,
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
    return row_launch(query_gradient_kernel, arguments, constants, *inputs, place, band, tile)
