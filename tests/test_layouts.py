"""Strides carry no meaning: any layout of the same values gives the same bits and leaves its inputs alone."""

import pytest
import torch
from agreement import BRANCHES, attend, cancelling, ids_of

import trisparse
from trisparse import SparseConfig
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case, device_of, make_inputs, usable_backends

CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_initial=1, num_local=1, window=9
)
CASE = Case(name="layouts", batch=2, tokens=37, heads=4, groups=2, head_dim=8, value_dim=6, config=CONFIG)


def filler(x):
    """What lies between the elements: NaN, or an id that names a block."""
    return float("nan") if x.is_floating_point() else 0


def transposed(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def fused_slice(x):
    fused = torch.full((*x.shape[:-1], 3 * x.shape[-1]), filler(x), dtype=x.dtype, device=x.device)
    view = fused[..., x.shape[-1] : 2 * x.shape[-1]]
    view.copy_(x)
    return view


def every_other_token(x):
    spread = torch.full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), filler(x), dtype=x.dtype, device=x.device)
    spread[:, ::2] = x
    return spread[:, ::2]


def last_stride_two(x):
    spread = torch.full((*x.shape, 2), filler(x), dtype=x.dtype, device=x.device)
    spread[..., 0] = x
    return spread[..., 0]


def last_dim_slowest(x):
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def odd_offset(x):
    flat = torch.full((x.numel() + 3,), filler(x), dtype=x.dtype, device=x.device)
    flat[3:] = x.flatten()
    return flat[3:].view(x.shape)


def giant_stride(x):
    """A batch of one whose stride is nonsense, as a dimension of size 1 may have."""
    return x[:1].as_strided(x[:1].shape, (2**40, *x.stride()[1:]))


LAYOUTS = [
    transposed,
    fused_slice,
    every_other_token,
    last_stride_two,
    last_dim_slowest,
    odd_offset,
    giant_stride,
]


def results(inputs, backend, grad, branch="whole", ids=None):
    """Of the whole op, or of a branch: output and gradients, and what else there is."""
    leaves = [x.requires_grad_() for x in inputs.tensors]
    if branch == "whole":
        outs = [trisparse.sparse_attention(*inputs.all_arguments, backend=backend)]
    else:
        outs = attend(branch, inputs, ids, backend)
    grads = torch.autograd.grad(outs[0], leaves, grad, allow_unused=True)
    return [outs[0], *grads, *outs[1:]]


def draw(backend):
    inputs = make_inputs(CASE, torch.float32, 6).to(device_of(backend))
    grad = torch.randn(2, 37, 4, 6, generator=torch.Generator().manual_seed(7)).to(inputs.query)
    return inputs, grad


def assert_same(actual, wanted, backend, inputs, grad, branch="whole", ids=None):
    """Bit for bit in `cpu`; PyTorch's products, in two other backends, add in an order of strides."""
    gold = results(
        inputs.to("cpu").to(torch.float64),
        "reference",
        grad.cpu().double(),
        branch,
        None if ids is None else ids.cpu(),
    )
    for index, (got, low, exact) in enumerate(zip(actual, wanted, gold, strict=True)):
        assert (got is None) == (low is None) == (exact is None)
        if got is None:
            continue
        if backend == "cpu":
            assert torch.equal(got, low), index
            continue
        # out, then d query, d key and d value of each branch, d gates
        terms = cancelling(inputs) if index in (1, 2, 4, 6) else 0.0
        assert_within_budget(f"result {index}", got, low, exact, gradient=index > 0, cancelling=terms)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_layout_of_inputs_does_not_matter(backend, layout, branch):
    """Guards against kernels that assume contiguous inputs, and against writing into them."""
    inputs, grad = draw(backend)
    if layout is giant_stride:
        inputs, grad = inputs.with_tensors(tuple(x[:1] for x in inputs.tensors)), grad[:1]
    ids = ids_of(inputs, backend)
    copies = inputs.with_tensors(tuple(x.clone() for x in inputs.tensors))
    wanted = results(copies, backend, grad, branch, ids)
    laid_out = inputs.with_tensors(tuple(layout(x) for x in inputs.tensors))
    laid_out_ids = layout(ids)
    for before, after in zip((*inputs.tensors, ids), (*laid_out.tensors, laid_out_ids), strict=True):
        assert torch.equal(before, after)
    actual = results(laid_out, backend, grad, branch, laid_out_ids)
    assert_same(actual, wanted, backend, inputs, grad, branch, ids)
    for before, after in zip((*inputs.tensors, ids), (*laid_out.tensors, laid_out_ids), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("layout", LAYOUTS[:-1], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_layout_of_the_incoming_gradient_does_not_matter(backend, layout, branch):
    """Guards against a backward that assumes a contiguous gradient."""
    inputs, grad = draw(backend)
    ids = ids_of(inputs, backend)
    wanted = results(inputs, backend, grad, branch, ids)
    actual = results(inputs, backend, layout(grad), branch, ids)
    assert_same(actual, wanted, backend, inputs, grad, branch, ids)


@pytest.mark.parametrize("layout", LAYOUTS[:-1], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_layout_does_not_matter_to_the_selection(backend, layout):
    """Guards against ids chosen by keys that lie elsewhere, or written as if they were scores."""
    inputs, _ = draw(backend)
    laid_out = inputs.with_tensors(tuple(layout(x) for x in inputs.tensors))
    assert torch.equal(ids_of(laid_out, backend), ids_of(inputs, backend))


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_expanded_gradient_of_a_sum(backend):
    """Guards against a gradient with strides of zero, which `sum().backward()` gives."""
    inputs, grad = draw(backend)
    ones = torch.ones_like(grad)
    wanted = results(inputs, backend, ones)
    expanded = grad.new_ones(()).expand(grad.shape)
    assert_same(results(inputs, backend, expanded), wanted, backend, inputs, ones)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_expanded_keys_and_values(backend, dim):
    """Guards against strides of zero, and against gradients summed over the expanded dimension twice."""
    inputs, grad = draw(backend)
    narrow = tuple(x.narrow(dim, 0, 1).expand(x.shape) for x in inputs.tensors[1:-1])
    expanded = inputs.with_tensors((inputs.query, *(x.detach() for x in narrow), inputs.gates))
    copied = inputs.with_tensors((inputs.query, *(x.clone() for x in narrow), inputs.gates))
    wanted = results(copied, backend, grad)
    assert_same(results(expanded, backend, grad), wanted, backend, copied, grad)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_one_tensor_in_three_branches(backend):
    """Guards against branches that spoil what they share."""
    inputs, grad = draw(backend)
    key, value = (x.clone().requires_grad_() for x in inputs.selected)
    separate = inputs.with_tensors(
        (*inputs.tensors[:3], key, value, key.clone(), value.clone(), inputs.gates)
    )
    shared = trisparse.sparse_attention(
        inputs.query, inputs.compressed, (key, value), (key, value), inputs.gates, CONFIG, backend=backend
    )
    apart = trisparse.sparse_attention(*separate.all_arguments, backend=backend)
    assert torch.equal(shared, apart)
    for got, wanted in zip(
        torch.autograd.grad(shared, (key, value), grad),
        torch.autograd.grad(apart, (key, value), grad),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_results_own_their_memory(backend):
    """Guards against a result that is a view of an input or of another result."""
    inputs, _ = draw(backend)
    before = [x.clone() for x in inputs.tensors]
    out, lse = trisparse.compressed_attention(inputs.query, *inputs.compressed, CONFIG, backend=backend)
    kept = lse.clone()
    out.fill_(float("nan"))
    trisparse.sparse_attention(*inputs.all_arguments, backend=backend).fill_(float("nan"))
    assert torch.equal(lse, kept)
    for tensor, copy in zip(inputs.tensors, before, strict=True):
        assert torch.equal(tensor, copy)
