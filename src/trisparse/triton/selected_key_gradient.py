# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""d key and d value of the selected branch: a block walks over the query rows that chose it.

The rows come from the block index, all heads of the group together. No atomics: a block belongs to one
program, unless so many rows chose it, as all do the first block, that the others would wait for it. Then each
piece of the list has a program with sums of its own, which a second kernel adds in order.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.block_index import BlockIndex
from trisparse.triton.launch import Launch, Place, Tile, dim_constants, stride_arguments
from trisparse.triton.primitives import (
    LOG2_E,
    add_parts,
    add_product,
    dot_transposed,
    load_lse,
    load_parts,
    load_rows,
    row_offsets,
    scale_parts,
    score_gradient,
    store_parts,
    tile_place,
    zero_parts,
)
from trisparse.triton.selection_primitives import keys_of_step

# rows of a piece, and how many blocks chosen by all rows find room for the sums of their pieces; the list of
# a block that finds none is not split
PIECE_ROWS = 2048
_SPLIT_BLOCKS = 4

_ADD_TILE = Tile(rows=16, keys=0, num_warps=4, num_stages=1)


class Pieces(NamedTuple):
    """How the lists of a block index are split.

    Attributes:
        counts: int32 [pairs, J], pieces of each block, at least 1.
        slots: int32 [pairs, J], where the sums of a block's first piece lie, if it has several.
        keys, values: fp32 [pairs, slots, l', D] and [..., E], those sums.
        most: an upper limit of `counts`.
    """

    counts: Tensor
    slots: Tensor
    keys: Tensor
    values: Tensor
    most: int

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of both kernels."""
        return {
            "counts": self.counts,
            "slots": self.slots,
            "piece_keys": self.keys,
            "piece_values": self.values,
            "num_slots": self.keys.shape[1],
        }


def split(
    index: BlockIndex, num_rows: int, key: Tensor, value: Tensor, select_block: int, piece_rows: int
) -> Pieces | None:
    """The pieces of at most `piece_rows` rows; None if no list can be longer."""
    most = triton.cdiv(num_rows, piece_rows)
    if most <= 1:
        return None
    pairs = key.shape[0] * key.shape[2]
    sizes = index.starts.diff().view(pairs, index.num_blocks)
    counts = (sizes + (piece_rows - 1)).div_(piece_rows, rounding_mode="floor")
    wanted = counts.masked_fill(counts <= 1, 0)
    stops = wanted.cumsum(dim=1)
    num_slots = _SPLIT_BLOCKS * most
    counts = counts.masked_fill((counts < 1) | (stops > num_slots), 1)
    shape = pairs, num_slots, select_block
    return Pieces(
        counts=counts.to(torch.int32),
        slots=(stops - wanted).to(torch.int32),
        keys=key.new_empty(*shape, key.shape[3], dtype=torch.float32),
        values=value.new_empty(*shape, value.shape[3], dtype=torch.float32),
        most=most,
    )


@triton.jit
def _key_step(
    grad_keys,
    grad_values,
    keys,
    values,
    key_positions,
    query,
    grad,
    lse,
    delta,
    gate,
    rows,
    entry,
    total,
    query_start,
    score_scale,
    num_heads,
    query_stride_t,
    query_stride_h,
    grad_stride_t,
    grad_stride_h,
    gate_stride_t,
    gate_stride_h,
    MASKED: tl.constexpr,
    GATED: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    """d key / scale and d value after ROWS more (row, head) entries of the list, from `entry` on."""
    entries = entry + tl.arange(0, ROWS)
    kept = entries < total
    row = tl.load(rows + entries // HEADS, mask=kept, other=0)
    head = entries % HEADS
    query_offsets = row_offsets(row, head, query_stride_t, query_stride_h)
    queries = load_parts(query, query_offsets, kept, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    places = row_offsets(row, head, num_heads, 1)
    row_lse = load_lse(lse, places, kept)
    # transposed, [keys, rows]: the weights are then the left operand of both products
    weights = tl.exp2(dot_transposed(keys, queries) * score_scale - row_lse[None, :])
    if MASKED:
        visible = key_positions[:, None] <= (row + query_start)[None, :]
        weights = tl.where(visible, weights, 0.0)
    grad_offsets = row_offsets(row, head, grad_stride_t, grad_stride_h)
    grads = load_parts(grad, grad_offsets, kept, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    row_delta = load_rows(delta, places, kept, 0.0)
    row_gate = row_delta
    gated = weights
    if GATED:
        gate_offsets = row_offsets(row, head, gate_stride_t, gate_stride_h)
        row_gate = load_rows(gate, gate_offsets, kept, 0.0)
        gated = weights * row_gate[None, :]
    grad_values = add_product(grad_values, gated, grads)
    products = dot_transposed(values, grads)
    grad_scores = score_gradient(weights, products, row_gate[None, :], row_delta[None, :], GATED)
    if MASKED:
        # set, not multiplied: 0 * inf is NaN, and a hidden key's product may have overflowed
        grad_scores = tl.where(visible, grad_scores, 0.0)
    return add_product(grad_keys, grad_scores, queries), grad_values


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "num_blocks", "num_slots", "query_start"])
def selected_key_kernel(
    query,
    key,
    value,
    grad,
    lse,
    delta,
    gate,
    grad_key,
    grad_value,
    rows,
    starts,
    counts,
    slots,
    piece_keys,
    piece_values,
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
    grad_stride_b,
    grad_stride_t,
    grad_stride_h,
    gate_stride_b,
    gate_stride_t,
    gate_stride_h,
    num_rows,
    num_tokens,
    num_blocks,
    num_slots,
    most_pieces,
    piece_rows,
    query_start,
    groups,
    scale,
    score_scale,
    PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
    GATED: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    program = tl.program_id(0).to(tl.int64)
    part = program % PARTS
    piece = program // PARTS % most_pieces
    # early blocks have the longest lists: they start first
    pairs = tl.num_programs(0) // (num_blocks * most_pieces * PARTS)
    pair = program // (PARTS * most_pieces) % pairs
    block = program // (PARTS * most_pieces) // pairs
    batch, group = pair // groups, pair % groups
    number = pair * num_blocks + block
    begin, end = tl.load(starts + number), tl.load(starts + number + 1)
    if SPLIT:
        pieces = tl.load(counts + number)
        if piece >= pieces:
            return
        if pieces > 1:
            begin += piece * piece_rows
            end = tl.minimum(begin + piece_rows, end)
    first, stop, _, _, _, row_stop = tile_place(table, block, SELECT_BLOCK, num_tokens, num_rows, PACKED)

    offsets = (part * KEYS).to(tl.int32) + tl.arange(0, KEYS)
    tokens = first + offsets
    # a key behind the last row is not even loaded: it may be NaN
    owned = (offsets < SELECT_BLOCK) & (tokens < stop)
    exists = owned & (tokens < row_stop + query_start)
    places = tokens.to(tl.int64)
    key += batch * key_stride_b + group * key_stride_h
    value += batch * value_stride_b + group * value_stride_h
    keys = load_parts(key, places * key_stride_t, exists, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    values = load_parts(value, places * value_stride_t, exists, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    query += batch * query_stride_b + group * HEADS * query_stride_h
    grad += batch * grad_stride_b + group * HEADS * grad_stride_h
    # lse and delta are ours and contiguous: [B, Tq, H]
    num_heads = groups * HEADS
    lse += batch * num_rows * num_heads + group * HEADS
    delta += batch * num_rows * num_heads + group * HEADS
    if GATED:
        gate += batch * gate_stride_b + group * HEADS * gate_stride_h

    # the list is ascending: rows inside the block, from which later tokens of it are hidden, come first
    rows += begin
    size = (end - begin).to(tl.int32)
    leading = tl.arange(0, BLOCK_WIDTH)
    leaders = tl.load(rows + leading, mask=leading < size, other=2**30)
    inside = tl.sum((leaders + query_start < first + (SELECT_BLOCK - 1)).to(tl.int32), axis=0)
    total = size * HEADS
    grad_keys = zero_parts(KEYS, HEAD_FIRST, HEAD_SECOND)
    grad_values = zero_parts(KEYS, VALUE_FIRST, VALUE_SECOND)
    masked_end = tl.minimum(tl.cdiv(inside * HEADS, ROWS) * ROWS, tl.cdiv(total, ROWS) * ROWS)
    for past in tl.static_range(2):
        lower, upper = 0, masked_end
        if past == 1:
            lower, upper = masked_end, total
        for entry in range(lower, upper, ROWS):
            grad_keys, grad_values = _key_step(
                grad_keys,
                grad_values,
                keys,
                values,
                tokens,
                query,
                grad,
                lse,
                delta,
                gate,
                rows,
                entry,
                total,
                query_start,
                score_scale,
                num_heads,
                query_stride_t,
                query_stride_h,
                grad_stride_t,
                grad_stride_h,
                gate_stride_t,
                gate_stride_h,
                past == 0,
                GATED,
                HEADS,
                ROWS,
                HEAD_DIM,
                HEAD_FIRST,
                HEAD_SECOND,
                VALUE_DIM,
                VALUE_FIRST,
                VALUE_SECOND,
            )

    grad_keys = scale_parts(grad_keys, scale)
    # d key and d value are ours and contiguous: [B, T, G, D | E]
    places = (batch * num_tokens + tokens) * groups + group
    if SPLIT:  # noqa: SIM102 (known when compiled: without pieces there is nowhere to store their sums)
        if pieces > 1:
            slot = pair * num_slots + tl.load(slots + number) + piece
            parts = slot * SELECT_BLOCK + offsets
            store_parts(piece_keys, parts * HEAD_DIM, owned, grad_keys, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
            store_parts(
                piece_values, parts * VALUE_DIM, owned, grad_values, VALUE_DIM, VALUE_FIRST, VALUE_SECOND
            )
            return
    store_parts(grad_key, places * HEAD_DIM, owned, grad_keys, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    store_parts(grad_value, places * VALUE_DIM, owned, grad_values, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "num_blocks", "num_slots"])
def add_pieces_kernel(
    grad_key,
    grad_value,
    counts,
    slots,
    piece_keys,
    piece_values,
    table,
    num_rows,
    num_tokens,
    num_blocks,
    num_slots,
    groups,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    """d key and d value of the blocks whose lists were split: the sums of their pieces, in order."""
    PARTS: tl.constexpr = (SELECT_BLOCK + ROWS - 1) // ROWS
    program = tl.program_id(0).to(tl.int64)
    part = program % PARTS
    number = program // PARTS
    block, pair = number % num_blocks, number // num_blocks
    pieces = tl.load(counts + number)
    if pieces <= 1:
        return
    first, stop, _, _, _, _ = tile_place(table, block, SELECT_BLOCK, num_tokens, num_rows, PACKED)
    offsets = (part * ROWS).to(tl.int32) + tl.arange(0, ROWS)
    owned = (offsets < SELECT_BLOCK) & (first + offsets < stop)
    slot = pair * num_slots + tl.load(slots + number)
    keys = zero_parts(ROWS, HEAD_FIRST, HEAD_SECOND)
    values = zero_parts(ROWS, VALUE_FIRST, VALUE_SECOND)
    for piece in range(pieces):
        parts = (slot + piece) * SELECT_BLOCK + offsets
        keys = add_parts(
            keys, load_parts(piece_keys, parts * HEAD_DIM, owned, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
        )
        values = add_parts(
            values, load_parts(piece_values, parts * VALUE_DIM, owned, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
        )
    places = (pair // groups * num_tokens + first + offsets) * groups + pair % groups
    store_parts(grad_key, places * HEAD_DIM, owned, keys, HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    store_parts(grad_value, places * VALUE_DIM, owned, values, VALUE_DIM, VALUE_FIRST, VALUE_SECOND)


def _block_table(place: Place) -> Tensor | None:
    return None if place.packed is None else place.packed.token_tiles(place.config.select_block)


def key_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    grad_key: Tensor,
    grad_value: Tensor,
    index: BlockIndex,
    pieces: Pieces | None,
    piece_rows: int,
    place: Place,
    tile: Tile,
) -> Launch:
    """Fills contiguous `grad_key` [B, T, G, D] and `grad_value` [B, T, G, E], or the sums of `pieces`.

    The other arguments are those of `query_gradient`.
    """
    batch, num_rows, num_heads, head_dim = query.shape
    num_tokens, groups = key.shape[1:3]
    block = place.config.select_block
    keys = keys_of_step(block, tile.keys)
    most = 1 if pieces is None else pieces.most
    table = _block_table(place)
    absent = dict.fromkeys(("counts", "slots", "piece_keys", "piece_values"))
    return Launch(
        kernel=selected_key_kernel,
        programs=batch * groups * index.num_blocks * most * triton.cdiv(block, keys),
        arguments={
            "query": query,
            "key": key,
            "value": value,
            "grad": grad_out,
            "lse": lse,
            "delta": delta,
            "gate": gate,
            "grad_key": grad_key,
            "grad_value": grad_value,
            "rows": index.rows,
            "starts": index.starts,
            **({**absent, "num_slots": 0} if pieces is None else pieces.arguments),
            "table": table,
            **stride_arguments(query=query, key=key, value=value, grad=grad_out, gate=gate),
            "num_rows": num_rows,
            "num_tokens": num_tokens,
            "num_blocks": index.num_blocks,
            "most_pieces": most,
            "piece_rows": piece_rows,
            "query_start": place.query_start,
            "groups": groups,
            "scale": place.scale,
            "score_scale": place.scale * LOG2_E.value,
        },
        constants={
            "PACKED": table is not None,
            "SPLIT": pieces is not None,
            "GATED": gate is not None,
            "HEADS": num_heads // groups,
            "ROWS": tile.rows,
            "KEYS": keys,
            "SELECT_BLOCK": block,
            "BLOCK_WIDTH": triton.next_power_of_2(block),
            **dim_constants(head_dim, value.shape[3]),
        },
        tile=tile,
    )


def add_pieces(
    grad_key: Tensor, grad_value: Tensor, index: BlockIndex, pieces: Pieces, num_rows: int, place: Place
) -> Launch:
    """Fills the blocks of contiguous `grad_key` and `grad_value` that have several pieces."""
    batch, num_tokens, groups, head_dim = grad_key.shape
    block = place.config.select_block
    table = _block_table(place)
    return Launch(
        kernel=add_pieces_kernel,
        programs=batch * groups * index.num_blocks * triton.cdiv(block, _ADD_TILE.rows),
        arguments={
            "grad_key": grad_key,
            "grad_value": grad_value,
            **pieces.arguments,
            "table": table,
            "num_rows": num_rows,
            "num_tokens": num_tokens,
            "num_blocks": index.num_blocks,
            "groups": groups,
        },
        constants={
            "PACKED": table is not None,
            "ROWS": _ADD_TILE.rows,
            "SELECT_BLOCK": block,
            **dim_constants(head_dim, grad_value.shape[3]),
        },
        tile=_ADD_TILE,
    )
