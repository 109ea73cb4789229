# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""The gated sum of the branches (eq. 5), its gradient, and the row sums that any branch's backward needs.

All sums are fp32, whatever the dtype of branches and gates.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.triton.launch import Launch, Tile, rowwise, split_dim, stride_arguments
from trisparse.triton.primitives import (
    add_parts,
    gated_parts,
    load_parts,
    load_rows,
    row_products,
    store_parts,
    zero_parts,
)
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.tiles import row_offsets
from trisparse.triton.variants import KernelVariant

_TILE = Tile(rows=16, keys=0, num_warps=4, num_stages=1)


@triton.jit
def _rows(num_tokens, num_heads, total, ROWS: tl.constexpr):
    """(row, batch, token, head) of a program's rows of [B, Tq, H], and which of them exist."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, row // num_heads // num_tokens, row // num_heads % num_tokens, row % num_heads, row < total


@triton.jit(do_not_specialize=["num_tokens", "num_heads", "total"])
def combine_forward_kernel(
    branches,
    gates,
    out,
    gates_stride_b,
    gates_stride_t,
    gates_stride_h,
    num_tokens,
    num_heads,
    total,
    BRANCHES: tl.constexpr,
    ROWS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    row, batch, token, head, kept = _rows(num_tokens, num_heads, total, ROWS)
    gates += batch * gates_stride_b + row_offsets(token, head, gates_stride_t, gates_stride_h)
    sums = zero_parts(ROWS, VALUE_DIMS)
    for branch in tl.static_range(BRANCHES):
        gate = load_rows(gates, branch, kept, 0.0)
        offsets = (branch * total + row) * VALUE_DIM
        part = load_parts(branches, offsets, kept, VALUE_DIMS)
        sums = add_parts(sums, gated_parts(part, gate[:, None]))
    store_parts(out, row * VALUE_DIM, kept, sums, VALUE_DIMS)


@triton.jit(do_not_specialize=["num_tokens", "num_heads", "total"])
def combine_backward_kernel(
    branches,
    gates,
    grad,
    grad_gates,
    delta,
    gates_stride_b,
    gates_stride_t,
    gates_stride_h,
    grad_stride_b,
    grad_stride_t,
    grad_stride_h,
    num_tokens,
    num_heads,
    total,
    BRANCHES: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_FIRST: tl.constexpr,
    VALUE_SECOND: tl.constexpr,
):
    VALUE_DIMS: tl.constexpr = (VALUE_DIM, VALUE_FIRST, VALUE_SECOND)
    row, batch, token, head, kept = _rows(num_tokens, num_heads, total, ROWS)
    offsets = batch * grad_stride_b + row_offsets(token, head, grad_stride_t, grad_stride_h)
    grads = load_parts(grad, offsets, kept, VALUE_DIMS)
    if GATED:
        gates += batch * gates_stride_b + row_offsets(token, head, gates_stride_t, gates_stride_h)
    for branch in tl.static_range(BRANCHES):
        offsets = (branch * total + row) * VALUE_DIM
        part = load_parts(branches, offsets, kept, VALUE_DIMS)
        sums = row_products(grads, part)
        if GATED:
            tl.store(grad_gates + row * BRANCHES + branch, sums.to(grad_gates.dtype.element_ty), mask=kept)
            sums = sums * load_rows(gates, branch, kept, 0.0)
        tl.store(delta + branch * total + row, sums, mask=kept)


def _value_constants(value_dim: int) -> dict[str, int]:
    first, second = split_dim(value_dim)
    return {"ROWS": _TILE.rows, "VALUE_DIM": value_dim, "VALUE_FIRST": first, "VALUE_SECOND": second}


def _row_arguments(branches: Tensor) -> dict[str, int]:
    _, batch, num_tokens, num_heads, _ = branches.shape
    return {"num_tokens": num_tokens, "num_heads": num_heads, "total": batch * num_tokens * num_heads}


def forward_launch(branches: Tensor, gates: Tensor, out: Tensor) -> Launch:
    """Fills contiguous `out` [B, Tq, H, E] from contiguous `branches` [N, B, Tq, H, E]."""
    rows = _row_arguments(branches)
    return Launch(
        kernel=combine_forward_kernel,
        programs=triton.cdiv(rows["total"], _TILE.rows),
        arguments={
            "branches": branches,
            "gates": gates,
            "out": out,
            **stride_arguments(gates=gates),
            **rows,
        },
        constants={"BRANCHES": branches.shape[0], **_value_constants(branches.shape[4])},
        tile=_TILE,
    )


def backward_launch(
    branches: Tensor, gates: Tensor | None, grad_out: Tensor, grad_gates: Tensor | None, delta: Tensor
) -> Launch:
    """Fills contiguous `grad_gates` [B, Tq, H, N] and `delta` [N, B, Tq, H]; without gates `delta` alone."""
    rows = _row_arguments(branches)
    return Launch(
        kernel=combine_backward_kernel,
        programs=triton.cdiv(rows["total"], _TILE.rows),
        arguments={
            "branches": branches,
            "gates": gates,
            "grad": grad_out,
            "grad_gates": grad_gates,
            "delta": delta,
            **stride_arguments(gates=gates, grad=grad_out),
            **rows,
        },
        constants={
            "BRANCHES": branches.shape[0],
            "GATED": gates is not None,
            **_value_constants(branches.shape[4]),
        },
        tile=_TILE,
    )


def combine_forward(branches: Tensor, gates: Tensor, out: Tensor | None = None) -> Tensor:
    """Eq. 5: the sum over n of gates[..., n] * branches[n], where a gate of 0 gives 0 even for NaN.

    `branches` [N, B, Tq, H, E], `gates` [B, Tq, H, N] in any float dtype; returns [B, Tq, H, E] in the dtype
    of the branches: `out`, contiguous, if it is given.
    """
    out = branches.new_empty(branches.shape[1:]) if out is None else out
    forward_launch(branches.contiguous(), rowwise(gates), out).run()
    return out


def combine_backward(grad_out: Tensor, branches: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `combine_forward`, as far as it does not reach into the branches.

    Returns:
        d gates [B, Tq, H, N] in the gates' dtype, and delta fp32 [N, B, Tq, H]: the row sums of each branch
        times the gradient that reaches it, gates[..., n] * grad_out.
    """
    grad_gates = gates.new_empty(gates.shape)
    delta = branches.new_empty(branches.shape[:4], dtype=torch.float32)
    backward_launch(branches.contiguous(), rowwise(gates), rowwise(grad_out), grad_gates, delta).run()
    return grad_gates, delta


def row_sums(grad_out: Tensor, out: Tensor) -> Tensor:
    """fp32 [B, Tq, H]: the row sums of grad_out * out, both [B, Tq, H, E]."""
    delta = out.new_empty((1, *out.shape[:3]), dtype=torch.float32)
    backward_launch(out.contiguous()[None], None, rowwise(grad_out), None, delta).run()
    return delta[0]


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, _, query, _, value in shape_cases(TOKENS):
        out = query.new_empty(*query.shape[:3], value.shape[3])
        branches = out.new_empty(3, *out.shape)
        gates = out.new_empty(*out.shape[:3], 3, dtype=torch.float32)
        delta = gates.new_empty(3, *out.shape[:3])
        yield forward_launch(branches, gates, out).variant(f"combine_forward[{shape.label}]")
        launch = backward_launch(branches, gates, out, gates, delta)
        yield launch.variant(f"combine_backward[{shape.label}]")
        launch = backward_launch(branches[:1], None, out, None, delta)
        yield launch.variant(f"row_sums[{shape.label}]")
