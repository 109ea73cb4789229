# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Decoding, compressed branch: each piece of the compressed keys is attended by a program of its own.

A program holds all heads of a KV group, and the new tokens side by side: each key is read once for all. A
tile of keys is one of selection blocks, met phase by phase, so that eq. 9 is a sum of tiles: it costs one
number for each head and block to write, where `decode_scores.py` would otherwise read all keys again.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import keys_complete
from trisparse.triton.decode_rows import (
    BlockWeights,
    DecodePlace,
    new_block_weights,
    panel,
    row_start,
)
from trisparse.triton.decode_shapes import decode_cases
from trisparse.triton.launch import Launch, PinnedTiles, Tile, dim_constants, pinned, stride_arguments
from trisparse.triton.primitives import (
    LOG2_E,
    add_product,
    dot_transposed,
    empty_state,
    load_parts,
    scale_parts,
    softmax_step,
)
from trisparse.triton.steps import store_attention
from trisparse.triton.tiles import load_view, pair_of, program_digits, row_places, tile_rows
from trisparse.triton.variants import KernelVariant

# most rows, blocks of a step
TILES: PinnedTiles = {
    "large": ((640, Tile(64, 64, 8, 3)), (float("inf"), Tile(16, 32, 8, 1))),
    "medium": ((640, Tile(64, 64, 8, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "small": ((512, Tile(64, 32, 8, 2)), (640, Tile(64, 32, 8, 1)), (float("inf"), Tile(16, 32, 8, 1))),
}

# what a warp can hold of scores and of their pooled sums beside its share of keys and values
_SCORES_PER_WARP = 256


@triton.jit
def attend_phase(
    state,
    queries,
    pair,
    blocks,
    phase,
    seen,
    row_seen,
    score_scale,
    OVERLAP: tl.constexpr,
    RATIO: tl.constexpr,
    HEAD_DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
):
    """`state` = (sums, highest, total, pooled) after key `phase` of each of `blocks`, `pooled` being eq. 9.

    A key in front of a block, phase below 0, is another block's to attend: it is pooled and has no value.
    """
    sums, highest, total, pooled = state
    keys = blocks * RATIO + phase
    exists = (keys >= 0) & (keys < seen)
    places = keys.to(tl.int64)
    key_parts = load_parts(pair[0], places * pair[2], exists, HEAD_DIMS)
    scores = dot_transposed(queries, key_parts) * score_scale
    scores = tl.where(exists[None, :] & (keys[None, :] < row_seen[:, None]), scores, float("-inf"))
    own = phase >= 0
    before = total
    weights, rescale, highest, total = softmax_step(scores, highest, total)
    values = load_parts(pair[1], places * pair[3], exists & own, VALUE_DIMS)
    sums = add_product(scale_parts(sums, rescale[:, None]), weights, values)
    shared = tl.minimum(tl.minimum(phase + OVERLAP, OVERLAP), RATIO - phase)
    pooled = pooled * rescale[:, None] + weights * shared
    return sums, highest, tl.where(own, total, before * rescale), pooled


@triton.jit(
    do_not_specialize=[
        "num_batches",
        "num_rows",
        "room",
        "num_keys",
        "num_blocks",
        "num_tiles",
        "panels",
        "groups",
    ]
)
def decode_compressed_kernel(
    query,
    key,
    value,
    starts,
    outs,
    lse,
    block_weights,
    references,
    query_stride_b,
    query_stride_t,
    query_stride_h,
    key_stride_b,
    key_stride_t,
    key_stride_h,
    value_stride_b,
    value_stride_t,
    value_stride_h,
    num_batches,
    num_rows,
    room,
    num_keys,
    num_blocks,
    num_tiles,
    panels,
    groups,
    score_scale,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
    RATIO: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    SPAN: tl.constexpr = OVERLAP * STRIDE
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    # programs that share keys are neighbours
    across, group, batch, piece = program_digits(CHUNKS * panels, groups, num_batches)
    chunk = across % CHUNKS
    first = (across // CHUNKS).to(tl.int32) * (ROWS // HEADS)

    start = row_start(starts, batch, num_rows, room)
    last = start + tl.minimum(first + ROWS // HEADS, num_rows) - 1
    seen = tl.minimum(keys_complete(last, STRIDE, SPAN), num_keys)
    # blocks with a key that some row sees, if only in front of them
    begin = piece.to(tl.int32) * PIECE
    end = tl.minimum(tl.cdiv(seen + OVERLAP - 1, RATIO), begin + PIECE)
    if (begin >= end) | (seen == 0):
        return

    rows = tile_rows(batch, first, num_rows, chunk, group, HEADS_PER_GROUP, HEADS, ROWS)
    _, tokens, _, kept = rows
    query_view = query, query_stride_b, query_stride_t, query_stride_h
    queries = load_view(query_view, rows, HEAD_DIMS)
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, 0, group)
    row_seen = keys_complete(start + tokens, STRIDE, SPAN)
    # results are ours and contiguous: [P, B, n, H, E], [P, B, n, H], [B, n, H, J] and [B, n, H, tiles]
    places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)

    sums, highest, total = empty_state(ROWS, VALUE_DIMS)
    for block_first in range(begin, end, BLOCKS):
        blocks = block_first + tl.arange(0, BLOCKS)
        state = sums, highest, total, tl.zeros([ROWS, BLOCKS], tl.float32)
        for phase in range(1 - OVERLAP, tl.minimum(seen - block_first * RATIO, RATIO)):
            state = attend_phase(
                state,
                queries,
                pair,
                blocks,
                phase,
                seen,
                row_seen,
                score_scale,
                OVERLAP,
                RATIO,
                HEAD_DIMS,
                VALUE_DIMS,
            )
        sums, highest, total, pooled = state
        tl.store(references + places * num_tiles + block_first // BLOCKS, highest, mask=kept)
        offsets = places[:, None] * num_blocks + blocks[None, :]
        tl.store(block_weights + offsets, pooled, mask=kept[:, None] & (blocks < num_blocks)[None, :])
    places += piece * num_batches * num_rows * (groups * HEADS_PER_GROUP)
    store_attention((sums, highest, total), outs, lse, places, kept, VALUE_DIMS)


def _fit(tile: Tile, rows: int, blocks: int, query: Tensor) -> Tile:
    """`tile` with so many rows and keys, and warps for them; fp32 products take all warps."""
    fitting = max(1, rows * blocks // _SCORES_PER_WARP) if query.element_size() <= 2 else tile.num_warps
    return tile._replace(rows=rows, keys=blocks, num_warps=min(tile.num_warps, fitting))


def compressed_launch(
    query: Tensor, key: Tensor, value: Tensor, weights: BlockWeights, place: DecodePlace, tile: Tile
) -> Launch:
    """Fills the compressed pieces of `place` and the tiles of `weights` that each row reaches."""
    config, pieces, groups = place.config, place.pieces, key.shape[2]
    rows = panel(query.shape[1], query.shape[2] // groups, tile.rows)
    return Launch(
        kernel=decode_compressed_kernel,
        programs=pieces.compressed * rows.chunks * rows.panels * groups * query.shape[0],
        arguments={
            "query": query,
            "key": key,
            "value": value,
            "outs": place.outs,
            "lse": place.lse,
            "block_weights": weights.weights,
            "references": weights.references,
            **place.arguments,
            **stride_arguments(query=query, key=key, value=value),
            "num_keys": key.shape[1],
            "num_blocks": weights.weights.shape[3],
            "num_tiles": weights.references.shape[3],
            "panels": rows.panels,
            "groups": groups,
            "score_scale": place.scale * LOG2_E.value,
        },
        constants={
            "HEADS_PER_GROUP": query.shape[2] // groups,
            "BLOCKS": weights.blocks,
            "PIECE": pieces.blocks,
            "STRIDE": config.compress_stride,
            "OVERLAP": config.compress_block // config.compress_stride,
            "RATIO": config.select_block // config.compress_stride,
            **rows.constants,
            **dim_constants(query.shape[3], value.shape[3]),
        },
        tile=_fit(tile, rows.rows, weights.blocks, query),
    )


def attend_compressed_pieces(query: Tensor, key: Tensor, value: Tensor, place: DecodePlace) -> BlockWeights:
    """query [B, n, H, D], key [B, Rc, G, D], value [B, Rc, G, E]: fill the compressed pieces of `place`.

    Returns:
        what each selection block has of their softmax.
    """
    tile = pinned(TILES, key, value)
    weights = new_block_weights(place, tile)
    compressed_launch(query, key, value, weights, place, tile).run()
    return weights


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for case in decode_cases():
        tile = pinned(TILES, case.key_cmp, case.value_cmp)
        weights = new_block_weights(case.place, tile)
        launch = compressed_launch(case.query, case.key_cmp, case.value_cmp, weights, case.place, tile)
        yield launch.variant(f"decode_compressed[{case.label}]", hot=case.hot)
