# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""What all kernels of this room share: split head dims, their products, numbers of rows, and softmax.

A *parts* tuple holds a [rows, dims] tile whose dims are no power of two as one or two tiles that are
(192 = 128 + 64). DIMS is such a split, (all, first, second); the second part exists only if its width is not
0. Offsets are int64 from the first multiply on. Softmax is in base 2: scores arrive multiplied by
`scale * LOG2_E`.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_part(pointer, offsets, mask, BEGIN: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Dims BEGIN .. BEGIN + WIDTH - 1 of the rows at `offsets`; 0 where `mask` is false or dim >= DIM."""
    dims = BEGIN + tl.arange(0, WIDTH)
    places = pointer + offsets[:, None] + dims[None, :]
    if BEGIN + WIDTH > DIM:
        if mask is None:
            return tl.load(places, mask=(dims < DIM)[None, :], other=0.0)
        else:
            return tl.load(places, mask=mask[:, None] & (dims < DIM)[None, :], other=0.0)
    else:
        if mask is None:
            return tl.load(places)
        else:
            return tl.load(places, mask=mask[:, None], other=0.0)


@triton.jit
def load_parts(pointer, offsets, mask, DIMS: tl.constexpr):
    """Parts of the rows at `offsets` [rows], of dims with stride 1; 0 where `mask` [rows] is false.

    A `mask` of None reads all rows.
    """
    first = load_part(pointer, offsets, mask, 0, DIMS[1], DIMS[0])
    if DIMS[2] == 0:
        return (first,)
    else:
        return first, load_part(pointer, offsets, mask, DIMS[1], DIMS[2], DIMS[0])


@triton.jit
def store_part(pointer, offsets, mask, part, BEGIN: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """The inverse of `load_part`, rounded to the pointer's dtype."""
    dims = BEGIN + tl.arange(0, WIDTH)
    kept = mask[:, None]
    if BEGIN + WIDTH > DIM:
        kept = kept & (dims < DIM)[None, :]
    tl.store(pointer + offsets[:, None] + dims[None, :], part.to(pointer.dtype.element_ty), mask=kept)


@triton.jit
def store_parts(pointer, offsets, mask, parts, DIMS: tl.constexpr):
    """The inverse of `load_parts`, rounded to the pointer's dtype."""
    store_part(pointer, offsets, mask, parts[0], 0, DIMS[1], DIMS[0])
    if DIMS[2] > 0:
        store_part(pointer, offsets, mask, parts[1], DIMS[1], DIMS[2], DIMS[0])


@triton.jit
def zero_parts(ROWS: tl.constexpr, DIMS: tl.constexpr):
    """fp32 accumulators, zero."""
    if DIMS[2] == 0:
        return (tl.zeros([ROWS, DIMS[1]], tl.float32),)
    else:
        return tl.zeros([ROWS, DIMS[1]], tl.float32), tl.zeros([ROWS, DIMS[2]], tl.float32)


@triton.jit
def scale_parts(parts, factor):
    """Parts times `factor`, a scalar or one that broadcasts with [rows, dims]."""
    if len(parts) == 1:
        return (parts[0] * factor,)
    else:
        return parts[0] * factor, parts[1] * factor


@triton.jit
def gated_part(part, gate):
    """Part times `gate`, a scalar or one that broadcasts; 0 for a gate of 0, whatever the part is."""
    return tl.where(gate == 0.0, 0.0, part * gate)


@triton.jit
def gated_parts(parts, gate):
    """Parts times `gate`: as `scale_parts`, but a gate of 0 removes what is infinite or NaN, too."""
    if len(parts) == 1:
        return (gated_part(parts[0], gate),)
    else:
        return gated_part(parts[0], gate), gated_part(parts[1], gate)


@triton.jit
def add_parts(left, right):
    """The sum of two tiles."""
    if len(left) == 1:
        return (left[0] + right[0],)
    else:
        return left[0] + right[0], left[1] + right[1]


@triton.jit
def row_products(left, right):
    """fp32 sums over dims of left * right, [rows]."""
    sums = tl.sum(left[0].to(tl.float32) * right[0].to(tl.float32), axis=1)
    if len(left) > 1:
        sums += tl.sum(left[1].to(tl.float32) * right[1].to(tl.float32), axis=1)
    return sums


@triton.jit
def dot_transposed(left, right):
    """left [N, dims] . right [M, dims]^T -> fp32 [N, M]; fp32 operands are not rounded to TF32."""
    product = tl.dot(left[0], tl.trans(right[0]), input_precision="ieee")
    if len(left) > 1:
        product = tl.dot(left[1], tl.trans(right[1]), product, input_precision="ieee")
    return product


@triton.jit
def add_product(accumulator, weights, parts):
    """accumulator + weights [N, M] . parts [M, dims]; weights are rounded to the dtype of the parts."""
    weights = weights.to(parts[0].dtype)
    if len(parts) == 1:
        return (tl.dot(weights, parts[0], accumulator[0], input_precision="ieee"),)
    else:
        first = tl.dot(weights, parts[0], accumulator[0], input_precision="ieee")
        return first, tl.dot(weights, parts[1], accumulator[1], input_precision="ieee")


@triton.jit
def empty_state(ROWS: tl.constexpr, DIMS: tl.constexpr):
    """(sums, highest, total) of rows that have seen no key yet."""
    sums = zero_parts(ROWS, DIMS)
    return sums, tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)


@triton.jit
def softmax_step(scores, highest, total):
    """One step of the online softmax over `scores` [rows, keys] in base 2, -inf where a key is hidden.

    Returns (weights, rescale, highest, total): what was summed before is to be multiplied by `rescale`. A row
    that has seen nothing so far has highest -inf; it is compared with 0, or -inf - (-inf) would be NaN.
    """
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    reference = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.exp2(scores - reference[:, None])
    rescale = tl.exp2(highest - reference)
    return weights, rescale, new_highest, total * rescale + tl.sum(weights, axis=1)


@triton.jit
def softmax_end(highest, total):
    """(1 / total, natural log-sum-exp); an empty row gives (1, -inf), so that its zero sums stay 0."""
    empty = total == 0.0
    inverse = 1.0 / tl.where(empty, 1.0, total)
    log_sum_exp = (highest + tl.log2(tl.where(empty, 1.0, total))) * LN_2
    return inverse, tl.where(empty, float("-inf"), log_sum_exp)


@triton.jit
def load_rows(pointer, offsets, mask, other):
    """fp32 numbers, one a row; `other` where `mask` is false, a `mask` of None reads all."""
    if mask is None:
        return tl.load(pointer + offsets).to(tl.float32)
    else:
        return tl.load(pointer + offsets, mask=mask, other=other).to(tl.float32)


@triton.jit
def load_lse(pointer, offsets, mask):
    """Natural log-sum-exp, turned to base 2 for `exp2(score - lse)`; +inf, which gives weight 0, for an empty
    row and where `mask` is false."""
    lse = load_rows(pointer, offsets, mask, float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse) * LOG2_E


@triton.jit
def score_gradient(weights, products, gate, delta, GATED: tl.constexpr):
    """d score = p * (gate * (d out . v) - delta), where `delta` is the row sum of out * gate * d out.

    `gate` and `delta` must broadcast with `weights`; the factor `scale` is left to the caller.
    """
    if GATED:
        products = products * gate
    return weights * (products - delta)
