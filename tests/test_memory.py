"""Memory grows with the length, not with its square: counted allocation by allocation."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, make_inputs

CONFIG = SparseConfig()
GIB = 2**30


class Allocations(TorchDispatchMode):
    """Bytes in living storages that operations inside made, the most at any time, and the largest tensor."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.known = set()

    def adopt(self, tensors):
        """Storages that were there before do not count."""
        self.known.update(x.untyped_storage()._cdata for x in tensors)

    def _release(self, address, size):
        self.live -= size
        self.known.discard(address)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self.known:
                continue
            self.known.add(storage._cdata)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())
            self.peak = max(self.peak, self.live)
            self.largest = max(self.largest, tensor.numel())
        return result


def measured(tokens, heads, dim, backward):
    """(peak bytes beyond inputs and results, elements of the largest tensor) of the whole op."""
    case = Case(
        name="memory",
        batch=1,
        tokens=tokens,
        heads=heads,
        groups=1,
        head_dim=dim,
        value_dim=dim,
        config=CONFIG,
    )
    inputs = make_inputs(case, torch.float32, 0)
    inputs = inputs.leaves() if backward else inputs
    gc.collect()
    with Allocations() as counter:
        counter.adopt(inputs.tensors)
        out = trisparse.sparse_attention(*inputs.all_arguments, backend="torch")
        results = out.numel() * 4
        if backward:
            grads = torch.autograd.grad(out, inputs.tensors, torch.ones_like(out))
            results += sum(x.numel() * 4 for x in grads)
    return counter.peak - results, counter.largest


def test_counter_sees_a_quadratic_step():
    """Guards against a counter that counts nothing: dense attention must show as quadratic."""
    x = torch.randn(512, 8)
    with Allocations() as counter:
        counter.adopt([x])
        torch.softmax(x @ x.T, dim=-1)
    assert counter.largest == 512 * 512
    assert counter.peak >= 2 * 512 * 512 * 4


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_peak_stays_below_the_promise(backward):
    """Guards against memory beyond 1 GiB (3 GiB with backward) at T 32768, H 16, D 128, scaled to T 4096."""
    tokens = 4096
    promise = (3 if backward else 1) * GIB * tokens / 32768
    # what does not grow with T: one tile of scores and its passes
    tile = 8 * 2**20 * 4
    peak, largest = measured(tokens, heads=16, dim=128, backward=backward)
    assert peak < promise + tile
    compressed = CONFIG.num_compressed(tokens)
    assert largest < min(tokens * tokens, tokens * compressed * 16)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_twice_the_length_takes_less_than_two_and_a_half_times_the_memory(backward):
    """Guards against T * T and T * C * H tensors, which four times as much memory would show."""
    peaks = []
    for tokens in (4096, 8192):
        peak, largest = measured(tokens, heads=4, dim=16, backward=backward)
        assert largest < tokens * CONFIG.num_compressed(tokens) * 4
        assert largest < tokens * tokens / 4
        peaks.append(peak)
    assert peaks[1] < 2.5 * peaks[0]
