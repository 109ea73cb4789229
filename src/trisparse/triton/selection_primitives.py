# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Tiles of query tokens and the blocks they visit, for the two query-major kernels of the selected branch.

A group of 16 heads or more fills the rows of a tile with one token, which visits its own ids. Smaller groups
put several neighbouring tokens into a tile: it visits the union of their ids, each block once, and a bit mask
says which tokens chose it. Neighbours choose much alike, and the forced blocks they share anyway.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.launch import LEAST_WIDTH, Launch, Place, Tile, dim_constants, fit_rows
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.tiles import program_digits, tile_place
from trisparse.triton.variants import KernelVariant

# tokens of a tile, one bit each, and ids of a tile times ids of a token: they are compared in registers
MOST_TOKENS = 32
_MOST_COMPARED = 2**14

_UNION_TILE = Tile(rows=0, keys=0, num_warps=4, num_stages=1)
_NO_BLOCK = tl.constexpr(2**31 - 1)


class TokenTile(NamedTuple):
    """`tokens` query tokens and `heads` heads of a group: row r is head r % heads of token r // heads.

    `rows` is the power of two that holds them; `chunks` tiles together have all heads of a group.
    """

    tokens: int
    heads: int
    rows: int
    chunks: int

    @property
    def constants(self) -> dict[str, int]:
        """The constexpr arguments of a kernel."""
        return {"TOKENS": self.tokens, "HEADS": self.heads, "ROWS": self.rows, "CHUNKS": self.chunks}


class Visits(NamedTuple):
    """Which blocks each tile visits.

    Attributes:
        blocks: int32 [B, tiles, G, L], ascending and distinct, -1 last.
        members: int32 like `blocks`: bit i says that token i of the tile chose the block; None for one token.
        table: the tiles of packed sequences, else None.
    """

    blocks: Tensor
    members: Tensor | None
    table: Tensor | None

    @property
    def num_tiles(self) -> int:
        """Tiles of a sequence; packed, more than there are lists if a list is one token's."""
        return self.blocks.shape[1] if self.table is None else self.table.shape[0]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a kernel."""
        return {
            "blocks": self.blocks,
            "members": self.members,
            "table": self.table,
            "num_tiles": self.num_tiles,
            "num_lists": self.blocks.shape[1],
        }

    @property
    def constants(self) -> dict[str, int | bool]:
        """The constexpr arguments of a kernel."""
        length = self.blocks.shape[3]
        return {
            "PACKED": self.table is not None,
            "UNION": self.members is not None,
            "LENGTH": length,
            "WIDTH": triton.next_power_of_2(length),
        }

    def programs(self, tile: TokenTile) -> int:
        """One for each tile, chunk of heads, group and batch row; none without query rows."""
        batch, num_lists, groups, _ = self.blocks.shape
        return batch * self.num_tiles * groups * tile.chunks if num_lists else 0


def token_tile(query: Tensor, key: Tensor, ids: Tensor, tile: Tile) -> tuple[TokenTile, Tile]:
    """The tile for query [B, Tq, H, D], key [B, T, G, D] and ids [B, Tq, G, S], and the pinned `tile` to fit.

    The pinned tile says how many rows there are at most, and how many warps so many rows have.
    """
    heads_per_group = query.shape[2] // key.shape[2]
    heads = min(heads_per_group, tile.rows)
    tokens = 1
    if heads < LEAST_WIDTH:
        width = triton.next_power_of_2(ids.shape[3])
        tokens = max(1, min(tile.rows // heads, MOST_TOKENS, _MOST_COMPARED // width**2))
    rows = max(LEAST_WIDTH, triton.next_power_of_2(tokens * heads))
    chunks = triton.cdiv(heads_per_group, heads)
    return TokenTile(tokens, heads, rows, chunks), fit_rows(tile, rows, query)


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "groups"])
def union_kernel(
    ids,
    table,
    blocks,
    members,
    num_rows,
    num_tiles,
    groups,
    PACKED: tl.constexpr,
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """The union of the ids of each tile's tokens, WIDTH of them for a token and LENGTH for a tile, padded."""
    _, group, tile, batch = program_digits(1, groups, num_tiles)
    first, stop, _, _, _, _ = tile_place(table, tile, TOKENS, num_rows, num_rows, PACKED)
    entry = tl.arange(0, LENGTH)
    token, slot = entry // WIDTH, entry % WIDTH
    row_slots = tl.arange(0, WIDTH)
    ids += group * SLOTS
    batch_row = batch * num_rows
    kept = (token < TOKENS) & (first + token < stop) & (slot < SLOTS)
    own = tl.load(ids + (batch_row + first + token) * (groups * SLOTS) + slot, mask=kept, other=-1)
    own = tl.where(own < 0, _NO_BLOCK, own)
    last = tl.minimum(stop - first, TOKENS)
    repeated = tl.zeros([LENGTH], tl.int32)
    for other in range(last):
        places = ids + (batch_row + first + other) * (groups * SLOTS) + row_slots
        theirs = tl.load(places, mask=row_slots < SLOTS, other=-1)
        found = tl.max((own[:, None] == theirs[None, :]).to(tl.int32), axis=1)
        repeated = tl.where(other < token, repeated | found, repeated)
    union = tl.sort(tl.where(repeated > 0, _NO_BLOCK, own))
    bits = tl.zeros([LENGTH], tl.int32)
    for other in range(last):
        places = ids + (batch_row + first + other) * (groups * SLOTS) + row_slots
        theirs = tl.load(places, mask=row_slots < SLOTS, other=-1)
        found = tl.max((union[:, None] == theirs[None, :]).to(tl.int32), axis=1)
        bits |= found << other
    places = ((batch * num_tiles + tile) * groups + group) * LENGTH + entry
    tl.store(blocks + places, tl.where(union == _NO_BLOCK, -1, union), mask=entry < LENGTH)
    tl.store(members + places, bits, mask=entry < LENGTH)


def union_launch(ids: Tensor, visits: Visits, tile: TokenTile) -> Launch:
    """Fills the blocks and members of `visits` from contiguous `ids` [B, Tq, G, S], sets with -1 last."""
    batch, num_rows, groups, slots = ids.shape
    num_tiles, length = visits.blocks.shape[1], visits.blocks.shape[3]
    return Launch(
        kernel=union_kernel,
        programs=batch * num_tiles * groups,
        arguments={
            "ids": ids,
            "table": visits.table,
            "blocks": visits.blocks,
            "members": visits.members,
            "num_rows": num_rows,
            "num_tiles": num_tiles,
            "groups": groups,
        },
        constants={
            "PACKED": visits.table is not None,
            "TOKENS": tile.tokens,
            "SLOTS": slots,
            "WIDTH": triton.next_power_of_2(slots),
            "LENGTH": length,
        },
        tile=_UNION_TILE,
    )


def empty_visits(ids: Tensor, tile: TokenTile, place: Place) -> Visits:
    """The visits of the tiles of `ids`, for `union_launch` to fill if a tile has several tokens."""
    batch, num_rows, groups, slots = ids.shape
    table = None if place.packed is None else place.packed.row_tiles(tile.tokens)
    if tile.tokens == 1:
        return Visits(ids, None, table)
    num_tiles = triton.cdiv(num_rows, tile.tokens) if table is None else table.shape[0]
    length = triton.next_power_of_2(tile.tokens) * triton.next_power_of_2(slots)
    blocks = ids.new_empty(batch, num_tiles, groups, length)
    return Visits(blocks, torch.empty_like(blocks), table)


def visits_of(ids: Tensor, tile: TokenTile, place: Place) -> Visits:
    """What the tiles visit; contiguous `ids` [B, Tq, G, S] as `block_index.usable_ids` returns them."""
    visits = empty_visits(ids, tile, place)
    if tile.tokens > 1:
        union_launch(ids, visits, tile).run()
    return visits


def keys_of_step(select_block: int, most: int) -> int:
    """How many of a block's tokens a step takes: a power of two, at most `most`, with the least padding."""
    sizes = [size for size in (64, 32, 16) if size <= most]
    return min(sizes, key=lambda size: triton.cdiv(select_block, size) * size)


def visit_launch(
    kernel: Any,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visits: Visits,
    place: Place,
    tokens: TokenTile,
    tile: Tile,
) -> Launch:
    """The launch of a kernel whose programs visit blocks, with what such kernels share added."""
    block = place.config.select_block
    return Launch(
        kernel=kernel,
        programs=visits.programs(tokens),
        arguments={**arguments, **visits.arguments},
        constants={
            **constants,
            "HEADS_PER_GROUP": query.shape[2] // key.shape[2],
            "KEYS": keys_of_step(block, tile.keys),
            "SELECT_BLOCK": block,
            **visits.constants,
            **tokens.constants,
            **dim_constants(query.shape[3], value.shape[3]),
        },
        tile=tile,
    )


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, place, query, key, _ in shape_cases(TOKENS):
        ids = query.new_empty(*query.shape[:2], key.shape[2], 16, dtype=torch.int32)
        tile, _ = token_tile(query, key, ids, Tile(64, 64, 4, 2))
        if tile.tokens > 1:
            launch = union_launch(ids, empty_visits(ids, tile, place), tile)
            yield launch.variant(f"selected_union[{shape.label}]")
