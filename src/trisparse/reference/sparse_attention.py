"""The three branches and their gated sum (eq. 5): what every backend must compute."""

from collections.abc import Callable

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.documents import split_documents
from trisparse.reference.attend import attend, attention_probabilities, compute_dtype
from trisparse.reference.blocks import visible_compressed, visible_selected, visible_window
from trisparse.reference.score import block_importance, group_importance
from trisparse.reference.select import top_blocks


def _positions(query: Tensor, query_start: int) -> Tensor:
    return torch.arange(query_start, query_start + query.shape[1], device=query.device)


def _each_document(
    branch: Callable[..., tuple[Tensor, ...]],
    by_row: tuple[Tensor, ...],
    by_token: tuple[Tensor, ...],
    by_block: tuple[Tensor, ...],
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, ...]:
    """Spec 8: run `branch` on each document as if it were alone and put the rows together again."""
    if cu_seqlens is None:
        return branch(*by_row, *by_token, *by_block, config, scale, query_start)
    documents = split_documents(cu_seqlens, by_row[0].shape[1], query_start, config)
    if not documents:
        return branch(*by_row, *(x[:, :0] for x in (*by_token, *by_block)), config, scale, 0)
    parts = []
    for document in documents:
        rows = [x[:, document.rows] for x in by_row]
        tokens = [x[:, document.tokens] for x in by_token]
        blocks = [x[:, document.blocks] for x in by_block]
        parts.append(branch(*rows, *tokens, *blocks, config, scale, document.query_start))
    return tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))


def _compressed(
    query: Tensor, key: Tensor, value: Tensor, config: SparseConfig, scale: float, query_start: int
) -> tuple[Tensor, Tensor]:
    visible = visible_compressed(_positions(query, query_start), key.shape[1], config)
    return attend(query, key, value, visible[None, None], scale)


def _select(
    query: Tensor, key: Tensor, config: SparseConfig, scale: float, query_start: int
) -> tuple[Tensor]:
    positions = _positions(query, query_start)
    visible = visible_compressed(positions, key.shape[1], config)
    probabilities, _ = attention_probabilities(query, key, visible[None, None], scale)
    num_blocks = config.num_select_blocks(query_start + query.shape[1])
    by_head = probabilities.permute(0, 3, 1, 2, 4).flatten(2, 3)
    importance = block_importance(by_head, num_blocks, config)
    return (top_blocks(group_importance(importance, key.shape[2]), positions, config),)


def _selected(
    query: Tensor,
    ids: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    visible = visible_selected(ids, _positions(query, query_start), key.shape[1], config)
    return attend(query, key, value, visible.transpose(1, 2), scale)


def _window(
    query: Tensor, key: Tensor, value: Tensor, config: SparseConfig, scale: float, query_start: int
) -> tuple[Tensor, Tensor]:
    visible = visible_window(_positions(query, query_start), key.shape[1], config)
    return attend(query, key, value, visible[None, None], scale)


def compressed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> tuple[Tensor, Tensor]:
    """Spec 2: attention over the visible compressed blocks -> out [B, Tq, H, E], lse [B, Tq, H]."""
    out, lse = _each_document(_compressed, (query,), (), (key, value), config, scale, cu_seqlens, query_start)
    return out.to(query.dtype), lse.detach()


def select_blocks(
    query: Tensor,
    key: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> Tensor:
    """Spec 3-4: the ids int32 [B, Tq, G, S] of the blocks each query of each group reads."""
    with torch.no_grad():
        (ids,) = _each_document(_select, (query,), (), (key,), config, scale, cu_seqlens, query_start)
    return ids


def attend_and_select(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spec 2-4: `compressed_attention` and the ids of `select_blocks`."""
    place = (config, scale, cu_seqlens, query_start)
    return *compressed_attention(query, key, value, *place), select_blocks(query, key, *place)


def selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> Tensor:
    """Spec 5: attention over the raw tokens of the selected blocks -> out [B, Tq, H, E]."""
    out, _ = _each_document(_selected, (query, ids), (key, value), (), config, scale, cu_seqlens, query_start)
    return out.to(query.dtype)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> Tensor:
    """Spec 6: attention over the last w tokens -> out [B, Tq, H, E]."""
    out, _ = _each_document(_window, (query,), (key, value), (), config, scale, cu_seqlens, query_start)
    return out.to(query.dtype)


def gated_sum(compressed: Tensor, selected: Tensor, window: Tensor, gates: Tensor) -> Tensor:
    """Eq. 5: the branches, each times its gate. Branches [B, T, H, E], gates [B, T, H, 3].

    A gate of 0 takes its branch away even where that is infinite or NaN.
    """
    dtype = compute_dtype(compressed)
    branches = torch.stack([compressed, selected, window], dim=-1).to(dtype)
    wide = gates.to(dtype)[..., None, :]
    branches = branches.masked_fill((wide == 0) & ~branches.isfinite(), 0)
    return (branches * wide).sum(dim=-1).to(compressed.dtype)


def sparse_attention(
    query: Tensor,
    compressed: tuple[Tensor, Tensor],
    selected: tuple[Tensor, Tensor],
    window: tuple[Tensor, Tensor],
    gates: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> Tensor:
    """Eq. 5: all of Native Sparse Attention -> [B, Tq, H, E]."""
    place = (config, scale, cu_seqlens, query_start)
    key_cmp, value_cmp = compressed
    out_cmp, _, ids = attend_and_select(query, key_cmp, value_cmp, *place)
    out_slc = selected_attention(query, selected[0], selected[1], ids, *place)
    out_win = window_attention(query, window[0], window[1], *place)
    return gated_sum(out_cmp, out_slc, out_win, gates)
