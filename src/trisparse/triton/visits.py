# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""The walk of a tile of query tokens over its blocks: those that are past, then those with hidden keys."""

import triton
import triton.language as tl

from trisparse.triton.tiles import program_digits, tile_place, tile_rows

# past all positions
_NO_KEY = tl.constexpr(2**31 - 1)


@triton.jit
def visit_tile(
    table,
    blocks,
    num_tiles,
    num_lists,
    num_rows,
    query_start,
    groups,
    TILE: tl.constexpr,
    LIST: tl.constexpr,
    PACKED: tl.constexpr,
):
    """(rows, sight, group, first token of the document, visits) of a program with a tile of query tokens.

    TILE is (HEADS_PER_GROUP, HEADS, CHUNKS, TOKENS, ROWS), LIST is (LENGTH, WIDTH, SELECT_BLOCK). The rows'
    sight is (token within the tile, position, how many tokens any row can see); the visits are those of
    `visit_list`.
    """
    # tiles of one group after the other: its blocks find room in the second-level cache, those of all do not
    chunk, tile, group, batch = program_digits(TILE[2], num_tiles, groups)
    first, stop, token_first, _, _, row_stop = tile_place(table, tile, TILE[3], num_rows, num_rows, PACKED)
    tile_stop = tl.minimum(first + TILE[3], stop)
    rows = tile_rows(batch, first, tile_stop, chunk, group, TILE[0], TILE[1], TILE[4])
    shift = query_start - token_first
    # nothing is read for a tile without tokens, which need not have a list
    length = tl.where(first < stop, LIST[0], 0)
    offset = ((batch * num_lists + tile) * groups + group) * LIST[0]
    visits = visit_list(blocks, offset, length, (first + shift) // LIST[2], LIST[1])
    sight = rows[1] - first, rows[1] + shift, row_stop + shift
    return rows, sight, group, token_first.to(tl.int64), visits


@triton.jit
def visit_list(blocks, offset, length, own_first, WIDTH: tl.constexpr):
    """(offset, past, all): where a list begins, how many of its blocks are past, how many there are.

    A block is past if it lies before `own_first`, the block of the tile's first token: every row of the tile
    sees all of it.
    """
    entry = tl.arange(0, WIDTH)
    block = tl.load(blocks + offset + entry, mask=entry < length, other=-1)
    used = (block >= 0).to(tl.int32)
    return offset, tl.sum(tl.where(block < own_first, used, 0), axis=0), tl.sum(used, axis=0)


@triton.jit
def visit_bounds(visits, PAST: tl.constexpr, KEYS: tl.constexpr, SELECT_BLOCK: tl.constexpr):
    """(lower, upper) of the steps of the blocks that are past, or of the others."""
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    if PAST:
        return 0, visits[1] * PARTS
    else:
        return visits[1] * PARTS, visits[2] * PARTS


@triton.jit
def visited_keys(
    step,
    blocks,
    members,
    visits,
    sight,
    MASKED: tl.constexpr,
    UNION: tl.constexpr,
    KEYS: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
):
    """(keys, exists, visible) of step number `step`, a block or KEYS tokens of it, as a step takes them.

    Without MASKED the block has no padding and is past: all its keys exist, and `visible` says who chose it.
    """
    PARTS: tl.constexpr = (SELECT_BLOCK + KEYS - 1) // KEYS
    token, positions, reach = sight
    place = visits[0] + step // PARTS
    offsets = step % PARTS * KEYS + tl.arange(0, KEYS)
    keys = tl.load(blocks + place) * SELECT_BLOCK + offsets
    exists = (offsets < SELECT_BLOCK) & (keys < reach)
    last = positions
    if UNION:
        last = tl.where(((tl.load(members + place) >> token) & 1) > 0, positions, -1)
    if MASKED:
        visible = tl.where(exists, keys, _NO_KEY)[None, :] <= last[:, None]
    else:
        visible = last[:, None] >= 0
    return keys, exists, visible
