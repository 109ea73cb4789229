# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Decoding, importance (eq. 8-10): each tile of selection blocks is scored by a program of its own.

The M heads are summed after their softmax, so this follows the compressed branch, whose pieces give the
log-sum-exp, and computes q . k again: cheaper than a score of every head and key in memory, and the keys were
read a moment ago. As in `topn.py` the keys of a tile of blocks are met phase by phase; those in front of a
block are met once more for it, as its neighbour may be another program's.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import keys_complete
from trisparse.triton.decode_rows import DecodePlace, blocks_until, panel, row_start
from trisparse.triton.decode_shapes import decode_cases
from trisparse.triton.launch import (
    Launch,
    PinnedTiles,
    Tile,
    fit_rows,
    pinned,
    split_dim,
    stride_arguments,
)
from trisparse.triton.primitives import (
    LOG2_E,
    dot_transposed,
    load_parts,
    softmax_end,
    softmax_step,
)
from trisparse.triton.tiles import load_view, program_digits, row_places, tile_rows
from trisparse.triton.variants import KernelVariant

# most rows x selection blocks
TILES: PinnedTiles = {
    "large": ((384, Tile(64, 32, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "medium": ((384, Tile(64, 32, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "small": ((384, Tile(64, 32, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
}

# pieces whose log-sum-exp a step joins
_TOGETHER = tl.constexpr(16)


@triton.jit
def joined_lse(lse, places, pieces, piece_stride, ROWS: tl.constexpr):
    """Log-sum-exp of the first `pieces` [ROWS] pieces of each row, in base 2; +inf, which gives weight 0, for
    a row that sees nothing."""
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, tl.max(pieces, axis=0), _TOGETHER):
        piece = first + tl.arange(0, _TOGETHER)
        offsets = places[:, None] + piece.to(tl.int64)[None, :] * piece_stride
        part = tl.load(lse + offsets, mask=piece[None, :] < pieces[:, None], other=float("-inf"))
        _, _, highest, total = softmax_step(part * LOG2_E, highest, total)
    _, log_sum_exp = softmax_end(highest, total)
    return tl.where(log_sum_exp == float("-inf"), float("inf"), log_sum_exp * LOG2_E)


@triton.jit(
    do_not_specialize=["num_batches", "num_rows", "room", "num_keys", "num_blocks", "panels", "groups"]
)
def decode_scores_kernel(
    query,
    key,
    starts,
    lse,
    scores,
    query_stride_b,
    query_stride_t,
    query_stride_h,
    key_stride_b,
    key_stride_t,
    key_stride_h,
    num_batches,
    num_rows,
    room,
    num_keys,
    num_blocks,
    panels,
    groups,
    score_scale,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PIECE: tl.constexpr,
    COMPRESS_BLOCK: tl.constexpr,
    COMPRESS_STRIDE: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
):
    RATIO: tl.constexpr = SELECT_BLOCK // COMPRESS_STRIDE
    OVERLAP: tl.constexpr = COMPRESS_BLOCK // COMPRESS_STRIDE
    TOKENS: tl.constexpr = ROWS // HEADS
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    panel_number, group, batch, tile = program_digits(panels, groups, num_batches)
    first = panel_number.to(tl.int32) * TOKENS
    first_block = tile.to(tl.int32) * KEYS

    start = row_start(starts, batch, num_rows, room)
    last = start + tl.minimum(first + TOKENS, num_rows) - 1
    candidates = blocks_until(last, SELECT_BLOCK)
    # where every candidate has a slot nothing is to be scored
    if (candidates <= NUM_SELECTED) | (first_block >= candidates):
        return

    tokens = first + tl.arange(0, ROWS) // HEADS
    query_view = query, query_stride_b, query_stride_t, query_stride_h
    key += batch * key_stride_b + group * key_stride_h
    # keys that each row, and that some row sees
    row_seen = tl.minimum(keys_complete(start + tokens, COMPRESS_STRIDE, COMPRESS_BLOCK), num_keys)
    seen = tl.minimum(keys_complete(last, COMPRESS_STRIDE, COMPRESS_BLOCK), num_keys)
    piece_stride = (num_batches * num_rows).to(tl.int64) * groups * HEADS_PER_GROUP
    block = first_block + tl.arange(0, KEYS)
    score = tl.zeros([TOKENS, KEYS], tl.float32)
    for chunk in range(CHUNKS):
        rows = tile_rows(batch, first, num_rows, chunk, group, HEADS_PER_GROUP, HEADS, ROWS)
        queries = load_view(query_view, rows, HEAD_DIMS)
        places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)
        reach = tl.where(rows[3], row_seen, 0)
        row_lse = joined_lse(lse, places, tl.cdiv(reach, PIECE), piece_stride, ROWS)
        for phase in range(1 - OVERLAP, RATIO):
            index = block * RATIO + phase
            exists = (index >= 0) & (index < seen)
            key_parts = load_parts(key, index.to(tl.int64) * key_stride_t, exists, HEAD_DIMS)
            weights = tl.exp2(dot_transposed(queries, key_parts) * score_scale - row_lse[:, None])
            visible = exists[None, :] & (index[None, :] < reach[:, None])
            weights = tl.where(visible, weights, 0.0)
            shared = tl.minimum(tl.minimum(phase + OVERLAP, OVERLAP), RATIO - phase)
            score += tl.sum(tl.reshape(weights, [TOKENS, HEADS, KEYS]), axis=1) * shared
    token = first + tl.arange(0, TOKENS)
    # scores are ours and contiguous: [B, n, G, J]
    token_rows = (batch * num_rows + token) * groups + group
    tl.store(
        scores + token_rows[:, None] * num_blocks + block[None, :],
        score,
        mask=(token < num_rows)[:, None] & (block < num_blocks)[None, :],
    )


def scores_launch(query: Tensor, key: Tensor, scores: Tensor, place: DecodePlace, tile: Tile) -> Launch:
    """Fills contiguous `scores` [B, n, G, J] as far as a token has more candidates than slots."""
    config, rows, groups = place.config, panel(query, key, tile.rows), key.shape[2]
    head_first, head_second = split_dim(query.shape[3])
    across = rows.panels * groups * query.shape[0]
    constants = {
        "HEADS_PER_GROUP": query.shape[2] // groups,
        "KEYS": tile.keys,
        "PIECE": place.pieces.compressed_keys,
        "COMPRESS_BLOCK": config.compress_block,
        "COMPRESS_STRIDE": config.compress_stride,
        "SELECT_BLOCK": config.select_block,
        "NUM_SELECTED": config.num_selected,
        "HEAD_DIM": query.shape[3],
        "HEAD_FIRST": head_first,
        "HEAD_SECOND": head_second,
    }
    return Launch(
        kernel=decode_scores_kernel,
        programs=triton.cdiv(scores.shape[3], tile.keys) * across,
        arguments={
            "query": query,
            "key": key,
            "lse": place.lse,
            "scores": scores,
            **place.arguments,
            **stride_arguments(query=query, key=key),
            "num_keys": key.shape[1],
            "num_blocks": scores.shape[3],
            "panels": rows.panels,
            "groups": groups,
            "score_scale": place.scale * LOG2_E.value,
        },
        constants=constants | rows.constants,
        tile=fit_rows(tile, rows.rows, query),
    )


def score_blocks(query: Tensor, key: Tensor, place: DecodePlace) -> Tensor:
    """Eq. 8-10: query [B, n, H, D], compressed key [B, Rc, G, D], the compressed pieces of `place`.

    Returns:
        scores fp32 [B, n, G, J] of the J blocks of the room. They mean nothing behind a token's own block, or
        where a token has no more candidates than slots.
    """
    num_blocks = place.config.num_select_blocks(place.room)
    scores = place.lse.new_empty(*query.shape[:2], key.shape[2], num_blocks)
    scores_launch(query, key, scores, place, pinned(TILES, key)).run()
    return scores


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for case in decode_cases():
        blocks = case.place.config.num_select_blocks(case.place.room)
        scores = case.place.lse.new_empty(*case.ids.shape[:3], blocks)
        launch = scores_launch(case.query, case.key_cmp, scores, case.place, pinned(TILES, case.key_cmp))
        yield launch.variant(f"decode_scores[{case.label}]", hot=case.hot)
