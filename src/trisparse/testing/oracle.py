"""The contract once more, as loops over plain Python floats: a second opinion on `reference/`.

Every function walks over rows, heads and tokens one at a time and does what the contract says of each, so
that it can be compared with that text by eye. It shares no code with `reference/` on purpose: a mistake would
have to be made twice to go unseen. Tensors of any float dtype come in, fp64 tensors go out; nothing is
differentiable, and the cost is quadratic in plain Python: a few hundred tokens are many.

Letters as in the contract: `B` batch, `Tq` query rows, `H` query heads, `G` KV groups, `E` value dim,
`S` selected slots. Arguments have the shapes of the public functions of the same names.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trisparse.config import SparseConfig


class _Row(NamedTuple):
    """One query row: where it lies in the tensors, and where its document begins."""

    batch: int
    query_row: int
    position: int
    first_token: int
    first_compressed: int


# the rows of the key tensor that a query row attends in one group
_Seen = Callable[[_Row, int], list[int]]


def _document_starts(row: int, cu_seqlens: Tensor | None, config: SparseConfig) -> tuple[int, int]:
    """First token and first compressed key of the document that packed row `row` belongs to."""
    if cu_seqlens is None:
        return 0, 0
    first_compressed = 0
    for start, end in pairwise(cu_seqlens.tolist()):
        if start <= row < end:
            return start, first_compressed
        block = 0
        while block * config.compress_stride + config.compress_block <= end - start:
            block += 1
        first_compressed += block
    raise ValueError(f"cu_seqlens: expected a document that holds row {row}, got {cu_seqlens.tolist()}")


def _rows(query: Tensor, cu_seqlens: Tensor | None, query_start: int, config: SparseConfig) -> Iterator[_Row]:
    for batch in range(query.shape[0]):
        for index in range(query.shape[1]):
            row = query_start + index
            first_token, first_compressed = _document_starts(row, cu_seqlens, config)
            yield _Row(batch, index, row - first_token, first_token, first_compressed)


def _lists(tensor: Tensor) -> list:
    return tensor.detach().to(torch.float64).tolist()


def _score(query: list[float], key: list[float], scale: float | None) -> float:
    total = 0.0
    for dim in range(len(query)):
        total += query[dim] * key[dim]
    return total * (len(query) ** -0.5 if scale is None else scale)


def _softmax(scores: list[float]) -> tuple[list[float], float]:
    """Probabilities and natural log-sum-exp; no scores give no probabilities and `-inf`."""
    if not scores:
        return [], -math.inf
    largest = max(scores)
    total = 0.0
    for score in scores:
        total += math.exp(score - largest)
    return [math.exp(score - largest) / total for score in scores], largest + math.log(total)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, rows: Iterator[_Row], seen: _Seen
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each row and head over the key rows `seen(row, group)`; none give 0 and `-inf`."""
    queries, keys, values = _lists(query), _lists(key), _lists(value)
    heads, value_dim = query.shape[2], value.shape[3]
    out = torch.zeros(*query.shape[:3], value_dim, dtype=torch.float64)
    lse = torch.zeros(query.shape[:3], dtype=torch.float64)
    for row in rows:
        for head in range(heads):
            group = head // (heads // key.shape[2])
            attended = seen(row, group)
            head_query = queries[row.batch][row.query_row][head]
            scores = [_score(head_query, keys[row.batch][index][group], scale) for index in attended]
            probabilities, row_lse = _softmax(scores)
            row_out = [0.0] * value_dim
            for probability, index in zip(probabilities, attended, strict=True):
                for dim in range(value_dim):
                    row_out[dim] += probability * values[row.batch][index][group][dim]
            out[row.batch, row.query_row, head] = torch.tensor(row_out, dtype=torch.float64)
            lse[row.batch, row.query_row, head] = row_lse
    return out, lse


def _visible_compressed(row: _Row, config: SparseConfig) -> list[int]:
    """Item 1: rows of the compressed keys whose last token is not in the query's future."""
    visible = []
    block = 0
    while block * config.compress_stride + config.compress_block - 1 <= row.position:
        visible.append(row.first_compressed + block)
        block += 1
    return visible


def oracle_compressed_attention(
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> tuple[Tensor, Tensor]:
    """Item 2: `[B, Tq, H, E]` and log-sum-exp `[B, Tq, H]`; a row that sees no block is 0 and `-inf`."""

    def seen(row: _Row, _group: int) -> list[int]:
        return _visible_compressed(row, config)

    return _attention(query, key_cmp, value_cmp, scale, _rows(query, cu_seqlens, query_start, config), seen)


def _importance(probabilities: list[list[float]], block: int, config: SparseConfig) -> float:
    """Item 3: the score of selection block `block`; `probabilities` is one list per head of the group.

    The lists hold visible blocks only: what the query does not see has probability 0 and adds nothing.
    """
    per_select = config.select_block // config.compress_stride
    per_compress = config.compress_block // config.compress_stride
    score = 0.0
    for head_probabilities in probabilities:
        for m in range(per_select):
            for k in range(per_compress):
                compressed = per_select * block + m - k
                if 0 <= compressed < len(head_probabilities):
                    score += head_probabilities[compressed]
    return score


def _choose(scores: list[float], own: int, config: SparseConfig) -> list[int]:
    """Item 4: the ids of one query in one group; `scores` holds one number per candidate `0 .. own`."""
    chosen: list[int] = []
    for block in [*range(config.num_initial), *range(own, own - config.num_local, -1)]:
        if 0 <= block <= own and block not in chosen:
            chosen.append(block)
    while len(chosen) < config.num_selected and len(chosen) < own + 1:
        left = [block for block in range(own + 1) if block not in chosen]
        best = left[0]
        for block in left:
            # strictly greater: the lower index keeps the slot in a tie
            if scores[block] > scores[best]:
                best = block
        chosen.append(best)
    return sorted(chosen) + [-1] * (config.num_selected - len(chosen))


def oracle_select_blocks(
    query: Tensor,
    key_cmp: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> Tensor:
    """Items 3 and 4: int32 `[B, Tq, G, S]`, ascending, `-1` last; ids count within the document."""
    queries, keys = _lists(query), _lists(key_cmp)
    groups = key_cmp.shape[2]
    per_group = query.shape[2] // groups
    ids = torch.zeros(*query.shape[:2], groups, config.num_selected, dtype=torch.int32)
    for row in _rows(query, cu_seqlens, query_start, config):
        seen = _visible_compressed(row, config)
        own = row.position // config.select_block
        for group in range(groups):
            probabilities = []
            for head in range(group * per_group, (group + 1) * per_group):
                head_query = queries[row.batch][row.query_row][head]
                scores = [_score(head_query, keys[row.batch][index][group], scale) for index in seen]
                probabilities.append(_softmax(scores)[0])
            importance = [_importance(probabilities, block, config) for block in range(own + 1)]
            chosen = _choose(importance, own, config)
            ids[row.batch, row.query_row, group] = torch.tensor(chosen, dtype=torch.int32)
    return ids


def oracle_selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> Tensor:
    """Item 5: `[B, Tq, H, E]`; an id that names no block at or before the query's own adds nothing."""
    id_lists = ids.tolist()

    def seen(row: _Row, group: int) -> list[int]:
        ids_here = id_lists[row.batch][row.query_row][group]
        tokens = [token for token in range(row.position + 1) if token // config.select_block in ids_here]
        return [row.first_token + token for token in tokens]

    return _attention(query, key, value, scale, _rows(query, cu_seqlens, query_start, config), seen)[0]


def oracle_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
) -> Tensor:
    """Item 6: `[B, Tq, H, E]`; each query attends the `window` tokens that end with its own."""

    def seen(row: _Row, _group: int) -> list[int]:
        tokens = [token for token in range(row.position + 1) if row.position - config.window < token]
        return [row.first_token + token for token in tokens]

    return _attention(query, key, value, scale, _rows(query, cu_seqlens, query_start, config), seen)[0]


def oracle_sparse_attention(
    query: Tensor,
    compressed: tuple[Tensor, Tensor],
    selected: tuple[Tensor, Tensor],
    window: tuple[Tensor, Tensor],
    gates: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
    ids: Tensor | None = None,
) -> Tensor:
    """Item 7: `[B, Tq, H, E]`, the gated sum of the branches; `ids`, if given, replace the selection."""
    where: dict[str, Any] = {"scale": scale, "cu_seqlens": cu_seqlens, "query_start": query_start}
    if ids is None:
        ids = oracle_select_blocks(query, compressed[0], config, **where)
    out_cmp = oracle_compressed_attention(query, *compressed, config, **where)[0]
    out_slc = oracle_selected_attention(query, *selected, ids, config, **where)
    out_win = oracle_window_attention(query, *window, config, **where)
    branches, gate_lists = [_lists(branch) for branch in (out_cmp, out_slc, out_win)], _lists(gates)
    out = torch.zeros_like(out_win)
    for row in _rows(query, cu_seqlens, query_start, config):
        for head in range(query.shape[2]):
            row_out = [0.0] * out.shape[3]
            for gate, branch in zip(gate_lists[row.batch][row.query_row][head], branches, strict=True):
                for dim in range(out.shape[3]):
                    row_out[dim] += gate * branch[row.batch][row.query_row][head][dim]
            out[row.batch, row.query_row, head] = torch.tensor(row_out, dtype=torch.float64)
    return out
