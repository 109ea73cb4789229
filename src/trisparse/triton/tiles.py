# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Where a program stands: its number taken apart, its tile of rows, and what tensors hold there.

A *tile of rows* is packed: row r is head `r % HEADS` of token `r // HEADS`, so that all heads of a KV group
share each load of a key. Its *rows* are (batch, tokens, heads, kept): batch row, query rows and heads of the
tensor, each [ROWS], and which of them exist. A *view* is a [B, T, H, dims] tensor: (pointer, stride of b, of
t, of h). A *pair* is keys and values side by side, from some row on: (key pointer, value pointer, key stride,
value stride).
"""

import triton
import triton.language as tl

from trisparse.triton.primitives import load_parts, store_parts


@triton.jit
def program_digits(first, second, third):
    """This program's number in mixed radix, (i, j, k, rest) with i < first the fastest, int64 scalars."""
    program = tl.program_id(0).to(tl.int64)
    outer = program // first // second
    return program % first, program // first % second, outer % third, outer // third


@triton.jit
def tile_place(table, tile, block, stop, num_rows, PACKED: tl.constexpr):
    """(first, stop, token_first, block_first, row_first, row_stop) of tile number `tile`, int32 scalars.

    PACKED reads a row of `PackedSequences.row_tiles` and its like; otherwise there is one document, and the
    tiles are those of `block` out of `stop`.
    """
    if PACKED:
        row = table + tile.to(tl.int64) * 6
        first = tl.load(row)
        stop = tl.load(row + 1)
        token_first = tl.load(row + 2)
        block_first = tl.load(row + 3)
        row_first = tl.load(row + 4)
        row_stop = tl.load(row + 5)
    else:
        first = (tile * block).to(tl.int32)
        token_first = tl.full([], 0, tl.int32)
        block_first = token_first
        row_first = token_first
        row_stop = num_rows
    return first, stop, token_first, block_first, row_first, row_stop


@triton.jit
def row_tile(
    table, num_tiles, num_rows, groups, CHUNKS: tl.constexpr, TOKENS: tl.constexpr, PACKED: tl.constexpr
):
    """(chunk, group, batch, first, stop, token_first, block_first): a program's tile of TOKENS query rows.

    Late rows see most compressed keys and start first; a table has its tiles in that order already.
    """
    program = tl.program_id(0).to(tl.int64)
    chunk = program % CHUNKS
    group = program // CHUNKS % groups
    across = tl.num_programs(0) // num_tiles
    batch = program % across // (CHUNKS * groups)
    tile = program // across
    if not PACKED:
        tile = num_tiles - 1 - tile
    first, stop, token_first, block_first, _, _ = tile_place(table, tile, TOKENS, num_rows, num_rows, PACKED)
    return chunk, group, batch, first, stop, token_first, block_first


@triton.jit
def tile_rows(
    batch, first, stop, chunk, group, HEADS_PER_GROUP: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr
):
    """The rows from token `first` on, which end before `stop`; `chunk` counts runs of HEADS heads."""
    row = tl.arange(0, ROWS)
    tokens = first + row // HEADS
    head = chunk * HEADS + row % HEADS
    kept = (tokens < stop) & (head < HEADS_PER_GROUP)
    return batch, tokens, group * HEADS_PER_GROUP + head, kept


@triton.jit
def row_offsets(tokens, heads, stride_token, stride_head):
    """Offsets of (token, head) rows, int64."""
    return tokens.to(tl.int64) * stride_token + heads.to(tl.int64) * stride_head


@triton.jit
def row_places(rows, num_rows, num_heads):
    """Number of each row in a contiguous [B, Tq, H], int64."""
    batch, tokens, heads, _ = rows
    return batch * num_rows * num_heads + row_offsets(tokens, heads, num_heads, 1)


@triton.jit
def view_rows(view, batch, tokens, heads):
    """Where the dims of rows (batch, token, head) of a view begin, as a pointer and offsets."""
    pointer, stride_batch, stride_token, stride_head = view
    return pointer + batch * stride_batch, row_offsets(tokens, heads, stride_token, stride_head)


@triton.jit
def load_view(view, rows, DIMS: tl.constexpr):
    """Parts of the rows of a view, 0 for one that does not exist."""
    batch, tokens, heads, kept = rows
    pointer, offsets = view_rows(view, batch, tokens, heads)
    return load_parts(pointer, offsets, kept, DIMS)


@triton.jit
def pair_of(key, value, batch, first, group):
    """The pair that begins at row `first`, int64, of one group of two views."""
    key_pointer, key_stride_batch, key_stride_token, key_stride_head = key
    value_pointer, value_stride_batch, value_stride_token, value_stride_head = value
    key_pointer += batch * key_stride_batch + group * key_stride_head + first * key_stride_token
    value_pointer += batch * value_stride_batch + group * value_stride_head + first * value_stride_token
    return key_pointer, value_pointer, key_stride_token, value_stride_token


@triton.jit
def load_pair(pair, rows, mask, HEAD_DIMS: tl.constexpr, VALUE_DIMS: tl.constexpr):
    """Parts of the keys and of the values in `rows` of a pair; `mask` as `load_parts` takes it."""
    places = rows.to(tl.int64)
    keys = load_parts(pair[0], places * pair[2], mask, HEAD_DIMS)
    return keys, load_parts(pair[1], places * pair[3], mask, VALUE_DIMS)


@triton.jit
def store_pair(pair, rows, mask, keys, values, HEAD_DIMS: tl.constexpr, VALUE_DIMS: tl.constexpr):
    """The inverse of `load_pair`, rounded to the pointers' dtypes."""
    places = rows.to(tl.int64)
    store_parts(pair[0], places * pair[2], mask, keys, HEAD_DIMS)
    store_parts(pair[1], places * pair[3], mask, values, VALUE_DIMS)
