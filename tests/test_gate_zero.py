"""A gate of 0 takes its branch away, whatever the branch is: its keys may be left unset."""

from dataclasses import replace

import pytest
import torch
from decoding import make_decoding

import trisparse
from trisparse.testing.inputs import CASES, device_of, kernel_backends, make_inputs, usable_backends

CASE = next(case for case in CASES if case.tokens > 64 and case.query_start == 0)
BRANCHES = ("compressed", "selected", "window")


def spoiled(pair, branch, value):
    """Keys and values that give no finite output. Compressed keys are kept: blocks are selected by them."""
    key, gone = pair
    return (key if branch == "compressed" else torch.full_like(key, value)), torch.full_like(gone, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_a_branch_behind_gate_zero_changes_nothing(backend, branch, value):
    """Guards against 0 * NaN."""
    inputs = make_inputs(CASE, torch.float32, 5).to(device_of(backend))
    inputs.gates[..., BRANCHES.index(branch)] = 0
    other = replace(inputs, **{branch: spoiled(getattr(inputs, branch), branch, value)})
    outputs = [
        trisparse.sparse_attention(
            each.query, each.compressed, each.selected, each.window, each.gates, each.config, backend=backend
        )
        for each in (inputs, other)
    ]
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_a_branch_behind_gate_zero_changes_no_decode_step(backend, branch):
    """Guards the kernels for decoding against 0 * NaN."""
    call = make_decoding([90, 200], 2, CASE.config, garbage=0.0).to(device_of(backend))
    query, *pairs, gates = call.tensors
    index = BRANCHES.index(branch)
    gates[..., index] = 0
    gold, _ = replace(call, tensors=(query, *pairs, gates)).run(backend)
    pairs[index] = spoiled(pairs[index], branch, float("nan"))
    out, _ = replace(call, tensors=(query, *pairs, gates)).run(backend)
    assert gold.isfinite().all()
    assert torch.equal(out, gold)


def test_the_gradient_of_a_gate_at_zero_is_not_zero():
    """Guards against a gate that, once it is 0, stays 0: its gradient is what its branch would add."""
    for backend in usable_backends(torch.float32):
        inputs = make_inputs(CASE, torch.float32, 5).to(device_of(backend))
        gates = torch.zeros_like(inputs.gates, requires_grad=True)
        out = trisparse.sparse_attention(
            inputs.query,
            inputs.compressed,
            inputs.selected,
            inputs.window,
            gates,
            inputs.config,
            backend=backend,
        )
        out.sum().backward()
        assert (gates.grad[:, -1] != 0).all()
