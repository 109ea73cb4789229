# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Decoding, compressed branch: each piece of the compressed keys is attended by a program of its own.

A program holds all heads of a KV group, and the new tokens side by side: each key is read once for all.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import keys_complete
from trisparse.triton.decode_rows import (
    TILES,
    DecodePlace,
    panel,
    row_start,
)
from trisparse.triton.decode_shapes import decode_cases
from trisparse.triton.launch import Launch, Tile, dim_constants, fit_rows, pinned, stride_arguments
from trisparse.triton.primitives import LOG2_E, empty_state
from trisparse.triton.steps import attend_keys, store_attention
from trisparse.triton.tiles import load_view, pair_of, program_digits, row_places, tile_rows
from trisparse.triton.variants import KernelVariant


@triton.jit(do_not_specialize=["num_batches", "num_rows", "room", "num_keys", "panels", "groups"])
def decode_compressed_kernel(
    query,
    key,
    value,
    starts,
    outs,
    lse,
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
    panels,
    groups,
    score_scale,
    HEADS_PER_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PIECE: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    # programs that share keys are neighbours
    across, group, batch, piece = program_digits(CHUNKS * panels, groups, num_batches)
    chunk = across % CHUNKS
    first = (across // CHUNKS).to(tl.int32) * (ROWS // HEADS)

    start = row_start(starts, batch, num_rows, room)
    last = start + tl.minimum(first + ROWS // HEADS, num_rows) - 1
    begin = piece.to(tl.int32) * PIECE
    end = tl.minimum(tl.minimum(keys_complete(last, STRIDE, SPAN), num_keys), begin + PIECE)
    if begin >= end:
        return

    rows = tile_rows(batch, first, num_rows, chunk, group, HEADS_PER_GROUP, HEADS, ROWS)
    _, tokens, _, kept = rows
    query_view = query, query_stride_b, query_stride_t, query_stride_h
    queries = load_view(query_view, rows, HEAD_DIMS)
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    pair = pair_of(key_view, value_view, batch, 0, group)
    row_seen = keys_complete(start + tokens, STRIDE, SPAN)

    state = empty_state(ROWS, VALUE_DIMS)
    for key_first in range(begin, end, KEYS):
        keys = key_first + tl.arange(0, KEYS)
        exists = keys < end
        visible = exists[None, :] & (keys[None, :] < row_seen[:, None])
        state = attend_keys(state, queries, pair, keys, exists, visible, score_scale, HEAD_DIMS, VALUE_DIMS)
    # outs and lse are ours and contiguous: [P, B, n, H, E] and [P, B, n, H]
    places = row_places(rows, num_rows, groups * HEADS_PER_GROUP)
    places += piece * num_batches * num_rows * (groups * HEADS_PER_GROUP)
    store_attention(state, outs, lse, places, kept, VALUE_DIMS)


def compressed_launch(query: Tensor, key: Tensor, value: Tensor, place: DecodePlace, tile: Tile) -> Launch:
    """Fills the compressed pieces of `place` that each row reaches."""
    config, rows = place.config, panel(query, key, tile.rows)
    across = rows.chunks * rows.panels * key.shape[2] * query.shape[0]
    return Launch(
        kernel=decode_compressed_kernel,
        programs=place.pieces.compressed * across,
        arguments={
            "query": query,
            "key": key,
            "value": value,
            "outs": place.outs,
            "lse": place.lse,
            **place.arguments,
            **stride_arguments(query=query, key=key, value=value),
            "num_keys": key.shape[1],
            "panels": rows.panels,
            "groups": key.shape[2],
            "score_scale": place.scale * LOG2_E.value,
        },
        constants={
            "HEADS_PER_GROUP": query.shape[2] // key.shape[2],
            "KEYS": tile.keys,
            "PIECE": place.pieces.compressed_keys,
            "STRIDE": config.compress_stride,
            "SPAN": config.compress_block,
            **rows.constants,
            **dim_constants(query.shape[3], value.shape[3]),
        },
        tile=fit_rows(tile, rows.rows, query),
    )


def attend_compressed_pieces(query: Tensor, key: Tensor, value: Tensor, place: DecodePlace) -> None:
    """query [B, n, H, D], key [B, Rc, G, D], value [B, Rc, G, E]: fill the compressed pieces of `place`."""
    compressed_launch(query, key, value, place, pinned(TILES, key, value)).run()


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for case in decode_cases():
        tile = pinned(TILES, case.key_cmp, case.value_cmp)
        launch = compressed_launch(case.query, case.key_cmp, case.value_cmp, case.place, tile)
        yield launch.variant(f"decode_compressed[{case.label}]", hot=case.hot)
