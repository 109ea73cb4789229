# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""d key and d value of `band_forward`: a tile of keys walks over the rows that see it, with all their heads.

No atomics: a key belongs to one program. Where few tiles of keys are seen by many rows, the rows are split
among programs, each with sums of its own; the caller adds them in a fixed order.
"""

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import Band, band_visible, phase_bounds
from trisparse.triton.launch import (
    Launch,
    PinnedTiles,
    Place,
    Tile,
    dim_constants,
    gradient_arguments,
    heads_per_tile,
)
from trisparse.triton.primitives import scale_parts, zero_parts
from trisparse.triton.steps import key_gradient_step
from trisparse.triton.tiles import (
    load_pair,
    pair_of,
    program_digits,
    row_places,
    store_pair,
    tile_place,
    tile_rows,
)

# chosen by what compiles without spilling registers in a loop. 16 keys for each warp: the compiler gives
# warps rows of a product whose result goes into another one, and where rows are too few they compute the same
KEY_TILES: PinnedTiles = {
    "large": (
        (256, Tile(64, 128, 8, 2)),
        (640, Tile(32, 128, 8, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
    "medium": (
        (256, Tile(32, 128, 8, 2)),
        (640, Tile(16, 128, 8, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
    "small": (
        (256, Tile(32, 128, 8, 2)),
        (640, Tile(16, 128, 8, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
}


@triton.jit
def row_bounds(
    first_key,
    last_key,
    row_first,
    row_stop,
    shift,
    window,
    TOKENS: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """(begin, inner begin, inner end, end): the query rows within row_first .. row_stop - 1 that see a key.

    Tiles of TOKENS rows are counted from `begin` on. All rows between the inner bounds see all the keys.
    """
    begin = tl.maximum(first_key * STRIDE + SPAN - 1 - shift, row_first)
    end = row_stop
    seen_until = row_stop
    if WINDOWED:
        end = tl.minimum(last_key + window - shift, row_stop)
        seen_until = tl.minimum(first_key + window - shift, row_stop)
    unseen = tl.maximum(last_key * STRIDE + SPAN - 1 - shift - begin, 0)
    inner_begin = begin + tl.cdiv(unseen, TOKENS) * TOKENS
    inner_end = tl.maximum(begin + tl.maximum(seen_until - begin, 0) // TOKENS * TOKENS, inner_begin)
    return begin, inner_begin, inner_end, end


@triton.jit(
    do_not_specialize=[
        "num_tiles",
        "num_splits",
        "rows_per_split",
        "num_rows",
        "num_keys",
        "query_start",
        "window",
        "groups",
    ]
)
def key_gradient_kernel(
    query,
    key,
    value,
    grad,
    lse,
    delta,
    gate,
    grad_key,
    grad_value,
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
    num_splits,
    rows_per_split,
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
    # early compressed keys are seen by most rows: longest first
    batches = tl.num_programs(0) // (num_tiles * num_splits * groups)
    split, group, batch, number = program_digits(num_splits, groups, batches)
    first, stop, token_first, block_first, row_first, row_stop = tile_place(
        table, number, KEYS, num_keys, num_rows, PACKED
    )
    key_zero = token_first if WINDOWED else block_first
    shift = query_start - token_first
    row_first += split.to(tl.int32) * rows_per_split
    # a tile without keys, as a table may have, has no rows to walk over
    row_stop = tl.where(first < stop, tl.minimum(row_stop, row_first + rows_per_split), row_first)
    first_key, last_key = first - key_zero, tl.minimum(first + KEYS, stop) - 1 - key_zero
    bounds = row_bounds(
        first_key, last_key, row_first, row_stop, shift, window, ROWS // HEADS, STRIDE, SPAN, WINDOWED
    )

    keys = first_key + tl.arange(0, KEYS)
    owned = keys <= last_key
    # a key that no row sees is not even loaded: it may be NaN
    exists = owned & (keys * STRIDE + SPAN - 1 < row_stop + shift)
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, key_zero.to(tl.int64), group)
    tile = load_pair(pair, keys, exists, HEAD_DIMS, VALUE_DIMS)

    sums = zero_parts(KEYS, HEAD_DIMS), zero_parts(KEYS, VALUE_DIMS)
    for chunk in range(CHUNKS):
        for phase in tl.static_range(3):
            lower, upper = phase_bounds(bounds, phase)
            for row in range(lower, upper, ROWS // HEADS):
                rows = tile_rows(batch, row, row_stop, chunk, group, HEADS_PER_GROUP, HEADS, ROWS)
                places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)
                _, tokens, heads, kept = rows
                visible = None
                if phase != 1:
                    positions = (tokens + shift)[None, :]
                    visible = band_visible(positions, keys[:, None], window, STRIDE, SPAN, WINDOWED)
                sums = key_gradient_step(
                    sums,
                    tile,
                    (query, query_stride_b, query_stride_t, query_stride_h),
                    (grad, grad_stride_b, grad_stride_t, grad_stride_h),
                    (gate, gate_stride_b, gate_stride_t, gate_stride_h),
                    (lse, delta, places),
                    # rows that see all keys exist
                    (batch, tokens, heads, None if phase == 1 and HEADS_PER_GROUP % HEADS == 0 else kept),
                    visible,
                    score_scale,
                    GATED,
                    HEAD_DIMS,
                    VALUE_DIMS,
                )

    # d key and d value are ours and contiguous: [splits, B, N, G, D | E]
    places = ((split * batches + batch) * num_keys + key_zero + keys) * groups + group
    grad_pair = grad_key, grad_value, HEAD_DIM, VALUE_DIM
    store_pair(grad_pair, places, owned, scale_parts(sums[0], scale), sums[1], HEAD_DIMS, VALUE_DIMS)


def key_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    grad_key: Tensor,
    grad_value: Tensor,
    place: Place,
    band: Band,
    tile: Tile,
) -> Launch:
    """Fills contiguous `grad_key` [splits, B, N, G, D] and `grad_value` [splits, B, N, G, E] with sums.

    Split i is for the i-th run of `ceil(Tq / splits)` rows of each document. The other arguments are those of
    `query_gradient`.
    """
    batch, num_rows, num_heads, head_dim = query.shape
    num_splits, _, num_keys, groups, _ = grad_key.shape
    heads_per_group = num_heads // groups
    heads = heads_per_tile(heads_per_group, tile.rows)
    table = None
    if place.packed is not None:
        tiles_of = place.packed.block_tiles if band.window is None else place.packed.token_tiles
        table = tiles_of(tile.keys)
    num_tiles = triton.cdiv(num_keys, tile.keys) if table is None else table.shape[0]
    return Launch(
        kernel=key_gradient_kernel,
        programs=num_tiles * batch * groups * num_splits if num_keys else 0,
        arguments={
            **gradient_arguments(query, key, value, grad_out, lse, delta, gate, place),
            "grad_key": grad_key,
            "grad_value": grad_value,
            "table": table,
            "num_tiles": num_tiles,
            "num_splits": num_splits,
            "rows_per_split": triton.cdiv(num_rows, num_splits),
            "num_keys": num_keys,
            "window": band.reach(num_keys),
        },
        constants={
            "HEADS_PER_GROUP": heads_per_group,
            "HEADS": heads,
            "CHUNKS": triton.cdiv(heads_per_group, heads),
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "PACKED": table is not None,
            "GATED": gate is not None,
            **band.constants,
            **dim_constants(head_dim, value.shape[3]),
        },
        tile=tile,
    )
