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
def query_rows(query, statistics, rows, HEAD_DIMS: tl.constexpr):
    """(queries, lse): what weights take of their rows; the arguments are those of `gradient_rows`."""
    lse, _, places = statistics
    return load_view(query, rows, HEAD_DIMS), load_lse(lse, places, rows[3])


@triton.jit
def grad_rows(grad, gate, statistics, rows, GATED: tl.constexpr, VALUE_DIMS: tl.constexpr):
    """(grads, delta, gate): what the gradient of scores takes besides; arguments as of `gradient_rows`."""
    _, delta, places = statistics
    batch, tokens, heads, kept = rows
    grads = load_view(grad, rows, VALUE_DIMS)
    row_delta = load_rows(delta, places, kept, 0.0)
    if GATED:
        gates, gate_offsets = view_rows(gate, batch, tokens, heads)
        return grads, row_delta, load_rows(gates, gate_offsets, kept, 0.0)
    else:
        return grads, row_delta, row_delta


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
    """(queries, lse, grads, delta, gate): all that the gradient of scores takes of their `rows`.

    The first three are views; `statistics` is (lse, delta, places of the rows in both), and both are ours and
    contiguous: [B, Tq, H]. Where `rows` have no mask but None all exist. Without GATED there is no gate, and
    something of its shape stands for it.
    """
    queries, row_lse = query_rows(query, statistics, rows, HEAD_DIMS)
    grads, row_delta, row_gate = grad_rows(grad, gate, statistics, rows, GATED, VALUE_DIMS)
    return queries, row_lse, grads, row_delta, row_gate


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
    queries, lse, grads, delta, gate = rows
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
def key_gradient_step(
    sums,
    tile,
    query,
    grad,
    gate,
    statistics,
    rows,
    visible,
    score_scale,
    GATED: tl.constexpr,
    HEAD_DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
):
    """(d key / scale, d value) of `tile`, (keys, values), after one more tile of `rows`: new `sums`.

    The other arguments are those of `gradient_rows`.
    """
    grad_keys, grad_values = sums
    keys, values = tile
    queries, lse = query_rows(query, statistics, rows, HEAD_DIMS)
    # transposed, [keys, rows]: the weights are then the left operand of both products
    weights = tl.exp2(dot_transposed(keys, queries) * score_scale - lse[None, :])
    if visible is not None:
        weights = tl.where(visible, weights, 0.0)
    grads, delta, row_gate = grad_rows(grad, gate, statistics, rows, GATED, VALUE_DIMS)
    gated = weights
    if GATED:
        gated = weights * row_gate[None, :]
    grad_values = add_product(grad_values, gated, grads)
    products = dot_transposed(values, grads)
    grad_scores = score_gradient(weights, products, row_gate[None, :], delta[None, :], GATED)
    if visible is not None:
        # set, not multiplied: 0 * inf is NaN, and a hidden key's product may have overflowed
        grad_scores = tl.where(visible, grad_scores, 0.0)
    return add_product(grad_keys, grad_scores, queries), grad_values
