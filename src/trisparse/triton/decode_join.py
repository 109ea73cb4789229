# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Decoding, the end: pieces of a branch are joined by their log-sum-exp, and the branches by their gates."""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.band_forward import keys_complete
from trisparse.triton.decode_rows import DecodePlace, blocks_until, row_start
from trisparse.triton.decode_shapes import decode_cases
from trisparse.triton.launch import Launch, Tile, split_dim, stride_arguments
from trisparse.triton.primitives import (
    LOG2_E,
    add_parts,
    empty_state,
    gated_parts,
    load_parts,
    load_rows,
    scale_parts,
    softmax_end,
    softmax_step,
    store_parts,
    zero_parts,
)
from trisparse.triton.tiles import row_offsets
from trisparse.triton.variants import KernelVariant

# a program has one head of one token, and a tile is so many of its pieces
_TILE = Tile(rows=1, keys=16, num_warps=2, num_stages=2)


@triton.jit
def _sum_rows(parts):
    """[1, dims]: the sum of a tile's rows."""
    first = tl.sum(parts[0], axis=0)[None, :]
    if len(parts) == 1:
        return (first,)
    else:
        return first, tl.sum(parts[1], axis=0)[None, :]


@triton.jit
def _join(
    outs,
    lse,
    place,
    first_piece,
    pieces,
    piece_stride,
    KEYS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
):
    """One branch's output [1, dims]: the row at `place` of `pieces` pieces from `first_piece` on."""
    sums, highest, total = empty_state(1, VALUE_DIMS)
    for first in range(0, pieces, KEYS):
        piece = first + tl.arange(0, KEYS)
        exists = piece < pieces
        offsets = (first_piece + piece).to(tl.int64) * piece_stride + place
        scores = load_rows(lse, offsets, exists, float("-inf")) * LOG2_E
        weights, rescale, highest, total = softmax_step(scores[None, :], highest, total)
        part = load_parts(outs, offsets * VALUE_DIMS[0], exists, VALUE_DIMS)
        part = _sum_rows(scale_parts(part, tl.trans(weights)))
        sums = add_parts(scale_parts(sums, rescale[:, None]), part)
    inverse, _ = softmax_end(highest, total)
    return scale_parts(sums, inverse[:, None])


@triton.jit(
    do_not_specialize=[
        "num_batches",
        "num_rows",
        "room",
        "num_keys",
        "window",
        "num_heads",
        "compressed_pieces",
        "selected_pieces",
    ]
)
def decode_join_kernel(
    outs,
    lse,
    gates,
    starts,
    out,
    gates_stride_b,
    gates_stride_t,
    gates_stride_h,
    num_batches,
    num_rows,
    room,
    num_keys,
    window,
    num_heads,
    compressed_pieces,
    selected_pieces,
    KEYS: tl.constexpr,
    COMPRESSED_PIECE: tl.constexpr,
    TOKEN_PIECE: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    place = tl.program_id(0).to(tl.int64)
    head, token = place % num_heads, place // num_heads % num_rows
    batch = place // num_heads // num_rows
    position = row_start(starts, batch, num_rows, room) + token.to(tl.int32)
    gates += batch * gates_stride_b + row_offsets(token, head, gates_stride_t, gates_stride_h)
    piece_stride = (num_batches * num_rows).to(tl.int64) * num_heads
    sums = zero_parts(1, VALUE_DIMS)
    for branch in tl.static_range(3):
        # as many pieces as the branch's kernel has filled for this row
        first_piece = 0
        pieces = tl.cdiv(tl.minimum(keys_complete(position, STRIDE, SPAN), num_keys), COMPRESSED_PIECE)
        if branch == 1:
            first_piece = compressed_pieces
            blocks = tl.minimum(blocks_until(position, SELECT_BLOCK), NUM_SELECTED)
            pieces = tl.cdiv(blocks * SELECT_BLOCK, TOKEN_PIECE)
        if branch == 2:
            first_piece = compressed_pieces + selected_pieces
            pieces = tl.cdiv(tl.maximum(tl.minimum(position + 1, window), 0), TOKEN_PIECE)
        joined = _join(outs, lse, place, first_piece, pieces, piece_stride, KEYS, VALUE_DIMS)
        sums = add_parts(sums, gated_parts(joined, tl.load(gates + branch).to(tl.float32)))
    # out is ours and contiguous: [B, n, H, E]
    offsets = (place + tl.arange(0, 1)) * VALUE_DIM
    store_parts(out, offsets, offsets >= 0, sums, VALUE_DIMS)


def join_launch(gates: Tensor, out: Tensor, num_keys: int, place: DecodePlace) -> Launch:
    """Fills contiguous `out` [B, n, H, E] from the pieces of `place`, of at most `num_keys` blocks."""
    config, pieces = place.config, place.pieces
    value_first, value_second = split_dim(out.shape[3])
    return Launch(
        kernel=decode_join_kernel,
        programs=out.shape[0] * out.shape[1] * out.shape[2],
        arguments={
            "outs": place.outs,
            "lse": place.lse,
            "gates": gates,
            "out": out,
            **place.arguments,
            **stride_arguments(gates=gates),
            "num_keys": num_keys,
            "window": place.reach,
            "num_heads": out.shape[2],
            "compressed_pieces": pieces.compressed,
            "selected_pieces": pieces.selected,
        },
        constants={
            "KEYS": _TILE.keys,
            "COMPRESSED_PIECE": pieces.compressed_keys,
            "TOKEN_PIECE": pieces.token_keys,
            "STRIDE": config.compress_stride,
            "SPAN": config.compress_block,
            "SELECT_BLOCK": config.select_block,
            "NUM_SELECTED": config.num_selected,
            "VALUE_DIM": out.shape[3],
            "VALUE_FIRST": value_first,
            "VALUE_SECOND": value_second,
        },
        tile=_TILE,
    )


def join_pieces(query: Tensor, gates: Tensor, num_keys: int, place: DecodePlace) -> Tensor:
    """Eq. 5 from the pieces of all branches: gates [B, n, H, 3]; out [B, n, H, E] in the query's dtype."""
    out = query.new_empty(place.outs.shape[1:])
    join_launch(gates, out, num_keys, place).run()
    return out


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for case in decode_cases():
        if case.extreme:
            out = case.query.new_empty(case.place.outs.shape[1:])
            gates = case.place.lse.new_empty(*case.query.shape[:3], 3)
            launch = join_launch(gates, out, case.key_cmp.shape[1], case.place)
            yield launch.variant(f"decode_join[{case.label}]")
