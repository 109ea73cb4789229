# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Decoding, importance (eq. 8-10): each tile of selection blocks is scored by a program of its own.

The M heads are summed after their softmax, whose sum is known when all pieces of the compressed branch are
done.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import keys_complete
from trisparse.triton.decode_compressed import TILES
from trisparse.triton.decode_rows import (
    BlockWeights,
    DecodePlace,
    blocks_until,
    new_block_weights,
    panel,
    row_start,
)
from trisparse.triton.decode_shapes import decode_cases
from trisparse.triton.launch import Launch, Tile, pinned
from trisparse.triton.primitives import LOG2_E, load_rows, softmax_end, softmax_step
from trisparse.triton.tiles import program_digits, row_places, tile_rows
from trisparse.triton.variants import KernelVariant

# most rows; the tile of blocks is the compressed branch's
_TILE = Tile(rows=64, keys=0, num_warps=4, num_stages=1)

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
def decode_scores_kernel(
    block_weights,
    references,
    lse,
    starts,
    scores,
    num_batches,
    num_rows,
    room,
    num_keys,
    num_blocks,
    num_tiles,
    panels,
    groups,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECE: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
):
    RATIO: tl.constexpr = SELECT_BLOCK // STRIDE
    TOKENS: tl.constexpr = ROWS // HEADS
    panel_number, group, batch, tile = program_digits(panels, groups, num_batches)
    first = panel_number.to(tl.int32) * TOKENS
    first_block = tile.to(tl.int32) * BLOCKS

    start = row_start(starts, batch, num_rows, room)
    candidates = blocks_until(start + tl.minimum(first + TOKENS, num_rows) - 1, SELECT_BLOCK)
    # where every candidate has a slot nothing is to be scored
    if (candidates <= NUM_SELECTED) | (first_block >= candidates):
        return

    tokens = first + tl.arange(0, ROWS) // HEADS
    seen = tl.minimum(keys_complete(start + tokens, STRIDE, OVERLAP * STRIDE), num_keys)
    # of a row that sees no key of the tile, nor one in front of it, nothing need have been written
    reached = seen > tl.maximum(first_block * RATIO - (OVERLAP - 1), 0)
    piece_stride = (num_batches * num_rows).to(tl.int64) * groups * HEADS_PER_GROUP
    block = first_block + tl.arange(0, BLOCKS)
    score = tl.zeros([TOKENS, BLOCKS], tl.float32)
    for chunk in range(CHUNKS):
        rows = tile_rows(batch, first, num_rows, chunk, group, HEADS_PER_GROUP, HEADS, ROWS)
        written = reached & rows[3]
        places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)
        row_lse = joined_lse(
            lse, places, tl.cdiv(tl.where(written, seen, 0), PIECE * RATIO), piece_stride, ROWS
        )
        reference = load_rows(references, places * num_tiles + tile, written, float("-inf"))
        exists = written[:, None] & (block < num_blocks)[None, :]
        weights = tl.load(
            block_weights + places[:, None] * num_blocks + block[None, :], mask=exists, other=0.0
        )
        weights *= tl.exp2(reference - row_lse)[:, None]
        score += tl.sum(tl.reshape(weights, [TOKENS, HEADS, BLOCKS]), axis=1)
    token = first + tl.arange(0, TOKENS)
    # scores are ours and contiguous: [B, n, G, J]
    token_rows = (batch * num_rows + token) * groups + group
    tl.store(
        scores + token_rows[:, None] * num_blocks + block[None, :],
        score,
        mask=(token < num_rows)[:, None] & (block < num_blocks)[None, :],
    )


def scores_launch(weights: BlockWeights, key: Tensor, scores: Tensor, place: DecodePlace) -> Launch:
    """Fills contiguous `scores` [B, n, G, J] as far as a token has more candidates than slots."""
    config, (batch, new_tokens, groups, num_blocks) = place.config, scores.shape
    heads_per_group = weights.weights.shape[2] // groups
    rows = panel(new_tokens, heads_per_group, _TILE.rows)
    num_tiles = weights.references.shape[3]
    return Launch(
        kernel=decode_scores_kernel,
        programs=num_tiles * rows.panels * groups * batch,
        arguments={
            "block_weights": weights.weights,
            "references": weights.references,
            "lse": place.lse,
            "scores": scores,
            **place.arguments,
            "num_keys": key.shape[1],
            "num_blocks": num_blocks,
            "num_tiles": num_tiles,
            "panels": rows.panels,
            "groups": groups,
        },
        constants={
            "HEADS_PER_GROUP": heads_per_group,
            "BLOCKS": weights.blocks,
            "PIECE": place.pieces.blocks,
            "STRIDE": config.compress_stride,
            "OVERLAP": config.compress_block // config.compress_stride,
            "SELECT_BLOCK": config.select_block,
            "NUM_SELECTED": config.num_selected,
            **rows.constants,
        },
        tile=_TILE._replace(rows=rows.rows, keys=weights.blocks),
    )


def score_blocks(weights: BlockWeights, key: Tensor, place: DecodePlace) -> Tensor:
    """Eq. 8-10 from what compressed key [B, Rc, G, D] has left in `weights` and in the pieces of `place`.

    Returns:
        scores fp32 [B, n, G, J] of the J blocks of the room. They mean nothing behind a token's own block, or
        where a token has no more candidates than slots.
    """
    batch, new_tokens, _, num_blocks = weights.weights.shape
    scores = place.lse.new_empty(batch, new_tokens, key.shape[2], num_blocks)
    scores_launch(weights, key, scores, place).run()
    return scores


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles: no dim is in it."""
    for case in decode_cases():
        weights = new_block_weights(case.place, pinned(TILES, case.key_cmp, case.value_cmp))
        scores = case.place.lse.new_empty(*case.ids.shape[:3], weights.weights.shape[3])
        launch = scores_launch(weights, case.key_cmp, scores, case.place)
        yield launch.variant(f"decode_scores[{case.label}]", hot=case.hot)
