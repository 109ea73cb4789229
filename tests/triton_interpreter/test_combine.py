"""The gated sum, its gradient and the row sums are those of plain PyTorch in fp64."""

import pytest
import torch
from comparison import DEVICE, NAN

from trisparse.testing.budget import assert_within_budget
from trisparse.triton.combine import combine_backward, combine_forward, row_sums

SHAPES = [(2, 5, 4, 24), (1, 3, 6, 100), (1, 7, 1, 192), (3, 1, 2, 16), (1, 17, 1, 1)]
DTYPES = [torch.float32, torch.float16]


def draw(shape, dtype):
    generator = torch.Generator().manual_seed(7)
    branches = torch.randn((3, *shape), generator=generator).to(dtype)
    grad_out = torch.randn(shape, generator=generator).to(dtype)
    gates = torch.randn((*shape[:3], 3), generator=generator).sigmoid()
    return branches.to(DEVICE), gates.to(DEVICE), grad_out.to(DEVICE)


def exact(branches, gates, grad_out, dtype):
    """out, d gates and delta, summed in fp64 or, as the reference would, in fp32."""
    branches, gates, grad_out = branches.to(dtype), gates.to(dtype), grad_out.to(dtype)
    out = (branches * gates.movedim(-1, 0)[..., None]).sum(dim=0)
    products = (branches * grad_out).sum(dim=-1)
    return out, products.movedim(0, -1), products * gates.movedim(-1, 0)


@pytest.mark.parametrize("gate_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_sum(shape, dtype, gate_dtype):
    """Guards against swapped gates, gates rounded to the branches' dtype, and sums in it."""
    branches, gates, grad_out = draw(shape, dtype)
    gates = gates.to(gate_dtype)
    actual = [combine_forward(branches, gates), *combine_backward(grad_out, branches, gates)]
    kinds = (dtype, gate_dtype, torch.float32)
    low = [x.to(kind) for x, kind in zip(exact(branches, gates, grad_out, torch.float32), kinds, strict=True)]
    gold = exact(branches, gates, grad_out, torch.float64)
    for name, *results in zip(("out", "d gates", "delta"), actual, low, gold, strict=True):
        assert_within_budget(name, *results, seed=7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_row_sums(shape, dtype):
    """Guards against padding of the head dim that is added up."""
    branches, _, grad_out = draw(shape, dtype)
    low, gold = ((branches[0].to(x) * grad_out.to(x)).sum(dim=-1) for x in (torch.float32, torch.float64))
    assert_within_budget("row sums", row_sums(grad_out, branches[0]), low, gold, seed=7)


def test_strides_do_not_matter():
    """Guards against gates or gradients read as if they were contiguous."""
    branches, gates, grad_out = draw((2, 5, 4, 24), torch.float32)
    wide = torch.full((2, 5, 6, 5), NAN, device=DEVICE)
    wide[:, :, 1:5, 1:4] = gates
    heads_first = grad_out.transpose(1, 2).contiguous().transpose(1, 2)
    strided = wide[:, :, 1:5, 1:4]
    assert torch.equal(combine_forward(branches, strided), combine_forward(branches, gates))
    for got, wanted in zip(
        combine_backward(heads_first, branches, strided),
        combine_backward(grad_out, branches, gates),
        strict=True,
    ):
        assert torch.equal(got, wanted)
    ones = torch.ones((), device=DEVICE).expand(grad_out.shape)
    assert torch.equal(row_sums(ones, branches[0]), row_sums(ones.contiguous(), branches[0]))


def test_a_gate_of_one_alone_copies_its_branch():
    """Guards against a sum that rounds on its way."""
    branches, gates, _ = draw((2, 5, 4, 24), torch.float16)
    for index in range(3):
        alone = torch.zeros_like(gates)
        alone[..., index] = 1.0
        assert torch.equal(combine_forward(branches, alone), branches[index])


@pytest.mark.parametrize("dim", [24, 100])
@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_a_gate_of_zero_removes_its_branch(value, dim):
    """Guards against 0 times NaN (K16): a branch that a gate of 0 or -0 leaves out adds exactly 0."""
    branches, gates, _ = draw((2, 5, 4, dim), torch.float16)
    gates[:, :2, :, 1], gates[:, 2:4, :, 1] = 0.0, -0.0
    clean = branches.clone()
    clean[1, :, :4] = 0.0
    wanted = combine_forward(clean, gates)
    branches[1] = value
    found = combine_forward(branches, gates)
    assert torch.equal(found[:, :4], wanted[:, :4])
    assert not found[:, 4].isfinite().any()


@pytest.mark.parametrize("shape", [(0, 5, 4, 8), (2, 0, 4, 8)], ids=str)
def test_nothing_gives_nothing(shape):
    """Guards against a launch of no programs."""
    branches, gates, grad_out = draw(shape, torch.float32)
    assert combine_forward(branches, gates).shape == shape
    grad_gates, delta = combine_backward(grad_out, branches, gates)
    assert grad_gates.shape == gates.shape
    assert delta.shape == (3, *shape[:3])
