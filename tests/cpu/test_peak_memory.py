"""Memory at its peak, as the system counts it: the kernels' own memory is not torch's."""

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.bench.peak import CAN_TELL, Peak

from .kernels import draw, grad_of, needs_kernels

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(not CAN_TELL, reason="this system does not say what the peak was"),
]
GIB = 2**30
# of one thread, whatever the length
SCRATCH = 24 * 2**20


def extra_bytes(tokens: int, backward: bool) -> int:
    """The peak of a call at the paper's head count, beyond what was there before and its results."""
    inputs = draw(
        torch.bfloat16,
        batch=1,
        tokens=tokens,
        heads=16,
        groups=1,
        head_dim=64,
        value_dim=64,
        config=SparseConfig(),
    )
    grad = grad_of(inputs)
    leaves = inputs.leaves() if backward else inputs
    peak = Peak()
    out = trisparse.sparse_attention(*leaves.all_arguments, backend="cpu")
    results = [out, *torch.autograd.grad(out, leaves.tensors, grad)] if backward else [out]
    return peak.grown() - sum(x.numel() * x.element_size() for x in results)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_peak_stays_below_the_promise(backward):
    """Guards against probabilities kept for all rows: 1 GiB at T 65536, H 16, D 128 with backward."""
    extra_bytes(512, backward)
    tokens = 4096
    # half the promised head dim; forward alone saves nothing for a backward
    promise = GIB * tokens / 65536 / 2 * (1 if backward else 0.5)
    # what else this process takes meanwhile counts too; a defect would be there each time
    assert any(extra_bytes(tokens, backward) < promise + SCRATCH for _ in range(3))
