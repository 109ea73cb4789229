"""Eq. 8-10: from the compressed branch's probabilities to one importance per group and selection block."""

from torch import Tensor
from torch.nn.functional import pad

from trisparse.config import SparseConfig


def block_importance(probabilities: Tensor, num_blocks: int, config: SparseConfig) -> Tensor:
    """Eq. 9, read geometrically (spec 3): the score of block j sums p[(l'/d)*j + m - k].

    m runs over [0, l'/d), k over [0, l/d); indices outside [0, C) are dropped.
    `probabilities` [..., C] -> [..., num_blocks].
    """
    ratio = config.select_block // config.compress_stride
    overlap = config.compress_block // config.compress_stride
    num_compressed = probabilities.shape[-1]
    # index (l'/d)*j + m - k reaches from 1 - l/d to ratio * num_blocks - 1: pad so that all are in range
    right = max(0, ratio * num_blocks - num_compressed)
    padded = pad(probabilities, (overlap - 1, right))
    score = probabilities.new_zeros(*probabilities.shape[:-1], num_blocks)
    for m in range(ratio):
        for k in range(overlap):
            first = m - k + overlap - 1
            score = score + padded[..., first : first + ratio * num_blocks : ratio]
    return score


def group_importance(scores: Tensor, groups: int) -> Tensor:
    """Eq. 10: the sum over the M query heads of each group. [B, Tq, H, J] -> [B, Tq, G, J]."""
    first, *others = scores.unflatten(2, (groups, scores.shape[2] // groups)).unbind(dim=3)
    for head in others:
        # head by head: a reduction may order its terms by column, and equal sums would stop being ties
        first = first + head
    return first
