# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Decoding, selected and window branch: the raw tokens of one new token and group, a piece to a program.

Both branches go by a list of tokens: entry i is token i % l' of the block in slot i // l', or the i-th token
of the window. Their tiles of keys are tiles of that list, whatever the size of a block.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.decode_rows import DecodePlace, blocks_until, row_start
from trisparse.triton.decode_shapes import decode_cases
from trisparse.triton.launch import (
    LEAST_WIDTH,
    Launch,
    PinnedTiles,
    Tile,
    dim_constants,
    fit_rows,
    pinned,
    stride_arguments,
)
from trisparse.triton.primitives import LOG2_E, empty_state
from trisparse.triton.steps import attend_keys, store_attention
from trisparse.triton.tiles import load_view, pair_of, program_digits, row_places, tile_rows
from trisparse.triton.variants import KernelVariant

Pair = tuple[Tensor, Tensor]

# most rows, keys of a step
TILES: PinnedTiles = {
    "large": ((640, Tile(64, 64, 4, 3)), (float("inf"), Tile(16, 32, 8, 1))),
    "medium": ((640, Tile(64, 64, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "small": ((512, Tile(64, 32, 4, 2)), (640, Tile(64, 32, 4, 1)), (float("inf"), Tile(16, 32, 8, 1))),
}


@triton.jit
def _pair_of_branch(is_selected, selected, window):
    """The pair that a piece reads: that of the branch it belongs to."""
    # both branches share one loop: two would need shared memory for the keys of both
    return (
        tl.where(is_selected, selected[0], window[0]),
        tl.where(is_selected, selected[1], window[1]),
        tl.where(is_selected, selected[2], window[2]),
        tl.where(is_selected, selected[3], window[3]),
    )


@triton.jit(
    do_not_specialize=[
        "num_batches",
        "num_rows",
        "room",
        "window",
        "ring",
        "groups",
        "pieces_before",
        "selected_pieces",
    ]
)
def decode_tokens_kernel(
    query,
    key_slc,
    value_slc,
    key_win,
    value_win,
    ids,
    starts,
    outs,
    lse,
    query_stride_b,
    query_stride_t,
    query_stride_h,
    key_slc_stride_b,
    key_slc_stride_t,
    key_slc_stride_h,
    value_slc_stride_b,
    value_slc_stride_t,
    value_slc_stride_h,
    key_win_stride_b,
    key_win_stride_t,
    key_win_stride_h,
    value_win_stride_b,
    value_win_stride_t,
    value_win_stride_h,
    num_batches,
    num_rows,
    room,
    window,
    ring,
    groups,
    pieces_before,
    selected_pieces,
    score_scale,
    HEADS_PER_GROUP: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PIECE: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    chunk, group, row, number = program_digits(CHUNKS, groups, num_batches * num_rows)
    batch, token = row // num_rows, (row % num_rows).to(tl.int32)
    piece = number.to(tl.int32)

    position = row_start(starts, batch, num_rows, room) + token
    is_selected = piece < selected_pieces
    length = tl.minimum(blocks_until(position, SELECT_BLOCK), NUM_SELECTED) * SELECT_BLOCK
    length = tl.where(is_selected, length, tl.minimum(position + 1, window))
    begin = tl.where(is_selected, piece, piece - selected_pieces) * PIECE
    end = tl.minimum(length, begin + PIECE)
    if begin >= end:
        return

    rows = tile_rows(batch, token, num_rows, chunk, group, HEADS_PER_GROUP, ROWS, ROWS)
    _, _, _, kept = rows
    query_view = query, query_stride_b, query_stride_t, query_stride_h
    queries = load_view(query_view, rows, HEAD_DIMS)
    key_view = key_slc, key_slc_stride_b, key_slc_stride_t, key_slc_stride_h
    value_view = value_slc, value_slc_stride_b, value_slc_stride_t, value_slc_stride_h
    selected_pair = pair_of(key_view, value_view, batch, 0, group)
    key_view = key_win, key_win_stride_b, key_win_stride_t, key_win_stride_h
    value_view = value_win, value_win_stride_b, value_win_stride_t, value_win_stride_h
    pair = _pair_of_branch(is_selected, selected_pair, pair_of(key_view, value_view, batch, 0, group))

    ids += (row * groups + group) * NUM_SELECTED
    window_first = tl.maximum(position - window + 1, 0)
    state = empty_state(ROWS, VALUE_DIMS)
    for first in range(begin, end, KEYS):
        entries = first + tl.arange(0, KEYS)
        listed = entries < end
        block = tl.load(ids + entries // SELECT_BLOCK, mask=listed & is_selected, other=0)
        in_block = block * SELECT_BLOCK + entries % SELECT_BLOCK
        keys = tl.where(is_selected, in_block, (window_first + entries) % ring)
        # the own block has tokens that are still to come
        exists = listed & ((in_block <= position) | (piece >= selected_pieces))
        visible = exists[None, :]
        state = attend_keys(state, queries, pair, keys, exists, visible, score_scale, HEAD_DIMS, VALUE_DIMS)
    # outs and lse are ours and contiguous: [P, B, n, H, E] and [P, B, n, H]
    places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)
    places += (pieces_before + number) * num_batches * num_rows * (groups * HEADS_PER_GROUP)
    store_attention(state, outs, lse, places, kept, VALUE_DIMS)


def tokens_launch(
    query: Tensor, selected: Pair, window: Pair, ring: int, ids: Tensor, place: DecodePlace, tile: Tile
) -> Launch:
    """Fills the selected and the window pieces of `place` that each row reaches."""
    groups, heads_per_group = ids.shape[2], query.shape[2] // ids.shape[2]
    rows = max(LEAST_WIDTH, min(tile.rows, triton.next_power_of_2(heads_per_group)))
    chunks = triton.cdiv(heads_per_group, rows)
    pieces = place.pieces
    tensors = {
        "query": query,
        "key_slc": selected[0],
        "value_slc": selected[1],
        "key_win": window[0],
        "value_win": window[1],
    }
    return Launch(
        kernel=decode_tokens_kernel,
        programs=(pieces.selected + pieces.window) * query.shape[0] * query.shape[1] * groups * chunks,
        arguments={
            **tensors,
            "ids": ids,
            "outs": place.outs,
            "lse": place.lse,
            **place.arguments,
            **stride_arguments(**tensors),
            "window": place.reach,
            "ring": ring,
            "groups": groups,
            "pieces_before": pieces.compressed,
            "selected_pieces": pieces.selected,
            "score_scale": place.scale * LOG2_E.value,
        },
        constants={
            "HEADS_PER_GROUP": heads_per_group,
            "CHUNKS": chunks,
            "ROWS": rows,
            "KEYS": tile.keys,
            "PIECE": pieces.token_keys,
            "SELECT_BLOCK": place.config.select_block,
            "NUM_SELECTED": place.config.num_selected,
            **dim_constants(query.shape[3], selected[1].shape[3]),
        },
        tile=fit_rows(tile, rows, query),
    )


def attend_token_pieces(
    query: Tensor, selected: Pair, window: Pair, ring: int, ids: Tensor, place: DecodePlace
) -> None:
    """Fill the selected and the window pieces of `place`.

    query [B, n, H, D], contiguous ids [B, n, G, S]; a pair is key [B, R, G, D] and value [B, R, G, E].
    The window's token at position s lies in its slot s % ring.
    """
    tile = pinned(TILES, *selected)
    tokens_launch(query, selected, window, ring, ids, place, tile).run()


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles: new tokens are programs, not rows."""
    for case in decode_cases():
        if case.extreme:
            pair = case.key, case.value
            tile = pinned(TILES, *pair)
            launch = tokens_launch(case.query, pair, pair, case.place.room, case.ids, case.place, tile)
            yield launch.variant(f"decode_tokens[{case.label}]", hot=case.hot)
