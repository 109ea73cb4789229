"""How much of a cache one decode step must read."""

from torch import Tensor

from trisparse.bench.decode_case import DecodeCase


def token_bytes(case: DecodeCase) -> int:
    """Bytes of one token's key and value, all groups together."""
    return case.groups * (case.head_dim + case.value_dim) * case.dtype.itemsize


def dense_bytes(case: DecodeCase) -> int:
    """Bytes of all keys and values of all rows."""
    return sum(case.lengths) * token_bytes(case)


def sparse_bytes(case: DecodeCase, ids: Tensor) -> int:
    """Bytes of the keys and values that a step with these ids [B, n, G, S] reads, each counted once."""
    config, tokens = case.config, 0
    for row, length in enumerate(case.lengths):
        near = min(length, config.window - 1 + case.new_tokens)
        tokens += case.groups * (config.num_compressed(length) + near)
        for blocks in ids[row].transpose(0, 1):
            found = set(blocks.flatten().tolist()) - {-1}
            # the newest block may be incomplete
            tokens += sum(min(config.select_block, length - block * config.select_block) for block in found)
    return tokens * token_bytes(case) // case.groups
