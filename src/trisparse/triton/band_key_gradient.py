# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""d key and d value of `band_forward`: a tile of keys walks over the rows that see it, with all their heads.

No atomics: a key belongs to one program. Where few tiles of keys are seen by many rows, the rows are split
among programs, each with sums of its own; the caller adds them in a fixed order.
"""

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import Band, band_visible
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
KEY_TILES: PinnedTiles = {
    "large": (
        (512, Tile(64, 64, 8, 2)),
        (640, Tile(32, 64, 8, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
    "medium": (
        (512, Tile(64, 64, 8, 2)),
        (640, Tile(64, 32, 8, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
    "small": (
        (512, Tile(32, 64, 8, 2)),
        (640, Tile(64, 32, 8, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
}


@triton.jit
def _key_step(
    grad_keys,
    grad_values,
    keys,
    values,
    key_index,
    query,
    grad,
    lse,
    delta,
    gate,
    first,
    stop,
    chunk,
    shift,
    window,
    score_scale,
    num_heads,
    query_stride_t,
    query_stride_h,
    grad_stride_t,
    grad_stride_h,
    gate_stride_t,
    gate_stride_h,
    MASKED: tl.constexpr,
    GATED: tl.constexpr,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
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
    """d key / scale and d value after one more tile of rows."""
    tokens = row_tokens(first, ROWS, HEADS)
    heads = row_heads(chunk, ROWS, HEADS)
    # rows that see all keys exist
    whole: tl.constexpr = not MASKED and HEADS_PER_GROUP % HEADS == 0
    kept = None if whole else (tokens < stop) & (heads < HEADS_PER_GROUP)
    query_offsets = row_offsets(tokens, heads, query_stride_t, query_stride_h)
    queries = load_parts(query, query_offsets, kept, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    places = row_offsets(tokens, heads, num_heads, 1)
    row_lse = load_lse(lse, places, kept)
    # transposed, [keys, rows]: the weights are then the left operand of both products
    weights = tl.exp2(dot_transposed(keys, queries) * score_scale - row_lse[None, :])
    if MASKED:
        visible = band_visible((tokens + shift)[None, :], key_index[:, None], window, STRIDE, SPAN, WINDOWED)
        weights = tl.where(visible, weights, 0.0)
    grad_offsets = row_offsets(tokens, heads, grad_stride_t, grad_stride_h)
    grads = load_parts(grad, grad_offsets, kept, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    row_delta = load_rows(delta, places, kept, 0.0)
    row_gate = row_delta
    gated = weights
    if GATED:
        gate_offsets = row_offsets(tokens, heads, gate_stride_t, gate_stride_h)
        row_gate = load_rows(gate, gate_offsets, kept, 0.0)
        gated = weights * row_gate[None, :]
    grad_values = add_product(grad_values, gated, grads)
    products = dot_transposed(values, grads)
    grad_scores = score_gradient(weights, products, row_gate[None, :], row_delta[None, :], GATED)
    if MASKED:
        # set, not multiplied: 0 * inf is NaN, and a hidden key's product may have overflowed
        grad_scores = tl.where(visible, grad_scores, 0.0)
    return add_product(grad_keys, grad_scores, queries), grad_values


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
    program = tl.program_id(0).to(tl.int64)
    split = program % num_splits
    group = program // num_splits % groups
    across = tl.num_programs(0) // num_tiles
    batches = across // (num_splits * groups)
    batch = program % across // (num_splits * groups)
    # early compressed keys are seen by most rows: longest first
    first, stop, token_first, block_first, row_first, row_stop = tile_place(
        table, program // across, KEYS, num_keys, num_rows, PACKED
    )
    key_zero = token_first if WINDOWED else block_first
    shift = query_start - token_first
    row_first += split.to(tl.int32) * rows_per_split
    row_stop = tl.minimum(row_stop, row_first + rows_per_split)

    key_rows = first + tl.arange(0, KEYS)
    key_index = key_rows - key_zero
    last = tl.minimum(first + KEYS, stop) - 1
    begin, inner_begin, inner_end, end = row_bounds(
        first - key_zero,
        last - key_zero,
        row_first,
        row_stop,
        shift,
        window,
        ROWS // HEADS,
        STRIDE,
        SPAN,
        WINDOWED,
    )
    # a key that no row sees is not even loaded: it may be NaN
    exists = (key_rows < stop) & (key_index * STRIDE + SPAN - 1 < row_stop + shift)
    key += batch * key_stride_b + group * key_stride_h
    value += batch * value_stride_b + group * value_stride_h
    keys = load_parts(key, key_rows.to(tl.int64) * key_stride_t, exists, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    values = load_parts(
        value, key_rows.to(tl.int64) * value_stride_t, exists, VALUE_DIM, VALUE_FIRST, VALUE_SECOND
    )
    head_zero = group * HEADS_PER_GROUP
    query += batch * query_stride_b + head_zero * query_stride_h
    grad += batch * grad_stride_b + head_zero * grad_stride_h
    # lse and delta are ours and contiguous: [B, Tq, H]
    num_heads = groups * HEADS_PER_GROUP
    lse += batch * num_rows * num_heads + head_zero
    delta += batch * num_rows * num_heads + head_zero
    if GATED:
        gate += batch * gate_stride_b + head_zero * gate_stride_h

    grad_keys = zero_parts(KEYS, HEAD_FIRST, HEAD_SECOND)
    grad_values = zero_parts(KEYS, VALUE_FIRST, VALUE_SECOND)
    for chunk in range(CHUNKS):
        for phase in tl.static_range(3):
            lower, upper = begin, tl.minimum(inner_begin, end)
            if phase == 1:
                lower, upper = inner_begin, inner_end
            if phase == 2:
                lower, upper = inner_end, end
            for row in range(lower, upper, ROWS // HEADS):
                grad_keys, grad_values = _key_step(
                    grad_keys,
                    grad_values,
                    keys,
                    values,
                    key_index,
                    query,
                    grad,
                    lse,
                    delta,
                    gate,
                    row,
                    row_stop,
                    chunk,
                    shift,
                    window,
                    score_scale,
                    num_heads,
                    query_stride_t,
                    query_stride_h,
                    grad_stride_t,
                    grad_stride_h,
                    gate_stride_t,
                    gate_stride_h,
                    phase != 1,
                    GATED,
                    HEADS_PER_GROUP,
                    HEADS,
                    ROWS,
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

    # d key and d value are ours and contiguous: [splits, B, N, G, D | E]
    places = ((split * batches + batch) * num_keys + key_rows) * groups + group
    owned = key_rows < stop
    grad_keys = scale_parts(grad_keys, scale)
    store_parts(grad_key, places * HEAD_DIM, owned, grad_keys, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    store_parts(grad_value, places * VALUE_DIM, owned, grad_values, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)


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
            "query": query,
            "key": key,
            "value": value,
            "grad": grad_out,
            "lse": lse,
            "delta": delta,
            "gate": gate,
            "grad_key": grad_key,
            "grad_value": grad_value,
            "table": table,
            **stride_arguments(query=query, key=key, value=value, grad=grad_out, gate=gate),
            "num_tiles": num_tiles,
            "num_splits": num_splits,
            "rows_per_split": triton.cdiv(num_rows, num_splits),
            "num_rows": num_rows,
            "num_keys": num_keys,
            "query_start": place.query_start,
            "window": band.reach(key.shape[1]),
            "scale": place.scale,
            "score_scale": place.scale * LOG2_E.value,
            "groups": groups,
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
