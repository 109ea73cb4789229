"""Selected branch, key-block-major: each block once, against all query rows that selected it.

Gathering the queries of a block moves M * D numbers per (query, block) pair; gathering a query's blocks would
move l' * (D + E). The pairs are sorted by block once; a query row meets its blocks in ascending order, and
its running softmax is rescaled as in any online softmax. No sum depends on the order of threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse.chunked.sequences import Sequence, compute_dtype, sequences
from trisparse.config import SparseConfig

# scores of one piece of a block's pairs: small enough for a CPU's cache
PIECE_SCORES = 2**19


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some of the rows that selected one block: `rows` int64 [P], ascending and distinct.

    `tokens` are the block's; `hidden` bool [P, tokens] marks those in a row's future, None if there are none.
    """

    rows: Tensor
    tokens: slice
    hidden: Tensor | None


def _usable_ids(ids: Tensor, positions: Tensor, num_tokens: int, config: SparseConfig) -> Tensor:
    """Ids [Tq, S] as a set in int64: whatever names no block, or names it again, becomes J (spec 5)."""
    num_blocks = config.num_select_blocks(num_tokens)
    ids = ids.long()
    own = (positions // config.select_block)[:, None]
    ids = ids.masked_fill((ids < 0) | (ids > own), num_blocks).sort(dim=1).values
    repeated = ids[:, 1:] == ids[:, :-1]
    ids[:, 1:].masked_fill_(repeated, num_blocks)
    return ids


def _pieces(
    ids: Tensor, heads: int, num_tokens: int, sequence: Sequence, config: SparseConfig
) -> Iterator[Piece]:
    """All (row, block) pairs of `ids` [Tq, S], block by block."""
    block = config.select_block
    positions = torch.arange(ids.shape[0], device=ids.device) + sequence.query_start
    usable = _usable_ids(ids, positions, num_tokens, config).flatten()
    num_blocks = config.num_select_blocks(num_tokens)
    order = usable.argsort(stable=True)
    counts = torch.bincount(usable, minlength=num_blocks + 1).tolist()
    rows_by_block = (order // max(1, ids.shape[1])).split(counts)
    size = max(16, PIECE_SCORES // (heads * min(block, max(1, num_tokens))))
    for index, all_rows in enumerate(rows_by_block[:num_blocks]):
        tokens = slice(index * block, min((index + 1) * block, num_tokens))
        sources = torch.arange(tokens.start, tokens.stop, device=ids.device)
        for rows in all_rows.split(size) if len(all_rows) else ():
            # only rows inside the block have some of its tokens in their future; rows are ascending
            inside = int(rows[0]) + sequence.query_start < tokens.stop - 1
            hidden = positions[rows, None] < sources if inside else None
            yield Piece(rows=rows, tokens=tokens, hidden=hidden)


def _scores(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """Scores [P, M, tokens] of a scaled query [P, M, D]."""
    scores = (query.flatten(0, 1) @ key.T).view(*query.shape[:2], key.shape[0])
    if hidden is not None:
        scores.masked_fill_(hidden[:, None], float("-inf"))
    return scores


def _attend(
    query: Tensor, key: Tensor, value: Tensor, pieces: Iterator[Piece], out: Tensor, log_sum_exp: Tensor
) -> None:
    """Forward of one sequence. Scaled `query` [Tq, M, D]; fills `out` [Tq, M, E], `log_sum_exp` [Tq, M]."""
    highest = torch.full_like(log_sum_exp, float("-inf"))
    total = torch.zeros_like(log_sum_exp)
    sums = value.new_zeros(*log_sum_exp.shape, value.shape[1])
    for piece in pieces:
        rows = piece.rows
        scores = _scores(query[rows], key[piece.tokens], piece.hidden)
        before = highest[rows]
        after = torch.maximum(before, scores.amax(dim=-1))
        # a whole row of -inf scores can only come from infinite inputs; its sums stay as they are
        reference = after.masked_fill(after == float("-inf"), 0.0)
        rescale = torch.exp(before - reference)
        scores.sub_(reference[..., None]).exp_()
        highest[rows] = after
        total[rows] = total[rows].mul_(rescale).add_(scores.sum(dim=-1))
        product = (scores.flatten(0, 1) @ value[piece.tokens]).view(*scores.shape[:2], -1)
        sums[rows] = product.addcmul_(sums[rows], rescale[..., None])
    log_sum_exp.copy_(highest + total.log())
    out.copy_(sums.div_(total.masked_fill_(total == 0, 1.0)[..., None]))


def _attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Iterator[Piece],
    log_sum_exp: Tensor,
    delta: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one sequence: d scaled query [Tq, M, D], d key [T, D], d value [T, E]."""
    grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
    for piece in pieces:
        rows, tokens = piece.rows, piece.tokens
        piece_query, piece_grad = query[rows], grad_out[rows]
        flat_query, flat_grad = piece_query.flatten(0, 1), piece_grad.flatten(0, 1)
        probabilities = _scores(piece_query, key[tokens], piece.hidden)
        probabilities.sub_(log_sum_exp[rows, :, None]).exp_()
        flat = probabilities.flatten(0, 1)
        grad_value[tokens] += flat.T @ flat_grad
        grad_scores = (flat_grad @ value[tokens].T).view_as(probabilities)
        grad_scores.sub_(delta[rows, :, None]).mul_(probabilities)
        if piece.hidden is not None:
            # 0 * inf is NaN: a hidden value may be so large that its product overflowed
            grad_scores.masked_fill_(piece.hidden[:, None], 0.0)
        flat_scores = grad_scores.flatten(0, 1)
        grad_key[tokens] += flat_scores.T @ flat_query
        grad_query[rows] += (flat_scores @ key[tokens]).view_as(piece_query)
    return grad_query, grad_key, grad_value


def selected_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """-> out [B, Tq, H, E] in the query's dtype, lse [B, Tq, H] in the compute dtype."""
    dtype = compute_dtype(query)
    out = query.new_zeros(*query.shape[:3], value.shape[3])
    lse = query.new_full(query.shape[:3], float("-inf"), dtype=dtype)
    for sequence in sequences(query, key.shape[2], config, cu_seqlens, query_start):
        rows = sequence.of_heads(query).to(dtype) * scale
        # tokens past the last row do not matter even if they are NaN (spec 10)
        reach = sequence.query_start + len(rows)
        keys, values = (sequence.of_tokens(x)[:reach].to(dtype) for x in (key, value))
        pieces = _pieces(sequence.of_rows(ids), rows.shape[1], len(keys), sequence, config)
        _attend(rows, keys, values, pieces, sequence.of_heads(out), sequence.of_heads(lse))
    return out, lse


def selected_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients shaped and typed like query, key, value."""
    dtype = compute_dtype(query)
    grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    for sequence in sequences(query, key.shape[2], config, cu_seqlens, query_start):
        rows = sequence.of_heads(query).to(dtype) * scale
        # tokens past the last row do not matter even if they are NaN (spec 10)
        reach = sequence.query_start + len(rows)
        keys, values = (sequence.of_tokens(x)[:reach].to(dtype) for x in (key, value))
        grad_rows = sequence.of_heads(grad_out).to(dtype)
        delta = (grad_rows * sequence.of_heads(out).to(dtype)).sum(dim=-1)
        pieces = _pieces(sequence.of_rows(ids), rows.shape[1], len(keys), sequence, config)
        d_query, d_key, d_value = _attend_backward(
            rows, keys, values, pieces, sequence.of_heads(lse), delta, grad_rows
        )
        sequence.of_heads(grads[0]).copy_(d_query.mul_(scale))
        sequence.of_tokens(grads[1])[:reach] = d_key.to(key.dtype)
        sequence.of_tokens(grads[2])[:reach] = d_value.to(value.dtype)
    return grads[0], grads[1], grads[2]
