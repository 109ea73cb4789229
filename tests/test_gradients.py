"""First derivatives are right and complete; second ones fail instead of being silently wrong."""

from itertools import product

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, device_of, kernel_backends, make_inputs, usable_backends

CONFIG = SparseConfig(
    compress_block=4, compress_stride=2, select_block=4, num_selected=2, num_initial=1, num_local=1, window=3
)


def draw(dtype=torch.float64, tokens=9, cu_seqlens=None, query_start=0, backend="torch"):
    case = Case(
        name="gradients",
        batch=1,
        tokens=tokens,
        heads=2,
        groups=1,
        head_dim=3,
        value_dim=2,
        config=CONFIG,
        cu_seqlens=cu_seqlens,
        query_start=query_start,
    )
    return make_inputs(case, dtype, 5).to(device_of(backend)).leaves()


def whole(inputs, backend):
    return trisparse.sparse_attention(*inputs.all_arguments, backend=backend, **inputs.where)


def branch_of(name, inputs, backend):
    """A function of some tensors, and those tensors."""
    where = {**inputs.where, "backend": backend}
    if name == "compressed":

        def run(*tensors):
            return trisparse.compressed_attention(*tensors, CONFIG, **where)[0]

        return run, (inputs.query, *inputs.compressed)
    if name == "selected":
        ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], CONFIG, **where)

        def run(*tensors):
            return trisparse.selected_attention(*tensors, ids, CONFIG, **where)

        return run, (inputs.query, *inputs.selected)
    if name == "window":

        def run(*tensors):
            return trisparse.window_attention(*tensors, CONFIG, **where)

        return run, (inputs.query, *inputs.window)

    def run(*tensors):
        return whole(inputs.with_tensors(tensors), backend)

    return run, inputs.tensors


BRANCHES = ("compressed", "selected", "window", "whole")
PLACES = {
    "alone": {},
    "from the middle": {"query_start": 4},
    "packed": {"cu_seqlens": (0, 3, 3, 9)},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backend", usable_backends(torch.float64))
def test_gradients_are_those_of_finite_differences(backend, branch, place):
    """Guards against gradients trusted because two implementations agree on them."""
    run, tensors = branch_of(branch, draw(**PLACES[place], backend=backend), backend)
    assert torch.autograd.gradcheck(run, tensors, fast_mode=branch == "whole")


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_second_derivative_raises(backend, branch):
    """Guards against a second derivative that is silently zero."""
    run, tensors = branch_of(branch, draw(torch.float32, backend=backend), backend)
    out = run(*tensors)
    grads = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative"):
        torch.autograd.grad(grads[0].sum(), tensors, allow_unused=True)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_gradient_penalty_raises(backend, branch):
    """Guards against a penalty term that drops out: there `grad_out` is a constant."""
    run, tensors = branch_of(branch, draw(torch.float32, backend=backend), backend)
    grads = torch.autograd.grad(run(*tensors).sum(), tensors, create_graph=True)
    penalty = sum(grad.square().sum() for grad in grads)
    with pytest.raises(RuntimeError, match="first derivative"):
        penalty.backward()


def test_reference_can_be_differentiated_twice():
    """Guards against advice in the error message that does not work."""
    inputs = draw()
    tensors = (inputs.query, *inputs.window)
    run, _ = branch_of("window", inputs, "reference")
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("wanted", list(product([False, True], repeat=3))[1:], ids=str)
@pytest.mark.parametrize("branch", BRANCHES[:3])
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_only_the_wanted_gradients_come(backend, branch, wanted):
    """Guards against gradients that change, or go missing, with what else asks for one."""
    run, tensors = branch_of(branch, draw(torch.float32, backend=backend), backend)
    full = torch.autograd.grad(run(*tensors).sum(), tensors)
    some = [x.detach().requires_grad_(want) for x, want in zip(tensors, wanted, strict=True)]
    out = run(*some)
    assert out.requires_grad
    out.sum().backward()
    for got, exact, want in zip(some, full, wanted, strict=True):
        assert torch.equal(got.grad, exact) if want else got.grad is None


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_each_tensor_of_the_whole_op_may_alone_ask_for_a_gradient(backend, index):
    """Guards against a graph that hangs on the query."""
    inputs = draw(torch.float32, backend=backend)
    full = torch.autograd.grad(whole(inputs, backend).sum(), inputs.tensors)
    alone = [x.detach().requires_grad_(i == index) for i, x in enumerate(inputs.tensors)]
    whole(inputs.with_tensors(tuple(alone)), backend).sum().backward()
    # the branches' shares of the query's gradient may be summed in another order
    torch.testing.assert_close(alone[index].grad, full[index])


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_nothing_asks_for_a_gradient(backend):
    """Guards against a graph kept alive in inference."""
    inputs = draw(torch.float32, backend=backend)
    plain = inputs.with_tensors(tuple(x.detach() for x in inputs.tensors))
    assert not whole(plain, backend).requires_grad
    with torch.no_grad():
        assert not whole(inputs, backend).requires_grad


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_shorter_than_a_compressed_block_gives_zero_gradients_not_none(backend, tokens):
    """Guards against NaN from an empty softmax, and against results cut off from their inputs' graph."""
    inputs = draw(torch.float32, tokens=tokens, backend=backend)
    out, lse = trisparse.compressed_attention(inputs.query, *inputs.compressed, CONFIG, backend=backend)
    assert torch.equal(out, torch.zeros_like(out))
    assert lse.isneginf().all()
    assert out.requires_grad
    grads = torch.autograd.grad(out.sum(), (inputs.query, *inputs.compressed))
    for grad, tensor in zip(grads, (inputs.query, *inputs.compressed), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))
    for grad in torch.autograd.grad(whole(inputs, backend).sum(), inputs.tensors):
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_no_usable_id_gives_zero_gradients_not_none(backend):
    """Guards against a row without a block that is NaN or without a graph."""
    inputs = draw(torch.float32, backend=backend)
    ids = torch.full((1, 9, 1, 2), -1, dtype=torch.int32, device=inputs.query.device)
    out = trisparse.selected_attention(inputs.query, *inputs.selected, ids, CONFIG, backend=backend)
    assert torch.equal(out, torch.zeros_like(out))
    for grad in torch.autograd.grad(out.sum(), (inputs.query, *inputs.selected)):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_ids_and_lse_take_no_part_in_the_graph(backend):
    """Guards against a gradient through selection or through the log-sum-exp (spec 4)."""
    inputs = draw(torch.float32, backend=backend)
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], CONFIG, backend=backend)
    _, lse = trisparse.compressed_attention(inputs.query, *inputs.compressed, CONFIG, backend=backend)
    assert not ids.requires_grad
    assert not lse.requires_grad


@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_change_in_place_before_backward_raises(backend):
    """Guards against gradients of other values than those of the forward."""
    inputs = draw(torch.float32, backend=backend)
    query = inputs.query * 1.0
    out = trisparse.window_attention(query, *inputs.window, CONFIG, backend=backend)
    query.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_backward_twice_through_a_kept_graph_doubles(backend):
    """Guards against a backward that writes into what it saved."""
    inputs = draw(torch.float32, backend=backend)
    out = whole(inputs, backend).sum()
    out.backward(retain_graph=True)
    once = [x.grad.clone() for x in inputs.tensors]
    out.backward()
    for tensor, grad in zip(inputs.tensors, once, strict=True):
        assert torch.equal(tensor.grad, 2 * grad)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_gates_in_double_precision_get_such_a_gradient(backend):
    """Guards the one tensor that may be wider than the query."""
    inputs = draw(dtype=torch.float32, backend=backend)
    pairs = inputs.compressed, inputs.selected, inputs.window
    results = []
    for each in (inputs.gates, inputs.gates.double()):
        leaf = each.detach().requires_grad_()
        out = trisparse.sparse_attention(inputs.query, *pairs, leaf, inputs.config, backend=backend)
        results.append((out, *torch.autograd.grad(out.sum(), leaf)))
    (out, grad), (wide_out, wide_grad) = results
    assert torch.equal(out, wide_out)
    assert wide_grad.dtype == torch.float64
    assert torch.equal(grad.double(), wide_grad)
