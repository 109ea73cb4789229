"""Scores and top-n of one tile (eq. 9-12): probabilities in, block ids out."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from trisparse.config import SparseConfig


def overlap_weights(ratio: int, overlap: int) -> list[int]:
    """How often eq. 9 counts compressed block ratio * j + offset for offset = 1 - overlap .. ratio - 1.

    With ratio = l'/d and overlap = l/d: 1, 2, 2, 2, 1 for the paper's 32/16/64, the overlap of the two blocks
    in strides.
    """
    offsets = range(1 - overlap, ratio)
    return [min(ratio - 1, offset + overlap - 1) - max(0, offset) + 1 for offset in offsets]


def group_scores(probabilities: Tensor, num_blocks: int, config: SparseConfig) -> Tensor:
    """Eq. 9 and 10: [rows, M, C] -> [rows, num_blocks].

    Terms are added one by one in a fixed order, so that scores that are equal in the equations are equal in
    their bits and tie as the spec says; a reduction over a dimension may order its terms by column.
    """
    by_group = probabilities[:, 0].clone()
    for head in range(1, probabilities.shape[1]):
        by_group += probabilities[:, head]
    ratio = config.select_block // config.compress_stride
    overlap = config.compress_block // config.compress_stride
    if num_blocks == 1:
        # however large the block is, it overlaps no more than there is
        ratio = min(ratio, by_group.shape[1] + overlap)
    span = ratio * num_blocks
    padded = pad(by_group, (overlap - 1, max(0, span - by_group.shape[1])))
    score = by_group.new_zeros(by_group.shape[0], num_blocks)
    for first, weight in enumerate(overlap_weights(ratio, overlap)):
        score.add_(padded[:, first : first + span : ratio][:, :num_blocks], alpha=weight)
    return score


def _rank_by_score(scores: Tensor, positions: Tensor, config: SparseConfig) -> Tensor:
    """Forced blocks +inf, blocks that are no candidates -inf, the others their score (NaN: -1)."""
    blocks = torch.arange(scores.shape[1], device=scores.device)
    own = (positions // config.select_block)[:, None]
    forced = (blocks < config.num_initial) | (blocks > own - config.num_local)
    rank = scores.nan_to_num(nan=-1.0).masked_fill_(forced, float("inf"))
    return rank.masked_fill_(blocks > own, float("-inf"))


def top_blocks(scores: Tensor, positions: Tensor, config: SparseConfig) -> Tensor:
    """Eq. 11-12: scores [rows, J], positions [rows] -> ids int32 [rows, S], ascending, -1 last."""
    num_rows, num_blocks = scores.shape
    rank = _rank_by_score(scores, positions, config)
    # a stable descending sort keeps the lower index first among equals
    order = rank.sort(dim=1, descending=True, stable=True)
    count = min(config.num_selected, num_blocks)
    absent = order.values[:, :count] == float("-inf")
    chosen = order.indices[:, :count].masked_fill_(absent, num_blocks).sort(dim=1).values
    ids = torch.full((num_rows, config.num_selected), -1, dtype=torch.int32, device=scores.device)
    ids[:, :count] = chosen.masked_fill_(chosen == num_blocks, -1)
    return ids
