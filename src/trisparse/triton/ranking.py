# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""The order of blocks (eq. 11, 12) as 64-bit keys, and the few best ones of each row, kept in registers.

A key has the score above the index, so that no two are equal and the lower of two blocks with one score has
the greater key. A tile's best key replaces the least one kept until no row gains: late tiles change few rows,
where sorting every tile would cost the same everywhere.
"""

import triton
import triton.language as tl

NO_BLOCK = tl.constexpr(2**31 - 1)

# the high half of a key: NaN below every number below a forced block, all above the keys of empty slots
_NAN_RANK = tl.constexpr(1)
_FORCED_RANK = tl.constexpr(2**31 - 1)


@triton.jit
def sortable(score, block, own, NUM_INITIAL: tl.constexpr, NUM_LOCAL: tl.constexpr):
    """int64 keys [ROWS, KEYS]: the greater is chosen first.

    `score` is no less than 0 or NaN, so its bits grow with it. `block` [1, KEYS], `own` [ROWS, 1].
    """
    rank = tl.where(score == score, score.to(tl.int32, bitcast=True) + (_NAN_RANK + 1), _NAN_RANK)
    forced = (block < NUM_INITIAL) | (block > own - NUM_LOCAL)
    rank = tl.where(forced, _FORCED_RANK, rank)
    return (rank.to(tl.int64) << 32) | (block ^ NO_BLOCK).to(tl.int64)


@triton.jit
def empty_slots(slot, NUM_SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, SLOTS] keys of slots that hold no block: below those of all blocks, padding above them."""
    return tl.where(slot < NUM_SLOTS, slot.to(tl.int64), 2**63 - 1) + tl.zeros([ROWS, 1], tl.int64)


@triton.jit
def keep_best(kept, keys):
    """The SLOTS greatest of `kept` [ROWS, SLOTS] and `keys` [ROWS, KEYS] in each row, in no order."""
    best = tl.max(keys, axis=1)
    least = tl.min(kept, axis=1)
    while tl.max((best > least).to(tl.int32), axis=0) > 0:
        replaced = (kept == least[:, None]) & (best > least)[:, None]
        kept = tl.where(replaced, best[:, None], kept)
        keys = tl.where(keys == best[:, None], -1, keys)
        best = tl.max(keys, axis=1)
        least = tl.min(kept, axis=1)
    return kept


@triton.jit
def kept_blocks(kept, slot, NUM_SLOTS: tl.constexpr):
    """The blocks whose keys are `kept` [ROWS, SLOTS], ascending, NO_BLOCK last."""
    # a key's low half; keys of empty slots have no high half, padding is above all
    is_block = (kept >> 32 > 0) & (slot < NUM_SLOTS)
    return tl.sort(tl.where(is_block, kept.to(tl.int32) ^ NO_BLOCK, NO_BLOCK))
