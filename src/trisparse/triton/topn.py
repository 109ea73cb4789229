# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Scores and top-n in one kernel (eq. 8-12): probabilities become block ids without touching memory.

A program owns a few query tokens of one KV group and walks over selection blocks, a tile of them at a time.
The compressed keys (l'/d) * j + p of every block j of the tile are met side by side, up to four phases p at
once: each head's queries are read once for all of them, and pooling is a sum over nearby columns. The blocks
of a tile are not neighbours: they lie as far apart as there are tiles. The next tile then holds the next
block in every column, and what a key owes to it by overlap is carried over elementwise. Only for the first
tile are the keys in front of its blocks met once more.

The best blocks of a row are kept as 64-bit keys (`ranking.py`).
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.compressed_forward import compressed_lse, compressed_place
from trisparse.triton.launch import (
    Launch,
    PinnedTiles,
    Place,
    Tile,
    pinned,
    rowwise,
    split_dim,
    stride_arguments,
)
from trisparse.triton.primitives import LOG2_E, load_lse, load_parts
from trisparse.triton.ranking import NO_BLOCK, empty_slots, keep_best, kept_blocks, sortable
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.tiles import row_tile
from trisparse.triton.variants import KernelVariant

# ids that a program keeps for each row: what fits into registers. A longer selection takes further launches,
# each looking below the least key of the one before, which is exact and needs no more memory
MOST_SLOTS = 64

# tiles of the keys of four phases fit into shared memory
_MOST_PHASES = 4

# query tokens x selection blocks by the bytes of a key, chosen by what compiles without spilling
TILES: PinnedTiles = {
    "large": ((384, Tile(64, 32, 8, 2)), (float("inf"), Tile(32, 8, 8, 2))),
    "medium": ((256, Tile(64, 32, 8, 2)), (384, Tile(32, 32, 8, 2)), (float("inf"), Tile(32, 8, 8, 2))),
    "small": ((256, Tile(64, 32, 8, 1)), (384, Tile(32, 32, 8, 2)), (float("inf"), Tile(32, 8, 8, 1))),
}


def phases_at_once(config: SparseConfig) -> int:
    """Keys of a block that are met at once: the greatest power of two that divides them, so that no column of
    a tile goes to waste."""
    ratio = config.select_block // config.compress_stride
    return min(_MOST_PHASES, ratio & -ratio)


@triton.jit
def _head_sum(
    query,
    query_offsets,
    lse,
    lse_offsets,
    in_tile,
    key_parts,
    score_scale,
    query_stride_h,
    heads,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIMS: tl.constexpr,
):
    """Sum over the heads of p(row, key), fp32 [ROWS, WIDTH]; anything where a row does not see a key."""
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    # their number is no constant: few heads would be unrolled, and find no registers
    for head in range(heads):
        parts = load_parts(query, query_offsets, in_tile, HEAD_DIMS)
        row_lse = load_lse(lse + head, lse_offsets, in_tile)
        exponents = tl.dot(parts[0], tl.trans(key_parts[0]), input_precision="ieee") * score_scale
        if len(parts) > 1:
            # two products and a sum: as one product that goes on from the other's sums, as `dot_transposed`
            # has them, the compiler would make the first one twice and take it through shared memory
            second = tl.dot(parts[1], tl.trans(key_parts[1]), input_precision="ieee")
            exponents += second * score_scale
        total += tl.exp2(exponents - row_lse[:, None])
        query += query_stride_h
    return total


@triton.jit(do_not_specialize=["num_rows", "num_keys", "num_tiles", "heads", "query_start", "first_slot"])
def topn_kernel(
    query,
    key,
    lse,
    ids,
    ceilings,
    table,
    query_stride_b,
    query_stride_t,
    query_stride_h,
    key_stride_b,
    key_stride_t,
    key_stride_h,
    num_rows,
    num_keys,
    num_tiles,
    groups,
    heads,
    query_start,
    first_slot,
    score_scale,
    PACKED: tl.constexpr,
    BOUNDED: tl.constexpr,
    CONTINUED: tl.constexpr,
    COMPRESS_BLOCK: tl.constexpr,
    COMPRESS_STRIDE: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    NUM_INITIAL: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PHASES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_FIRST: tl.constexpr,
    HEAD_SECOND: tl.constexpr,
):
    WIDTH: tl.constexpr = KEYS * PHASES
    RATIO: tl.constexpr = SELECT_BLOCK // COMPRESS_STRIDE
    OVERLAP: tl.constexpr = COMPRESS_BLOCK // COMPRESS_STRIDE
    BEFORE: tl.constexpr = 0 if OVERLAP == 1 else -1
    HEAD_DIMS: tl.constexpr = (HEAD_DIM, HEAD_FIRST, HEAD_SECOND)
    _, group, batch, first, stop, token_first, block_first = row_tile(
        table, num_tiles, num_rows, groups, 1, ROWS, PACKED
    )
    row = first + tl.arange(0, ROWS)
    in_tile = row < stop
    position = row + (query_start - token_first)
    own = (position // SELECT_BLOCK)[:, None]
    last_position = tl.minimum(first + ROWS, stop) - 1 + (query_start - token_first)
    num_blocks = last_position // SELECT_BLOCK + 1
    flat_row = (batch * num_rows + row) * groups + group
    slot = tl.arange(0, SLOTS)[None, :]
    kept = empty_slots(slot, NUM_SLOTS, ROWS)
    # where every candidate has a slot nothing is to be scored
    scored = tl.where(num_blocks > NUM_SELECTED, num_blocks, 0)
    # keys that each row, and that some row sees
    row_seen = tl.maximum(position + (1 + COMPRESS_STRIDE - COMPRESS_BLOCK), 0) // COMPRESS_STRIDE
    row_seen = tl.minimum(row_seen, num_keys - block_first)[:, None]
    seen = tl.max(tl.where(in_tile[:, None], row_seen, 0))
    query_head = query + batch * query_stride_b + group * heads * query_stride_h
    key_head = key + batch * key_stride_b + block_first.to(tl.int64) * key_stride_t + group * key_stride_h
    query_offsets = row.to(tl.int64) * query_stride_t
    lse_offsets = flat_row * heads
    owed = tl.zeros([ROWS, KEYS], tl.float32)
    num_steps = tl.cdiv(scored, KEYS)
    column = tl.arange(0, WIDTH)
    for step in range(tl.where(scored > 0, BEFORE, 0), num_steps):
        block = tl.arange(0, KEYS) * num_steps + step
        score = owed
        owed = tl.zeros([ROWS, KEYS], tl.float32)
        # in front of the first tile, only the last keys of a block owe anything
        for first_phase in range(
            tl.where(step < 0, (RATIO - OVERLAP + 1) // PHASES * PHASES, 0), RATIO, PHASES
        ):
            phase = first_phase + column % PHASES
            index = (column // PHASES * num_steps + step) * RATIO + phase
            offsets = index.to(tl.int64) * key_stride_t
            is_seen = (index >= 0) & (index < seen)
            parts = load_parts(key_head, offsets, is_seen, HEAD_DIMS)
            total = _head_sum(
                query_head,
                query_offsets,
                lse,
                lse_offsets,
                in_tile,
                parts,
                score_scale,
                query_stride_h,
                heads,
                ROWS,
                WIDTH,
                HEAD_DIMS,
            )
            total = tl.where((index >= 0)[None, :] & (index[None, :] < row_seen), total, 0.0)
            weight = tl.minimum(RATIO - phase, OVERLAP)[None, :]
            score += tl.sum(tl.reshape(total * weight, [ROWS, KEYS, PHASES]), axis=2)
            owed += tl.sum(tl.reshape(total * (OVERLAP - weight), [ROWS, KEYS, PHASES]), axis=2)
        keys = sortable(score, block[None, :], own, NUM_INITIAL, NUM_LOCAL)
        keys = tl.where((block[None, :] <= own) & (step >= 0), keys, -1)
        if BOUNDED:
            ceiling = tl.load(ceilings + flat_row, mask=in_tile, other=0)
            keys = tl.where(keys < ceiling[:, None], keys, -1)
        kept = keep_best(kept, keys)
    if CONTINUED:
        tl.store(ceilings + flat_row, tl.min(kept, axis=1), mask=in_tile)
    chosen = tl.where(first_slot + slot <= own, first_slot + slot, NO_BLOCK)
    if scored > 0:
        chosen = kept_blocks(kept, slot, NUM_SLOTS)
    tl.store(
        ids + flat_row[:, None] * NUM_SELECTED + first_slot + slot,
        tl.where(chosen == NO_BLOCK, -1, chosen),
        mask=in_tile[:, None] & (slot < NUM_SLOTS),
    )


def topn_launch(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    ids: Tensor,
    ceilings: Tensor | None,
    place: Place,
    tile: Tile,
    first_slot: int,
) -> Launch:
    """Fills the slots `first_slot .. first_slot + MOST_SLOTS - 1` of contiguous `ids` [B, Tq, G, S].

    `ceilings` int64 [B, Tq, G] carries each row's least key from launch to launch; None if one is enough.
    """
    batch, num_rows, num_heads, head_dim = query.shape
    groups, config = key.shape[2], place.config
    num_slots = min(MOST_SLOTS, config.num_selected - first_slot)
    table = None if place.packed is None else place.packed.row_tiles(tile.rows, longest_first=True)
    num_tiles = triton.cdiv(num_rows, tile.rows) if table is None else table.shape[0]
    arguments = {
        "query": query,
        "key": key,
        "lse": lse,
        "ids": ids,
        "ceilings": ceilings,
        "table": table,
        **stride_arguments(query=query, key=key),
        "num_rows": num_rows,
        "num_keys": key.shape[1],
        "num_tiles": num_tiles,
        "groups": groups,
        "heads": num_heads // groups,
        "query_start": place.query_start,
        "first_slot": first_slot,
        "score_scale": place.scale * LOG2_E.value,
    }
    constants = {
        "PACKED": table is not None,
        "BOUNDED": first_slot > 0,
        "CONTINUED": first_slot + num_slots < config.num_selected,
        "COMPRESS_BLOCK": config.compress_block,
        "COMPRESS_STRIDE": config.compress_stride,
        "SELECT_BLOCK": config.select_block,
        "NUM_SELECTED": config.num_selected,
        "NUM_INITIAL": config.num_initial,
        "NUM_LOCAL": config.num_local,
        "NUM_SLOTS": num_slots,
        # a sort needs two columns
        "SLOTS": max(2, triton.next_power_of_2(num_slots)),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "PHASES": phases_at_once(config),
        "HEAD_DIM": head_dim,
        "HEAD_FIRST": split_dim(head_dim)[0],
        "HEAD_SECOND": split_dim(head_dim)[1],
    }
    programs = num_tiles * batch * groups if num_rows else 0
    return Launch(kernel=topn_kernel, programs=programs, arguments=arguments, constants=constants, tile=tile)


def select_blocks_from_lse(
    query: Tensor, key: Tensor, lse: Tensor, place: Place, tile: Tile | None = None
) -> Tensor:
    """Eq. 8-12: query [B, Tq, H, D], compressed key [B, C, G, D], lse [B, Tq, H] of the branch in fp32.

    Returns:
        ids int32 [B, Tq, G, S], ascending, -1 last: the forced blocks, then those with the highest scores.
    """
    query, key, lse = rowwise(query), rowwise(key), lse.contiguous()
    tile = pinned(TILES, key) if tile is None else tile
    num_selected = place.config.num_selected
    ids = query.new_full((*query.shape[:2], key.shape[2], num_selected), -1, dtype=torch.int32)
    # slots that no row can fill stay empty
    useful = min(num_selected, place.config.num_select_blocks(place.query_start + query.shape[1]))
    ceilings = None if num_selected <= MOST_SLOTS else ids.new_empty(ids.shape[:3], dtype=torch.int64)
    for first_slot in range(0, useful, MOST_SLOTS):
        topn_launch(query, key, lse, ids, ceilings, place, tile, first_slot).run()
    return ids if useful <= MOST_SLOTS else _ascending(ids)


def select_blocks(
    query: Tensor,
    key: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Tensor:
    """-> ids int32 [B, Tq, G, S], bit for bit those of `compressed_select_forward`."""
    place = compressed_place(query, key, config, scale, cu_seqlens, query_start)
    return select_blocks_from_lse(query, key, compressed_lse(query, key, place), place)


def _ascending(ids: Tensor) -> Tensor:
    """Each row sorted, -1 last."""
    ids = ids.masked_fill_(ids < 0, NO_BLOCK.value).sort(dim=-1).values
    return ids.masked_fill_(ids == NO_BLOCK.value, -1)


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, place, query, key, _ in shape_cases(SparseConfig().num_compressed(TOKENS)):
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        ids = query.new_empty((*query.shape[:2], key.shape[2], place.config.num_selected), dtype=torch.int32)
        tile = pinned(TILES, key)
        yield topn_launch(query, key, lse, ids, None, place, tile, 0).variant(
            f"topn[{shape.label}]", hot=shape.hot
        )
