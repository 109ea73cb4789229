"""Which compressed blocks, raw tokens and forced blocks a query at a given position may see."""

import torch
from torch import Tensor

from trisparse.config import SparseConfig


def visible_compressed(positions: Tensor, num_compressed: int, config: SparseConfig) -> Tensor:
    """Spec 1: block i is visible from position t iff its last token i*d + l - 1 is not in the future.

    `positions` [Tq] -> bool [Tq, C].
    """
    starts = torch.arange(num_compressed, device=positions.device) * config.compress_stride
    return starts + config.compress_block - 1 <= positions[:, None]


def visible_window(positions: Tensor, tokens: int, config: SparseConfig) -> Tensor:
    """Spec 6: position t sees token s iff t - w < s <= t. `positions` [Tq] -> bool [Tq, T]."""
    sources = torch.arange(tokens, device=positions.device)
    distance = positions[:, None] - sources
    return (distance >= 0) & (distance < config.window)


def visible_selected(ids: Tensor, positions: Tensor, tokens: int, config: SparseConfig) -> Tensor:
    """Spec 5: token s is visible iff s <= t and its block is among the query's ids, a set.

    `ids` [B, Tq, G, S], `positions` [Tq] -> bool [B, Tq, G, T]. An id that names no block (negative, past the
    last block) matches no token; a block wholly in the future has no token with s <= t.
    """
    sources = torch.arange(tokens, device=positions.device)
    chosen = (ids[..., None] == sources // config.select_block).any(dim=-2)
    return chosen & (sources <= positions[:, None, None])


def forced_blocks(position: int, config: SparseConfig) -> list[int]:
    """Spec 4: the first `num_initial` blocks, then own, own - 1, ...; only candidates, each once."""
    own = position // config.select_block
    initial = range(config.num_initial)
    local = range(own, own - config.num_local, -1)
    candidates = [block for block in (*initial, *local) if 0 <= block <= own]
    return list(dict.fromkeys(candidates))
