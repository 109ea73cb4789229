# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""Decoding, selection (eq. 11, 12): the best blocks of each new token and group, from their scores."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.decode_rows import DecodePlace, blocks_until, row_start
from trisparse.triton.decode_shapes import decode_cases
from trisparse.triton.launch import Launch, Tile
from trisparse.triton.ranking import NO_BLOCK, empty_slots, keep_best, kept_blocks, sortable
from trisparse.triton.variants import KernelVariant

# many blocks at a time: each block that enters the selection costs a pass over its tile
_TILE = Tile(rows=1, keys=1024, num_warps=4, num_stages=1)


@triton.jit(do_not_specialize=["num_rows", "room", "num_blocks", "groups"])
def decode_topn_kernel(
    scores,
    starts,
    ids,
    num_rows,
    room,
    num_blocks,
    groups,
    SELECT_BLOCK: tl.constexpr,
    NUM_SELECTED: tl.constexpr,
    NUM_INITIAL: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    SLOTS: tl.constexpr,
    KEYS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // groups // num_rows, row // groups % num_rows
    position = row_start(starts, batch, num_rows, room) + token.to(tl.int32)
    candidates = blocks_until(position, SELECT_BLOCK)
    slot = tl.arange(0, SLOTS)[None, :]
    kept = empty_slots(slot, NUM_SELECTED, 1)
    # where every candidate has a slot nothing was scored
    scored = tl.where(candidates > NUM_SELECTED, candidates, 0)
    for first in range(0, scored, KEYS):
        block = first + tl.arange(0, KEYS)[None, :]
        score = tl.load(scores + row * num_blocks + block, mask=block < scored, other=0.0)
        keys = sortable(score, block, candidates - 1, NUM_INITIAL, NUM_LOCAL)
        kept = keep_best(kept, tl.where(block < scored, keys, -1))
    chosen = tl.where(slot < candidates, slot, NO_BLOCK)
    if scored > 0:
        chosen = kept_blocks(kept, slot, NUM_SELECTED)
    chosen = tl.where(chosen == NO_BLOCK, -1, chosen)
    tl.store(ids + row * NUM_SELECTED + slot, chosen, mask=slot < NUM_SELECTED)


def topn_launch(scores: Tensor, ids: Tensor, place: DecodePlace) -> Launch:
    """Fills contiguous `ids` [B, n, G, S] from contiguous `scores` [B, n, G, J]."""
    config = place.config
    return Launch(
        kernel=decode_topn_kernel,
        programs=ids.shape[0] * ids.shape[1] * ids.shape[2],
        arguments={
            "scores": scores,
            "ids": ids,
            "starts": place.starts,
            "num_rows": ids.shape[1],
            "room": place.room,
            "num_blocks": scores.shape[3],
            "groups": ids.shape[2],
        },
        constants={
            "SELECT_BLOCK": config.select_block,
            "NUM_SELECTED": config.num_selected,
            "NUM_INITIAL": config.num_initial,
            "NUM_LOCAL": config.num_local,
            # a sort needs two columns
            "SLOTS": max(2, triton.next_power_of_2(config.num_selected)),
            "KEYS": _TILE.keys,
        },
        tile=_TILE,
    )


def choose_blocks(scores: Tensor, place: DecodePlace) -> Tensor:
    """Eq. 11, 12: scores [B, n, G, J] as `score_blocks` returns them.

    Returns:
        ids int32 [B, n, G, S], ascending, -1 last: the forced blocks, then those with the highest scores; all
        -1 for a row that takes no part.
    """
    ids = scores.new_empty((*scores.shape[:3], place.config.num_selected), dtype=torch.int32)
    topn_launch(scores, ids, place).run()
    return ids


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles: nothing in it depends on dims or heads."""
    for case in decode_cases():
        scores = case.place.lse.new_empty(
            *case.ids.shape[:3], case.place.config.num_select_blocks(case.place.room)
        )
        yield topn_launch(scores, case.ids, case.place).variant(f"decode_topn[{case.label}]")
        return
