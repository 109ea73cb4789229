# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Attention over keys that a row sees as soon as they are complete, and no longer than `window` positions.

That is the window branch (a key is one token) and the compressed branch (a key is a block, and there is no
window): key i of a document is complete at its position i * STRIDE + SPAN - 1. A program holds a tile of
(token, head) rows and walks over its keys; only tiles of keys that some of its rows do not see are masked.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.launch import (
    Launch,
    Place,
    Tile,
    attention_arguments,
    dim_constants,
    heads_per_tile,
)
from trisparse.triton.primitives import empty_state
from trisparse.triton.steps import attend_keys, store_attention
from trisparse.triton.tiles import load_view, pair_of, row_places, row_tile, tile_rows


class Band(NamedTuple):
    """Which keys a position sees: those complete at it, at most `window` positions ago (None: ever).

    A window goes with stride 1 and span 1, that is with raw tokens.
    """

    stride: int
    span: int
    window: int | None

    @property
    def constants(self) -> dict[str, int | bool]:
        """The constexpr arguments of a kernel."""
        return {"STRIDE": self.stride, "SPAN": self.span, "WINDOWED": self.window is not None}

    def reach(self, num_keys: int) -> int:
        """The window as a kernel takes it: no row sees more than all keys, and sums must fit into int32."""
        return 0 if self.window is None else min(self.window, num_keys)


@triton.jit
def keys_complete(position, STRIDE: tl.constexpr, SPAN: tl.constexpr):
    """How many keys of its document are complete at `position`."""
    return tl.maximum(position + 1 - SPAN + STRIDE, 0) // STRIDE


@triton.jit
def band_visible(positions, keys, window, STRIDE: tl.constexpr, SPAN: tl.constexpr, WINDOWED: tl.constexpr):
    """Whether `positions` see `keys`; both must broadcast."""
    age = positions - (keys * STRIDE + SPAN - 1)
    visible = age >= 0
    if WINDOWED:
        visible = visible & (age < window)
    return visible


@triton.jit
def key_bounds(
    first_position,
    last_position,
    num_keys,
    window,
    KEYS: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """(begin, inner begin, inner end, end): the keys that positions first .. last see.

    Tiles of keys are counted from `begin` on. All positions see all keys between the inner bounds.
    """
    end = tl.minimum(keys_complete(last_position, STRIDE, SPAN), num_keys)
    seen_by_first = tl.minimum(keys_complete(first_position, STRIDE, SPAN), end)
    begin = 0
    inner_begin = 0
    if WINDOWED:
        begin = tl.maximum(first_position - window + 1, 0)
        left = tl.maximum(last_position - window + 1 - begin, 0)
        inner_begin = begin + tl.cdiv(left, KEYS) * KEYS
    inner_end = tl.maximum(begin + (seen_by_first - begin) // KEYS * KEYS, inner_begin)
    return begin, inner_begin, inner_end, end


@triton.jit
def band_tile(
    table,
    num_tiles,
    num_rows,
    num_keys,
    query_start,
    window,
    groups,
    TILE: tl.constexpr,
    BAND: tl.constexpr,
    PACKED: tl.constexpr,
):
    """(rows, positions, group, first key of the document, bounds) of a program with a tile of rows.

    TILE is (HEADS_PER_GROUP, HEADS, CHUNKS, ROWS, KEYS) and BAND is (STRIDE, SPAN, WINDOWED).
    """
    TOKENS: tl.constexpr = TILE[3] // TILE[1]
    chunk, group, batch, first, stop, token_first, block_first = row_tile(
        table, num_tiles, num_rows, groups, TILE[2], TOKENS, PACKED
    )
    rows = tile_rows(batch, first, stop, chunk, group, TILE[0], TILE[1], TILE[3])
    shift = query_start - token_first
    key_zero = token_first if BAND[2] else block_first
    last = tl.minimum(first + TOKENS, stop) - 1
    bounds = key_bounds(
        first + shift, last + shift, num_keys - key_zero, window, TILE[4], BAND[0], BAND[1], BAND[2]
    )
    return rows, rows[1] + shift, group, key_zero.to(tl.int64), bounds


@triton.jit
def phase_bounds(bounds, PHASE: tl.constexpr):
    """(lower, upper) of one of the three loops between (begin, inner begin, inner end, end): all of its tiles
    are masked in phases 0 and 2, and none in phase 1."""
    if PHASE == 0:
        return bounds[0], tl.minimum(bounds[1], bounds[3])
    elif PHASE == 1:
        return bounds[1], bounds[2]
    else:
        return bounds[2], bounds[3]


@triton.jit
def band_keys(first, end, positions, window, KEYS: tl.constexpr, BAND: tl.constexpr):
    """(keys, exists, visible) of the tile that begins with key `first`, as a step takes them."""
    keys = first + tl.arange(0, KEYS)
    visible = band_visible(positions[:, None], keys[None, :], window, BAND[0], BAND[1], BAND[2])
    return keys, keys < end, visible


@triton.jit(do_not_specialize=["num_tiles", "num_rows", "num_keys", "query_start", "window", "groups"])
def band_forward_kernel(
    query,
    key,
    value,
    out,
    lse,
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
    num_tiles,
    num_rows,
    num_keys,
    query_start,
    window,
    score_scale,
    groups,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PACKED: tl.constexpr,
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

    query_view = query, query_stride_b, query_stride_t, query_stride_h
    queries = load_view(query_view, rows, HEAD_DIMS)
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, key_zero, group)

    state = empty_state(ROWS, VALUE_DIMS)
    for phase in tl.static_range(3):
        lower, upper = phase_bounds(bounds, phase)
        for key_first in range(lower, upper, KEYS):
            keys, exists, visible = band_keys(key_first, bounds[3], positions, window, KEYS, BAND)
            state = attend_keys(
                state,
                queries,
                pair,
                keys,
                exists if phase != 1 else None,
                visible if phase != 1 else None,
                score_scale,
                HEAD_DIMS,
                VALUE_DIMS,
            )

    # out and lse are ours and contiguous: [B, Tq, H, E] and [B, Tq, H]
    places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)
    store_attention(state, out, lse, places, kept, VALUE_DIMS)


def row_launch(
    kernel: Any,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    place: Place,
    band: Band,
    tile: Tile,
) -> Launch:
    """The launch of a kernel whose programs have tiles of rows, with what such kernels share added."""
    batch, num_rows, num_heads, head_dim = query.shape
    num_keys, groups = key.shape[1:3]
    heads_per_group = num_heads // groups
    heads = heads_per_tile(heads_per_group, tile.rows)
    chunks = triton.cdiv(heads_per_group, heads)
    tokens = tile.rows // heads
    table = None
    if place.packed is not None:
        table = place.packed.row_tiles(tokens, longest_first=band.window is None)
    num_tiles = triton.cdiv(num_rows, tokens) if table is None else table.shape[0]
    return Launch(
        kernel=kernel,
        programs=num_tiles * batch * groups * chunks if num_rows else 0,
        arguments={
            **arguments,
            "table": table,
            "num_tiles": num_tiles,
            "num_keys": num_keys,
            "window": band.reach(num_keys),
        },
        constants={
            **constants,
            "HEADS_PER_GROUP": heads_per_group,
            "HEADS": heads,
            "CHUNKS": chunks,
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "PACKED": table is not None,
            **band.constants,
            **dim_constants(head_dim, value.shape[3]),
        },
        tile=tile,
    )


def forward_launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    place: Place,
    band: Band,
    tile: Tile,
) -> Launch:
    """Fills contiguous `out` [B, Tq, H, E] and `lse` [B, Tq, H]."""
    arguments = {**attention_arguments(query, key, value, place), "out": out, "lse": lse}
    return row_launch(band_forward_kernel, arguments, {}, query, key, value, place, band, tile)
