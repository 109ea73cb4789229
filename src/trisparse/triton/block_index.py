"""The selection turned around: which query rows chose each block, to sum gradients block by block.

Made of one stable radix sort and one binary search, all on the device. Neither order nor bounds depend on the
order of threads, as an atomic cursor's would, and memory grows with the chosen pairs alone, where a map of
[blocks, T] would grow with the square of the length. A counting kernel of our own would save one pass over
data that is a thousandth of what the gradients read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse.triton.launch import Place

# above every block; the value of an empty slot while ids are sorted
NO_BLOCK = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class BlockIndex:
    """For each batch row, group and selection block the ascending query rows that chose it.

    Those of block `j` of pair `p = b * G + g` are `rows[starts[i] : starts[i + 1]]`, i = p * num_blocks + j.
    Packed, blocks are counted through all documents, as `PackedSequences.token_tiles(select_block)` does.

    Attributes:
        rows: int32 [B * Tq * G * S], padding behind `starts[-1]`.
        starts: int64 [B * G * num_blocks + 1].
        num_blocks: blocks of one pair; packed, an upper limit.
    """

    rows: Tensor
    starts: Tensor
    num_blocks: int


def usable_ids(ids: Tensor, place: Place) -> Tensor:
    """Ids [B, Tq, G, S] of any integer dtype as the set they mean (spec 5), contiguous and int32.

    Ascending and distinct, -1 last; a value that names no block at or before the row's own is dropped. No
    slots become one that is empty.
    """
    if ids.shape[3] == 0:
        return ids.new_full((*ids.shape[:3], 1), -1, dtype=torch.int32)
    own = (_positions(place, ids) // place.config.select_block)[:, None, None]
    # compared before they are narrowed: an id of 2 ** 32 must not become 0
    ids = ids.masked_fill((ids < 0) | (ids > own), NO_BLOCK).to(torch.int32).sort(dim=3).values
    repeated = ids[..., 1:] == ids[..., :-1]
    ids[..., 1:].masked_fill_(repeated, NO_BLOCK)
    ids = ids.sort(dim=3).values.contiguous()
    return ids.masked_fill_(ids == NO_BLOCK, -1)


def used_slots(ids: Tensor, place: Place) -> Tensor:
    """Ids [B, Tq, G, S] with -1 last, without the slots that no row can fill; contiguous."""
    num_blocks = place.config.num_select_blocks(place.query_start + ids.shape[1])
    return ids[..., : max(1, num_blocks)].contiguous()


def invert(ids: Tensor, place: Place, num_tokens: int) -> BlockIndex:
    """The index of `ids` [B, Tq, G, S], as `usable_ids` returns them; `num_tokens` is T."""
    batch, num_rows, groups, slots = ids.shape
    num_blocks = place.config.num_select_blocks(num_tokens)
    numbers = ids
    if place.packed is not None:
        first, count = _first_blocks(place)
        num_blocks += count
        numbers = ids + first[:, None, None]
    pairs = torch.arange(batch * groups, dtype=torch.int32, device=ids.device).view(batch, 1, groups, 1)
    bins = batch * groups * num_blocks
    keys = torch.where(ids < 0, bins, numbers + pairs * num_blocks).flatten()
    # a row is met once by each of its blocks, and slots are in the order of rows: stable is ascending
    keys, order = keys.sort(stable=True)
    rows = order.div_(groups * slots, rounding_mode="floor").remainder_(max(1, num_rows))
    edges = torch.arange(bins + 1, dtype=torch.int32, device=ids.device)
    return BlockIndex(
        rows=rows.to(torch.int32), starts=torch.searchsorted(keys, edges), num_blocks=num_blocks
    )


def _positions(place: Place, ids: Tensor) -> Tensor:
    """The position of each query row in its document, int32 [Tq]."""
    rows = torch.arange(ids.shape[1], dtype=torch.int32, device=ids.device) + place.query_start
    return rows if place.packed is None else rows - place.packed.rows[0]


def _first_blocks(place: Place) -> tuple[Tensor, int]:
    """The number of the first block of each row's document, int32 [Tq], and the number of documents."""
    packed, block = place.packed, place.config.select_block
    assert packed is not None
    counts = (packed.token_stop - packed.token_first + (block - 1)).div(block, rounding_mode="floor")
    first = counts.cumsum(0, dtype=torch.int32) - counts
    index = torch.arange(packed.num_rows, dtype=torch.int32, device=first.device)
    document = torch.searchsorted(packed.row_stop, index, right=True)
    return first[document.clamp_(max=first.shape[0] - 1)], first.shape[0]
