# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""One more tile of keys, or of rows: the steps of attention, of d query, and of d key and d value.

A mask `visible` must broadcast with the step's scores; None stands for a tile that all rows see. It implies
`exists`, which says what keys may be read at all: one that no row sees may be NaN.
"""

import triton
import triton.language as tl

from trisparse.triton.primitives import (
    add_parts,
    add_product,
    dot_transposed,
    load_lse,
    load_parts,
    load_rows,
    scale_parts,
    score_gradient,
    softmax_end,
    softmax_step,
    store_parts,
)
from trisparse.triton.tiles import load_pair, load_view, view_rows


@triton.jit
def attend_keys(
    state,
    queries,
    pair,
    keys,
    exists,
    visible,
    score_scale,
    HEAD_DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
):
    """`state` = (sums, highest, total) after one more tile of `keys`, rows of `pair`."""
    sums, highest, total = state
    places = keys.to(tl.int64)
    key_parts = load_parts(pair[0], places * pair[2], exists, HEAD_DIMS)
    scores = dot_transposed(queries, key_parts) * score_scale
    if visible is not None:
        scores = tl.where(visible, scores, float("-inf"))
    weights, rescale, highest, total = softmax_step(scores, highest, total)
    values = load_parts(pair[1], places * pair[3], exists, VALUE_DIMS)
    return add_product(scale_parts(sums, rescale[:, None]), weights, values), highest, total


@triton.jit
def store_attention(state, out, lse, places, kept, VALUE_DIMS: tl.constexpr):
    """The end of the softmax: rows of contiguous out and lse, 0 and -inf for a row that has seen no key."""
    sums, highest, total = state
    inverse, log_sum_exp = softmax_end(highest, total)
    tl.store(lse + places, log_sum_exp, mask=kept)
    results = scale_parts(sums, inverse[:, None])
    store_parts(out, places * VALUE_DIMS[0], kept, results, VALUE_DIMS)


@triton.jit
def gradient_rows(
    query,
    grad,
    gate,
    statistics,
    rows,
    GATED: tl.constexpr,
    HEAD_DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
):
    """(queries, grads, lse, delta, gate): all that the gradient of scores takes of their `rows`.

    The first three are views, and `rows` is (batch, tokens, heads, kept). `statistics` is (lse, delta, places
    of the rows in both). Without GATED there is no gate, and something of its shape stands for it.
    """
    batch, tokens, heads, kept = rows
    lse, delta, places = statistics
    queries = load_view(query, batch, tokens, heads, kept, HEAD_DIMS)
    grads = load_view(grad, batch, tokens, heads, kept, VALUE_DIMS)
    row_lse = load_lse(lse, places, kept)
    row_delta = load_rows(delta, places, kept, 0.0)
    if GATED:
        gates, gate_offsets = view_rows(gate, batch, tokens, heads)
        return queries, grads, row_lse, row_delta, load_rows(gates, gate_offsets, kept, 0.0)
    else:
        return queries, grads, row_lse, row_delta, row_delta


@triton.jit
def query_gradient_step(
    sums,
    rows,
    pair,
    keys,
    exists,
    visible,
    score_scale,
    GATED: tl.constexpr,
    HEAD_DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
):
    """d query / scale of `gradient_rows`, `sums`, after one more tile of `keys`, rows of `pair`."""
    queries, grads, lse, delta, gate = rows
    key_parts, value_parts = load_pair(pair, keys, exists, HEAD_DIMS, VALUE_DIMS)
    weights = tl.exp2(dot_transposed(queries, key_parts) * score_scale - lse[:, None])
    products = dot_transposed(grads, value_parts)
    grad_scores = score_gradient(weights, products, gate[:, None], delta[:, None], GATED)
    if visible is not None:
        # set, not multiplied: 0 * inf is NaN, and a hidden key's product may have overflowed
        grad_scores = tl.where(visible, grad_scores, 0.0)
    return add_product(sums, grad_scores, key_parts)


@triton.jit
def store_query_gradient(
    sums, scale, partial, grad_query, places, kept, ADDED: tl.constexpr, HEAD_DIMS: tl.constexpr
):
    """Rows of contiguous d query: `sums` times `scale`, plus those of `partial` if ADDED."""
    offsets = places * HEAD_DIMS[0]
    sums = scale_parts(sums, scale)
    if ADDED:
        sums = add_parts(sums, load_parts(partial, offsets, kept, HEAD_DIMS))
    store_parts(grad_query, offsets, kept, sums, HEAD_DIMS)


@triton.jit
def key_gradient_step(sums, keys, values, rows, visible, score_scale, GATED: tl.constexpr):
    """(d key / scale, d value) of a tile of keys, `sums`, after one more tile of `gradient_rows`."""
    grad_keys, grad_values = sums
    queries, grads, lse, delta, gate = rows
    # transposed, [keys, rows]: the weights are then the left operand of both products
    weights = tl.exp2(dot_transposed(keys, queries) * score_scale - lse[None, :])
    if visible is not None:
        weights = tl.where(visible, weights, 0.0)
    gated = weights
    if GATED:
        gated = weights * gate[None, :]
    grad_values = add_product(grad_values, gated, grads)
    products = dot_transposed(values, grads)
    grad_scores = score_gradient(weights, products, gate[None, :], delta[None, :], GATED)
    if visible is not None:
        # set, not multiplied: 0 * inf is NaN, and a hidden key's product may have overflowed
        grad_scores = tl.where(visible, grad_scores, 0.0)
    return add_product(grad_keys, grad_scores, queries), grad_values
