"""Attention of one tile: a few query rows, all heads of a group, against one contiguous run of keys.

The compressed and the window branch are rows of such tiles; they differ in which keys a tile meets and which
of them each row sees.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# scores of one tile: small enough that softmax's passes over them stay in a CPU's cache
TILE_SCORES = 2**20


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Query rows `rows` against keys `keys`; `hidden` bool [rows, keys] says which row does not see which."""

    rows: slice
    keys: slice
    hidden: Tensor


def rows_per_tile(keys: int, heads: int) -> int:
    """Query rows of a tile that meets about `keys` keys; a function of one sequence's shape alone."""
    rows = TILE_SCORES // max(1, keys * heads)
    return max(16, min(256, rows // 16 * 16))


def row_slices(num_rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size` rows, the last one shorter."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def tile_scores(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """Scores [rows, M, keys] of a scaled query [rows, M, D], -inf where a row does not see a key."""
    scores = (query.flatten(0, 1) @ key.T).view(*query.shape[:2], key.shape[0])
    return scores.masked_fill_(hidden[:, None], float("-inf"))


def exponentiate_(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Turn scores [rows, M, keys] in place into weights; softmax is weights / total.

    Returns total [rows, M, 1], 1 for an empty row whose weights are all 0, and the log-sum-exp [rows, M],
    there -inf.
    """
    if scores.shape[-1] == 0:
        return scores.new_ones(*scores.shape[:-1], 1), scores.new_full(scores.shape[:-1], float("-inf"))
    highest = scores.amax(dim=-1, keepdim=True)
    highest.masked_fill_(highest == float("-inf"), 0.0)
    total = scores.sub_(highest).exp_().sum(dim=-1, keepdim=True)
    log_sum_exp = total.log().add_(highest).squeeze(-1)
    return total.masked_fill_(total == 0, 1.0), log_sum_exp


def tile_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Tensor,
    log_sum_exp: Tensor,
    delta: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one tile: d scaled query [rows, M, D], d key [keys, D], d value [keys, E].

    `log_sum_exp` and `delta` (the row sums of grad_out * out) are [rows, M], `grad_out` is [rows, M, E]. The
    probabilities are recomputed from the log-sum-exp.
    """
    rows, heads, _ = query.shape
    probabilities = tile_scores(query, key, hidden)
    # an empty row has only masked scores: exp(-inf - 0) is the 0 it needs
    finite = log_sum_exp.masked_fill(log_sum_exp == float("-inf"), 0.0)
    probabilities.sub_(finite[..., None]).exp_()
    flat = probabilities.flatten(0, 1)
    flat_grad = grad_out.flatten(0, 1)
    grad_value = flat.T @ flat_grad
    grad_scores = (flat_grad @ value.T).view_as(probabilities)
    grad_scores.sub_(delta[..., None]).mul_(probabilities)
    # 0 * inf is NaN: an unseen value may be so large that its product overflowed
    grad_scores.masked_fill_(hidden[:, None], 0.0)
    flat_scores = grad_scores.flatten(0, 1)
    grad_query = (flat_scores @ key).view(rows, heads, -1)
    return grad_query, flat_scores.T @ query.flatten(0, 1), grad_value


def attend_tiles(
    tiles: Iterator[Tile],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    out: Tensor,
    log_sum_exp: Tensor,
    inspect: Callable[[Tile, Tensor], None] | None = None,
) -> None:
    """Forward of one sequence: fill `out` [Tq, M, E] and `log_sum_exp` [Tq, M] tile by tile.

    `query` [Tq, M, D], `key` [N, D], `value` [N, E]. `inspect` is shown each tile's probabilities.
    """
    dtype = log_sum_exp.dtype
    key, value = key.to(dtype), value.to(dtype)
    for tile in tiles:
        scores = tile_scores(query[tile.rows].to(dtype) * scale, key[tile.keys], tile.hidden)
        total, log_sum_exp[tile.rows] = exponentiate_(scores)
        product = scores.flatten(0, 1) @ value[tile.keys]
        out[tile.rows] = product.view(*scores.shape[:2], -1).div_(total).to(out.dtype)
        if inspect is not None:
            inspect(tile, scores.div_(total))


def attend_tiles_backward(
    tiles: Iterator[Tile],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    out: Tensor,
    log_sum_exp: Tensor,
    grad_out: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Backward of one sequence: fill `grads`, shaped like (query, key, value), tile by tile."""
    dtype = log_sum_exp.dtype
    key, value = key.to(dtype), value.to(dtype)
    grad_query, grad_key, grad_value = grads[0], torch.zeros_like(key), torch.zeros_like(value)
    for tile in tiles:
        rows, keys = tile.rows, tile.keys
        grad_rows = grad_out[rows].to(dtype)
        delta = (grad_rows * out[rows].to(dtype)).sum(dim=-1)
        scaled = query[rows].to(dtype) * scale
        d_query, d_key, d_value = tile_backward(
            scaled, key[keys], value[keys], tile.hidden, log_sum_exp[rows], delta, grad_rows
        )
        grad_query[rows] = (d_query * scale).to(grad_query.dtype)
        grad_key[keys] += d_key
        grad_value[keys] += d_value
    grads[1].copy_(grad_key)
    grads[2].copy_(grad_value)
