"""Eq. 11-12: the blocks with the highest importance, the forced ones first."""

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.reference.blocks import forced_blocks


def top_blocks(scores: Tensor, positions: Tensor, config: SparseConfig) -> Tensor:
    """Eq. 11-12 with spec 4's forced blocks and ties.

    `scores` [B, Tq, G, J], `positions` [Tq] -> ids int32 [B, Tq, G, S], ascending, -1 in empty slots. Ties go
    to the lower index; a NaN score ranks below every number.
    """
    batch, _, groups, num_blocks = scores.shape
    num_slots = config.num_selected
    ids = scores.new_full((batch, len(positions), groups, num_slots), -1, dtype=torch.int32)
    for row, position in enumerate(positions.tolist()):
        candidates = min(position // config.select_block + 1, num_blocks)
        forced = [block for block in forced_blocks(position, config) if block < num_blocks]
        rank = scores[:, row, :, :candidates].nan_to_num(nan=-1.0)
        rank[..., forced] = float("inf")
        order = rank.sort(dim=-1, descending=True, stable=True).indices
        chosen = order[..., :num_slots].sort(dim=-1).values
        ids[:, row, :, : chosen.shape[-1]] = chosen.to(torch.int32)
    return ids
