# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Selected branch, forward: each query row attends the raw tokens of the blocks its group chose (spec 5).

A tile of query tokens visits its blocks in ascending order. Blocks that end before its first token need no
causal mask; only the last few, among them the tokens' own, do.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.block_index import usable_ids, used_slots
from trisparse.triton.launch import (
    Launch,
    PinnedTiles,
    Place,
    Tile,
    attention_arguments,
    call_place,
    pinned,
    rowwise,
)
from trisparse.triton.primitives import empty_state
from trisparse.triton.selection_primitives import (
    TokenTile,
    Visits,
    empty_visits,
    token_tile,
    visit_launch,
    visits_of,
)
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.steps import attend_keys, store_attention
from trisparse.triton.tiles import load_view, pair_of, row_places
from trisparse.triton.variants import KernelVariant
from trisparse.triton.visits import visit_bounds, visit_tile, visited_keys

# most rows and keys of a step, chosen by what compiles without spilling
TILES: PinnedTiles = {
    "large": ((640, Tile(64, 64, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "medium": ((640, Tile(64, 64, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "small": ((512, Tile(64, 32, 4, 2)), (640, Tile(64, 32, 4, 1)), (float("inf"), Tile(16, 32, 8, 1))),
}


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "num_lists", "query_start"])
def selected_forward_kernel(
    query,
    key,
    value,
    out,
    lse,
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
    num_tiles,
    num_lists,
    num_rows,
    query_start,
    groups,
    score_scale,
    PACKED: tl.constexpr,
    UNION: tl.constexpr,
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

    query_view = query, query_stride_b, query_stride_t, query_stride_h
    queries = load_view(query_view, rows, HEAD_DIMS)
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, key_zero, group)

    state = empty_state(ROWS, VALUE_DIMS)
    for masked in tl.static_range(2):
        lower, upper = visit_bounds(visits, masked == 0, KEYS, SELECT_BLOCK)
        for step in range(lower, upper):
            keys, exists, visible = visited_keys(
                step, blocks, members, visits, sight, masked == 1 or RAGGED, UNION, KEYS, SELECT_BLOCK
            )
            state = attend_keys(
                state,
                queries,
                pair,
                keys,
                exists if masked == 1 or RAGGED else None,
                visible if masked == 1 or RAGGED or UNION else None,
                score_scale,
                HEAD_DIMS,
                VALUE_DIMS,
            )

    # out and lse are ours and contiguous: [B, Tq, H, E] and [B, Tq, H]
    places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)
    store_attention(state, out, lse, places, kept, VALUE_DIMS)


def forward_launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    visits: Visits,
    place: Place,
    tokens: TokenTile,
    tile: Tile,
) -> Launch:
    """Fills contiguous `out` [B, Tq, H, E] and `lse` [B, Tq, H]."""
    arguments = {**attention_arguments(query, key, value, place), "out": out, "lse": lse}
    kernel = selected_forward_kernel
    return visit_launch(kernel, arguments, {}, query, key, value, visits, place, tokens, tile)


def attend_selected(
    query: Tensor, key: Tensor, value: Tensor, ids: Tensor, out: Tensor, lse: Tensor, place: Place
) -> None:
    """Fill contiguous `out` [B, Tq, H, E] and `lse` [B, Tq, H]; `ids` are ascending and distinct, -1 last."""
    query, key, value = rowwise(query), rowwise(key), rowwise(value)
    ids = used_slots(ids, place)
    tokens, tile = token_tile(query, key, ids, pinned(TILES, key, value))
    forward_launch(query, key, value, out, lse, visits_of(ids, tokens, place), place, tokens, tile).run()


def selected_place(
    query: Tensor,
    key: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Place:
    """The place of a call that has raw tokens only."""
    sizes = {"num_rows": query.shape[1], "query_start": query_start, "num_tokens": key.shape[1]}
    return call_place(config, scale, cu_seqlens, **sizes)


def selected_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """Spec 5: query [B, Tq, H, D], key [B, T, G, D], value [B, T, G, E], any ids [B, Tq, G, S].

    Returns:
        out [B, Tq, H, E] in the query's dtype and lse [B, Tq, H], natural, fp32; 0 and -inf for a row without
        a usable id.
    """
    place = selected_place(query, key, config, scale, cu_seqlens, query_start)
    out, lse = place.new_results(query, value.shape[3])
    attend_selected(query, key, value, usable_ids(ids, place), out, lse, place)
    return out, lse


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, place, query, key, value in shape_cases(TOKENS):
        out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        ids = query.new_empty(*query.shape[:2], key.shape[2], 16, dtype=torch.int32)
        tokens, tile = token_tile(query, key, ids, pinned(TILES, key, value))
        visits = empty_visits(ids, tokens, place)
        launch = forward_launch(query, key, value, out, lse, visits, place, tokens, tile)
        yield launch.variant(f"selected_forward[{shape.label}]", hot=shape.hot)
