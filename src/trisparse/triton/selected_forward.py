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
from trisparse.triton.primitives import (
    LOG2_E,
    add_product,
    dot_transposed,
    load_parts,
    row_offsets,
    scale_parts,
    softmax_end,
    softmax_step,
    store_parts,
    tile_place,
    zero_parts,
)
from trisparse.triton.selection_primitives import (
    TokenTile,
    Visits,
    empty_visits,
    hide,
    keys_of_step,
    token_tile,
    visit_list,
    visits_of,
)
from trisparse.triton.sequences import packed_sequences
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.variants import KernelVariant

# most rows and keys of a step, chosen by what compiles without spilling
TILES: PinnedTiles = {
    "large": ((640, Tile(64, 64, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "medium": ((640, Tile(64, 64, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "small": ((512, Tile(64, 32, 4, 2)), (640, Tile(64, 32, 4, 1)), (float("inf"), Tile(16, 32, 8, 1))),
}


@triton.jit
def _step(
    state,
    query,
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
    """`state` = (sums, highest, total) after step number `step`: a block, or KEYS tokens of it."""
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    RAGGED: tl.constexpr = SELECT_BLOCK % KEYS > 0
    sums, highest, total = state
    offsets = step % PARTS * KEYS + tl.arange(0, KEYS)
    keys = tl.load(blocks + step // PARTS) * SELECT_BLOCK + offsets
    bits = tl.load(members + step // PARTS) if UNION else 0
    # a key behind the last row is not even loaded: it may be NaN
    exists = (offsets < SELECT_BLOCK) & (keys < reach) if MASKED or RAGGED else None
    places = keys.to(tl.int64)
    key_parts = load_parts(key, places * key_stride_t, exists, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    scores = dot_transposed(query, key_parts) * score_scale
    scores = hide(
        scores,
        float("-inf"),
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
    weights, rescale, highest, total = softmax_step(scores, highest, total)
    values = load_parts(value, places * value_stride_t, exists, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    return add_product(scale_parts(sums, rescale[:, None]), weights, values), highest, total


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
    sums = zero_parts(ROWS, VALUE_FIRST, VALUE_SECOND)
    state = sums, tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    for masked in tl.static_range(2):
        begin, end = 0, past
        if masked == 1:
            begin, end = past, visits
        for step in range(begin * PARTS, end * PARTS):
            state = _step(
                state,
                queries,
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

    sums, highest, total = state
    inverse, log_sum_exp = softmax_end(highest, total)
    # out and lse are ours and contiguous: [B, Tq, H, E] and [B, Tq, H]
    places = row_offsets(batch * num_rows + first + token, head, groups * HEADS_PER_GROUP, 1)
    tl.store(lse + places, log_sum_exp, mask=kept)
    results = scale_parts(sums, inverse[:, None])
    store_parts(out, places * VALUE_DIM, kept, results, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)


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
