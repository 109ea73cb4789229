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
    dim_constants,
    pinned,
    rowwise,
    stride_arguments,
)
from trisparse.triton.primitives import LOG2_E, empty_state
from trisparse.triton.selection_primitives import (
    TokenTile,
    Visits,
    empty_visits,
    keys_of_step,
    token_tile,
    visit_list,
    visited_keys,
    visits_of,
)
from trisparse.triton.sequences import packed_sequences
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.steps import attend_keys, store_attention
from trisparse.triton.tiles import load_view, pair_of, program_digits, row_offsets, tile_place, tile_rows
from trisparse.triton.variants import KernelVariant

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

    query_view = query, query_stride_b, query_stride_t, query_stride_h
    queries = load_view(query_view, batch, tokens, heads, kept, HEAD_DIMS)
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, token_first.to(tl.int64), group)

    state = empty_state(ROWS, VALUE_DIMS)
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
            state = attend_keys(
                state, queries, pair, keys, exists, visible, score_scale, HEAD_DIMS, VALUE_DIMS
            )

    # out and lse are ours and contiguous: [B, Tq, H, E] and [B, Tq, H]
    places = row_offsets(batch * num_rows + tokens, heads, groups * HEADS_PER_GROUP, 1)
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
    return Launch(
        kernel=selected_forward_kernel,
        programs=visits.programs(tokens),
        arguments={
            "query": query,
            "key": key,
            "value": value,
            "out": out,
            "lse": lse,
            **visits.arguments,
            **stride_arguments(query=query, key=key, value=value),
            "num_rows": query.shape[1],
            "query_start": place.query_start,
            "groups": key.shape[2],
            "score_scale": place.scale * LOG2_E.value,
        },
        constants={
            "HEADS_PER_GROUP": query.shape[2] // key.shape[2],
            "KEYS": keys_of_step(place.config.select_block, tile.keys),
            "SELECT_BLOCK": place.config.select_block,
            **visits.constants,
            **tokens.constants,
            **dim_constants(query.shape[3], value.shape[3]),
        },
        tile=tile,
    )


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
    packed = packed_sequences(
        cu_seqlens, config, num_rows=query.shape[1], query_start=query_start, num_tokens=key.shape[1]
    )
    return Place(config=config, scale=scale, query_start=query_start, packed=packed)


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
    out = query.new_empty(*query.shape[:3], value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    place = selected_place(query, key, config, scale, cu_seqlens, query_start)
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
