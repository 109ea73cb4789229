"""Block sizes past all positions of a call, cut to sizes that mean the same and that kernels can take."""

import math
from dataclasses import replace

import triton

from trisparse.config import SparseConfig

# blocks up to this size stay as they are: a cut one goes by the length of the call, and each size takes a
# binary of its own
_UNCUT = 4096
# sizes that are alike modulo this many tokens are walked in steps of as many keys: `keys_of_step`
_STEP = 64


def cut_sizes(config: SparseConfig, positions: int) -> SparseConfig:
    """`config` with blocks that are the same for rows and tokens below `positions`, to the bit.

    What kernels compute of them then fits into int32, and there are neither programs nor steps for tokens
    that are not there. A window needs no cut: `Band.reach` and `DecodePlace.reach` cut it for the kernels.
    """
    # no other block is larger
    if config.select_block <= _UNCUT:
        return config
    # of few lengths, so that there are few binaries
    least = triton.next_power_of_2(max(positions + 1, _STEP))
    incomplete = config.compress_block > least
    common = _STEP if incomplete else math.lcm(_STEP, config.compress_stride)
    block = min(config.select_block, least + (config.select_block - least) % common)
    if incomplete:
        # no compressed block is complete
        return replace(config, compress_block=block, compress_stride=block, select_block=block)
    # selection block 0 holds all tokens
    return replace(config, select_block=block)
