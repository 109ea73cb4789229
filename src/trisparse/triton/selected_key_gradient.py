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
from trisparse.triton.launch import Launch, Place, Tile, dim_constants, gradient_arguments
from trisparse.triton.primitives import add_parts, scale_parts, zero_parts
from trisparse.triton.selection_primitives import keys_of_step
from trisparse.triton.steps import key_gradient_step
from trisparse.triton.tiles import load_pair, pair_of, program_digits, row_places, store_pair, tile_place

# rows of a piece, and how many blocks chosen by all rows find room for the sums of their pieces; the list of
# a block that finds none is not split
PIECE_ROWS = 2048
_SPLIT_BLOCKS = 4
# rows of a list that are looked at together
_MOST_LEADERS = 1024

_ADD_TILE = Tile(rows=16, keys=0, num_warps=4, num_stages=1)


class Pieces(NamedTuple):
    """How the lists of a block index are split.

    Attributes:
        counts: int32 [pairs, J], pieces of each block, at least 1.
        slots: int32 [pairs, J], where the sums of a block's first piece lie, if it has several.
        blocks: int32 [pairs, slots], the block whose piece has a slot, if any has it.
        keys, values: fp32 [pairs, slots, l', D] and [..., E], those sums.
    """

    counts: Tensor
    slots: Tensor
    blocks: Tensor
    keys: Tensor
    values: Tensor

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
    numbers = torch.arange(num_slots, device=counts.device).repeat(pairs, 1)
    blocks = torch.searchsorted(stops, numbers, right=True, out_int32=True)
    return Pieces(
        counts=counts.to(torch.int32),
        slots=(stops - wanted).to(torch.int32),
        blocks=blocks.clamp_(max=index.num_blocks - 1),
        keys=key.new_empty(*shape, key.shape[3], dtype=torch.float32),
        values=value.new_empty(*shape, value.shape[3], dtype=torch.float32),
    )


@triton.jit
def _list_of(starts, number):
    """(begin, end) of a block's list."""
    return tl.load(starts + number), tl.load(starts + number + 1)


@triton.jit
def _piece_of(item, pair, starts, pieces, num_slots, num_blocks, piece_rows):
    """(block, begin, end, has_work) of a pair's item: first come its slots, each a piece, then its blocks.

    `pieces` are `Pieces.counts`, `slots` and `blocks`.
    """
    counts, slots, slot_blocks = pieces
    in_slot = item < num_slots
    owner = tl.load(slot_blocks + pair * num_slots + tl.minimum(item, num_slots - 1))
    block = tl.where(in_slot, owner, item - num_slots)
    number = pair * num_blocks + block
    count = tl.load(counts + number)
    piece = tl.where(in_slot, item - tl.load(slots + number), 0)
    begin, end = _list_of(starts, number)
    begin += piece * piece_rows
    end = tl.where(in_slot, tl.minimum(begin + piece_rows, end), end)
    return block, begin, end, (in_slot == (count > 1)) & (piece < count)


@triton.jit
def _entry_rows(rows, batch, first, size, group, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """The rows of ROWS entries of a list, from `first` on; entry i is head i % HEADS of item i // HEADS."""
    entries = first + tl.arange(0, ROWS)
    kept = entries < size * HEADS
    tokens = tl.load(rows + entries // HEADS, mask=kept, other=0)
    return batch, tokens, (group * HEADS).to(tl.int32) + entries % HEADS, kept


@triton.jit
def _masked_entries(
    rows,
    size,
    last_row,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """How many entries, in whole steps of ROWS, have to be masked.

    The list is ascending: rows inside the block, up to that of its last token, come first, and only from
    them are later tokens of it hidden.
    """
    leading = tl.arange(0, WIDTH)
    leaders = tl.load(rows + leading, mask=leading < size, other=2**30)
    inside = tl.sum((leaders < last_row).to(tl.int32), axis=0)
    if WIDTH < SELECT_BLOCK:
        for first in range(WIDTH, tl.minimum(size, SELECT_BLOCK), WIDTH):
            leaders = tl.load(rows + first + leading, mask=first + leading < size, other=2**30)
            inside += tl.sum((leaders < last_row).to(tl.int32), axis=0)
    return tl.minimum(tl.cdiv(inside * HEADS, ROWS), tl.cdiv(size * HEADS, ROWS)) * ROWS


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
    slot_blocks,
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
    LEADERS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    # the longest lists start first: those in pieces, then early blocks
    pairs = tl.num_programs(0) // ((num_slots + num_blocks) * PARTS)
    part, pair, item, _ = program_digits(PARTS, pairs, num_slots + num_blocks)
    batch, group = pair // groups, pair % groups
    if SPLIT:
        pieces = counts, slots, slot_blocks
        block, begin, end, has_work = _piece_of(item, pair, starts, pieces, num_slots, num_blocks, piece_rows)
        if not has_work:
            return
    else:
        block = item
        begin, end = _list_of(starts, pair * num_blocks + block)
    first, stop, _, _, _, row_stop = tile_place(table, block, SELECT_BLOCK, num_tokens, num_rows, PACKED)
    rows, size = rows + begin, (end - begin).to(tl.int32)
    last_row = first + SELECT_BLOCK - 1 - query_start
    masked = _masked_entries(rows, size, last_row, HEADS, ROWS, SELECT_BLOCK, LEADERS)

    offsets = (part * KEYS).to(tl.int32) + tl.arange(0, KEYS)
    tokens = first + offsets
    owned = (offsets < SELECT_BLOCK) & (tokens < stop)
    # a key behind the last row is not even loaded: it may be NaN
    exists = owned & (tokens < row_stop + query_start)
    key_view = key, key_stride_b, key_stride_t, key_stride_h
    value_view = value, value_stride_b, value_stride_t, value_stride_h
    whole = pair_of(key_view, value_view, batch, 0, group)
    tile = load_pair(whole, tokens, exists, HEAD_DIMS, VALUE_DIMS)

    sums = zero_parts(KEYS, HEAD_DIMS), zero_parts(KEYS, VALUE_DIMS)
    for past in tl.static_range(2):
        lower, upper = (masked, size * HEADS) if past else (0, masked)
        for entry in range(lower, upper, ROWS):
            listed = _entry_rows(rows, batch, entry, size, group, HEADS, ROWS)
            places = row_places(listed, num_rows, groups * HEADS)
            visible = None if past else tokens[:, None] <= (listed[1] + query_start)[None, :]
            sums = key_gradient_step(
                sums,
                tile,
                (query, query_stride_b, query_stride_t, query_stride_h),
                (grad, grad_stride_b, grad_stride_t, grad_stride_h),
                (gate, gate_stride_b, gate_stride_t, gate_stride_h),
                (lse, delta, places),
                listed,
                visible,
                score_scale,
                GATED,
                HEAD_DIMS,
                VALUE_DIMS,
            )

    grad_keys, grad_values = scale_parts(sums[0], scale), sums[1]
    if SPLIT:  # noqa: SIM102 (known when compiled: without pieces there is nowhere to store their sums)
        if item < num_slots:
            pieces_pair = piece_keys, piece_values, HEAD_DIM, VALUE_DIM
            places = (pair * num_slots + item) * SELECT_BLOCK + offsets
            store_pair(pieces_pair, places, owned, grad_keys, grad_values, HEAD_DIMS, VALUE_DIMS)
            return
    # d key and d value are ours and contiguous: [B, T, G, D | E]
    grad_pair = grad_key, grad_value, HEAD_DIM, VALUE_DIM
    places = (batch * num_tokens + tokens) * groups + group
    store_pair(grad_pair, places, owned, grad_keys, grad_values, HEAD_DIMS, VALUE_DIMS)


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
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    PARTS: tl.constexpr = (SELECT_BLOCK + ROWS - 1) // ROWS
    part, block, _, pair = program_digits(PARTS, num_blocks, 1)
    number = pair * num_blocks + block
    pieces = tl.load(counts + number)
    if pieces <= 1:
        return
    first, stop, _, _, _, _ = tile_place(table, block, SELECT_BLOCK, num_tokens, num_rows, PACKED)
    offsets = (part * ROWS).to(tl.int32) + tl.arange(0, ROWS)
    owned = (offsets < SELECT_BLOCK) & (first + offsets < stop)
    slot = pair * num_slots + tl.load(slots + number)
    pieces_pair = piece_keys, piece_values, HEAD_DIM, VALUE_DIM
    keys, values = zero_parts(ROWS, HEAD_DIMS), zero_parts(ROWS, VALUE_DIMS)
    for piece in range(pieces):
        more_keys, more_values = load_pair(
            pieces_pair, (slot + piece) * SELECT_BLOCK + offsets, owned, HEAD_DIMS, VALUE_DIMS
        )
        keys, values = add_parts(keys, more_keys), add_parts(values, more_values)
    places = (pair // groups * num_tokens + first + offsets) * groups + pair % groups
    grad_pair = grad_key, grad_value, HEAD_DIM, VALUE_DIM
    store_pair(grad_pair, places, owned, keys, values, HEAD_DIMS, VALUE_DIMS)


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
    batch, num_tokens, groups, head_dim = key.shape
    block = place.config.select_block
    keys = keys_of_step(block, tile.keys)
    num_slots = 0 if pieces is None else pieces.keys.shape[1]
    table = _block_table(place)
    absent = dict.fromkeys(("counts", "slots", "slot_blocks", "piece_keys", "piece_values"))
    items = index.num_blocks + num_slots
    return Launch(
        kernel=selected_key_kernel,
        programs=batch * groups * items * triton.cdiv(block, keys),
        arguments={
            **gradient_arguments(query, key, value, grad_out, lse, delta, gate, place),
            "grad_key": grad_key,
            "grad_value": grad_value,
            "rows": index.rows,
            "starts": index.starts,
            **(absent if pieces is None else {**pieces.arguments, "slot_blocks": pieces.blocks}),
            "num_slots": num_slots,
            "table": table,
            "num_tokens": num_tokens,
            "num_blocks": index.num_blocks,
            "piece_rows": piece_rows,
        },
        constants={
            "PACKED": table is not None,
            "SPLIT": pieces is not None,
            "GATED": gate is not None,
            "HEADS": query.shape[2] // groups,
            "ROWS": tile.rows,
            "KEYS": keys,
            "SELECT_BLOCK": block,
            "LEADERS": min(_MOST_LEADERS, triton.next_power_of_2(block)),
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
