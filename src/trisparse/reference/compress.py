"""Eq. 7: the blocks of tokens that the compressor phi turns into one key or value each."""

from torch import Tensor

from trisparse.config import SparseConfig


def compress_blocks(tokens: Tensor, config: SparseConfig) -> Tensor:
    """Eq. 7: the tokens [i*d, i*d + l) of every complete block i. [B, T, G, D] -> [B, C, l, G, D]."""
    batch, length, groups, dim = tokens.shape
    count = config.num_compressed(length)
    if count == 0:
        return tokens.new_empty(batch, 0, config.compress_block, groups, dim)
    return tokens.unfold(1, config.compress_block, config.compress_stride).movedim(-1, 2)
