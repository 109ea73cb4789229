"""What a few query rows ought to give, by the reference."""

from typing import Any

import torch
from torch import Tensor

from trisparse import api
from trisparse.config import SparseConfig
from trisparse.reference.attend import attend
from trisparse.reference.sparse_attention import gated_sum

Pair = tuple[Tensor, Tensor]


def sparse_rows(
    query: Tensor,
    gates: Tensor,
    compressed: Pair,
    selected: Pair,
    window: Pair,
    ids: Tensor,
    config: SparseConfig,
    start: int,
) -> Tensor:
    """Eq. 5 for query rows [B, n, H, D] at `start ..` that read the blocks `ids` -> [B, n, H, E].

    `window` holds the tokens from max(0, start - config.window + 1) on, the other keys all tokens up to the
    last row: a short reference is a cheap one.
    """
    place: dict[str, Any] = {"query_start": start, "backend": "reference"}
    out_cmp, _ = api.compressed_attention(query, *compressed, config, **place)
    out_slc = api.selected_attention(query, *selected, ids, config, **place)
    place["query_start"] = start - first_in_window(start, config)
    out_win = api.window_attention(query, *window, config, **place)
    return gated_sum(out_cmp, out_slc, out_win, gates)


def first_in_window(start: int, config: SparseConfig) -> int:
    """The first token that a row at `start` sees through its window."""
    return max(0, start - config.window + 1)


def dense_rows(query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
    """Full causal attention of query rows [B, n, H, D] at `start ..` -> [B, n, H, E] in the query's dtype."""
    positions = torch.arange(key.shape[1], device=query.device)
    rows = torch.arange(start, start + query.shape[1], device=query.device)
    visible = positions <= rows[:, None]
    out, _ = attend(query, key, value, visible[None, None], query.shape[3] ** -0.5)
    return out.to(query.dtype)
