"""How far chosen block ids are from the best ones, by the scores of the specification."""

import math

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.reference.attend import attention_probabilities
from trisparse.reference.blocks import visible_compressed
from trisparse.reference.score import block_importance, group_importance

# two orders of summation may disagree about blocks whose scores are this near (in fp32 units)
NEAR_ULPS = 8


def selection_ratio(
    ids: Tensor, query: Tensor, key_cmp: Tensor, config: SparseConfig, query_start: int
) -> float:
    """How much worse the worst chosen block is than the best one left out, over what rounding allows.

    `ids` [B, Tq, G, S] for `query` [B, Tq, H, D]. At most 1 if every chosen block could belong to the top n;
    infinite if the ids break the form: ascending, -1 last, candidates only, forced ones in, none missing.
    """
    positions = torch.arange(query_start, query_start + query.shape[1], device=query.device)
    num_blocks = config.num_select_blocks(query_start + query.shape[1])
    forced, candidate = _kinds(positions, num_blocks, config)
    taken = _taken(ids, num_blocks)
    count = candidate.sum(dim=-1).clamp(max=config.num_selected)  # [Tq, 1]
    whole = (taken.sum(dim=-1) == count) & ~(taken & ~candidate).any(-1) & ~(forced & ~taken).any(-1)
    if not (whole.all() and _is_ordered(ids, num_blocks)):
        return math.inf
    gold = _scores(query.double(), key_cmp.double(), positions, num_blocks, config)
    low = _scores(query, key_cmp, positions, num_blocks, config).double()
    unit = torch.finfo(torch.float32).eps
    allowed = 10 * (low - gold).abs().amax(-1) + NEAR_ULPS * unit * gold.amax(-1)
    free = candidate & ~forced
    weakest = gold.masked_fill(~(taken & free), math.inf).amin(-1)
    refused = gold.masked_fill(~(free & ~taken), -math.inf).amax(-1)
    excess = (refused - weakest).clamp(min=0.0)
    ratios = torch.where(excess > 0, excess / allowed, 0.0)
    return ratios.max().item() if ratios.numel() else 0.0


def _kinds(positions: Tensor, num_blocks: int, config: SparseConfig) -> tuple[Tensor, Tensor]:
    """Which blocks are forced, and which are candidates at all: bool [Tq, 1, J]."""
    blocks = torch.arange(num_blocks, device=positions.device)
    own = (positions // config.select_block)[:, None, None]
    candidate = blocks <= own
    return candidate & ((blocks < config.num_initial) | (blocks > own - config.num_local)), candidate


def _taken(ids: Tensor, num_blocks: int) -> Tensor:
    """ids [B, Tq, G, S] -> bool [B, Tq, G, J]."""
    named = torch.zeros(*ids.shape[:3], num_blocks + 1, dtype=torch.bool, device=ids.device)
    inside = (ids >= 0) & (ids < num_blocks)
    named.scatter_(3, ids.long().where(inside, num_blocks), True)
    return named[..., :num_blocks]


def _is_ordered(ids: Tensor, num_blocks: int) -> bool:
    """Ascending without repeats, -1 in empty slots only at the end, no other value."""
    known = ((ids >= -1) & (ids < num_blocks)).all()
    place = ids.where(ids >= 0, num_blocks)
    rising = (place[..., 1:] > place[..., :-1]) | (ids[..., 1:] == -1)
    return bool(known and rising.all())


def _scores(query: Tensor, key: Tensor, positions: Tensor, num_blocks: int, config: SparseConfig) -> Tensor:
    """Eq. 8-10: the importance of every block, [B, Tq, G, J]."""
    visible = visible_compressed(positions, key.shape[1], config)[None, None]
    probabilities, _ = attention_probabilities(query, key, visible, query.shape[3] ** -0.5)
    by_head = probabilities.permute(0, 3, 1, 2, 4).flatten(2, 3)
    return group_importance(block_importance(by_head, num_blocks, config), key.shape[2])
