"""Strides of any kind through the native kernels, which read tensors where they lie."""

import pytest
import torch
from agreement import BRANCHES, attend, ids_of

import trisparse

from .kernels import assert_same_bits, draw, grad_of, instruction_sets, needs_kernels, run

pytestmark = needs_kernels
SIZES = {"tokens": 90, "heads": 4, "head_dim": 20, "value_dim": 12}


def every_other_token(x):
    spread = torch.full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), float("nan"), dtype=x.dtype)
    spread[:, ::2] = x
    return spread[:, ::2]


def odd_offset(x):
    flat = torch.full((x.numel() + 3,), float("nan"), dtype=x.dtype)
    flat[3:] = x.flatten()
    return flat[3:].view(x.shape)


def heads_first(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def backwards(x):
    """Batch rows in the opposite order of memory, features far apart."""
    return x.flip(0).movedim(-1, 0).contiguous().movedim(0, -1).flip(0)


def fused(x):
    wide = torch.full((*x.shape[:-1], 3 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
    wide[..., 5 : 5 + x.shape[-1]] = x
    return wide[..., 5 : 5 + x.shape[-1]]


LAYOUTS = [every_other_token, odd_offset, heads_first, backwards, fused]


def run_as_they_lie(inputs, grad):
    """`run` without copies of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs.tensors]
    out = trisparse.sparse_attention(*inputs.with_tensors(tuple(leaves)).all_arguments, backend="cpu")
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("instructions", instruction_sets())
def test_layout_changes_no_bit(select, instructions, dtype, layout):
    """Guards against a stride taken for another, or an alignment that a view does not have."""
    select(instructions)
    inputs = draw(dtype, **SIZES)
    grad = grad_of(inputs)
    wanted = run(inputs, grad)
    laid_out = inputs.with_tensors(tuple(layout(x) for x in inputs.tensors))
    assert_same_bits(run_as_they_lie(laid_out, layout(grad)), wanted)


def attend_as_they_lie(branch, inputs, ids, grad):
    """Results and gradients of a branch, without copies of the inputs."""
    inputs = inputs.with_tensors(tuple(x.detach().requires_grad_() for x in inputs.tensors))
    outs = attend(branch, inputs, ids, "cpu")
    pair = getattr(inputs, branch)
    return [*(x.detach() for x in outs), *torch.autograd.grad(outs[0], (inputs.query, *pair), grad)]


@pytest.mark.parametrize("branch", BRANCHES[:3])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("instructions", instruction_sets())
def test_layout_changes_no_bit_of_a_branch(select, instructions, dtype, layout, branch):
    """Guards against strides of a branch alone, which are set in another place than those of the whole op."""
    select(instructions)
    inputs = draw(dtype, **SIZES)
    grad, ids = grad_of(inputs), ids_of(inputs, "cpu")
    laid_out = inputs.with_tensors(tuple(layout(x) for x in inputs.tensors))
    assert torch.equal(ids_of(laid_out, "cpu"), ids)
    wanted = attend_as_they_lie(branch, inputs, ids, grad)
    slots_apart = ids.movedim(-1, 0).contiguous().movedim(0, -1)
    assert_same_bits(attend_as_they_lie(branch, laid_out, slots_apart, layout(grad)), wanted)


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stride_of_zero_changes_no_bit(dtype, dim):
    """Guards against expanded keys, values, gates and gradients read as if they were whole."""
    inputs = draw(dtype, **SIZES)
    grad = grad_of(inputs)
    narrow = [x.narrow(dim, 0, 1).expand(x.shape) for x in (*inputs.tensors, grad)]
    copies = [x.contiguous() for x in narrow]
    wanted = run(inputs.with_tensors(tuple(copies[:-1])), copies[-1])
    assert_same_bits(run_as_they_lie(inputs.with_tensors(tuple(narrow[:-1])), narrow[-1]), wanted)
