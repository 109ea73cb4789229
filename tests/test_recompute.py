"""`recompute=True`: the same gradients, bit for bit, from less memory."""

import gc

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, device_of, kernel_backends, make_inputs

CONFIG = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=4,
    num_initial=1,
    num_local=2,
    window=20,
)
PLACES = {
    "alone": {},
    "packed": {"batch": 1, "cu_seqlens": (0, 60, 60, 150)},
    "from the middle": {"query_start": 90},
    "all blocks selected": {"tokens": 50},
}


def draw(backend, dtype, **others):
    sizes = {"batch": 2, "tokens": 150, "heads": 4, "groups": 2, "head_dim": 16, "value_dim": 24}
    case = Case(**{"name": "recompute", "config": CONFIG, **sizes, **others})
    return make_inputs(case, dtype, 3).to(device_of(backend)).leaves()


def results(inputs, backend, recompute):
    where = {**inputs.where, "backend": backend}
    out = trisparse.sparse_attention(*inputs.all_arguments, recompute=recompute, **where)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out)
    return [out.detach(), *torch.autograd.grad(out, inputs.tensors, weights)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_results_and_gradients_are_the_same_bits(backend, dtype, place):
    """Guards against a backward whose recomputed branches, ids or log-sum-exps are not the forward's."""
    inputs = draw(backend, dtype, **PLACES[place])
    for kept, again in zip(results(inputs, backend, False), results(inputs, backend, True), strict=True):
        assert torch.equal(kept, again)


class Saved:
    """Bytes that a forward keeps for its backward, inputs left out."""

    def __init__(self, inputs):
        self.known = {x.untyped_storage().data_ptr() for x in inputs}
        self.bytes = 0

    def pack(self, tensor):
        address = tensor.untyped_storage().data_ptr()
        if address not in self.known:
            self.known.add(address)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_branch_outputs_are_not_kept(backend):
    """Guards against a switch that saves no memory."""
    inputs, kept = draw(backend, torch.float32), {}
    for recompute in (False, True):
        gc.collect()
        saved = Saved(inputs.tensors)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            out = trisparse.sparse_attention(*inputs.all_arguments, recompute=recompute, backend=backend)
        kept[recompute] = saved.bytes
    assert kept[False] >= 3 * out.nbytes
    assert kept[True] < out.nbytes


@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_second_derivative_still_raises(backend):
    """Guards against a way around the first-order rule."""
    inputs = draw(backend, torch.float32)
    out = trisparse.sparse_attention(*inputs.all_arguments, recompute=True, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs.query, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.square().sum().backward()


def test_nothing_is_asked_of_a_forward_without_gradients():
    """Guards against work for a backward that never comes, and against a reference that refuses it."""
    for backend in ("reference", "torch"):
        inputs = draw(backend, torch.float32)
        with torch.no_grad():
            out = trisparse.sparse_attention(*inputs.all_arguments, recompute=True, backend=backend)
        assert not out.requires_grad
