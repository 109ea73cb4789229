"""What every comparison with the reference shares: named inputs, results of each branch, and gradients."""

from functools import cache

import torch

import trisparse
from trisparse.reference.sparse_attention import gated_sum
from trisparse.testing.inputs import CASES, PACKED_CASES, make_inputs

SEED = 20
BRANCHES = ("compressed", "selected", "window", "whole")
BY_NAME = {case.name: case for case in (*CASES, *PACKED_CASES)}
NAMES = [case.name for case in CASES]
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def attend(branch, inputs, ids, backend):
    """One branch, or with `ids` in place of the selection the whole op, as a list of results."""
    where = {**inputs.where, "backend": backend}
    if branch == "compressed":
        out, lse = trisparse.compressed_attention(inputs.query, *inputs.compressed, inputs.config, **where)
        return [out, lse]
    if branch == "selected":
        return [trisparse.selected_attention(inputs.query, *inputs.selected, ids, inputs.config, **where)]
    if branch == "window":
        return [trisparse.window_attention(inputs.query, *inputs.window, inputs.config, **where)]
    parts = [attend(part, inputs, ids, backend)[0] for part in BRANCHES[:3]]
    return [gated_sum(*parts, inputs.gates)]


def ids_of(inputs, backend):
    return trisparse.select_blocks(
        inputs.query, inputs.compressed[0], inputs.config, backend=backend, **inputs.where
    )


@cache
def drawn(name, dtype):
    return make_inputs(BY_NAME[name], dtype, SEED)


@cache
def gold_ids(name, dtype):
    return ids_of(drawn(name, dtype).to(torch.float64), "reference")


@cache
def expected(name, dtype, branch):
    """(low, gold): the reference's results in `dtype` and in fp64."""
    inputs, ids = drawn(name, dtype), gold_ids(name, dtype)
    low = attend(branch, inputs, ids, "reference")
    return low, attend(branch, inputs.to(torch.float64), ids, "reference")


def gradients(outputs, inputs, seed):
    """Gradients of every tensor of `inputs`, None where `outputs[0]` does not depend on it."""
    out = outputs[0]
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=generator).bfloat16().to(out)
    return torch.autograd.grad(out, inputs.tensors, grad, allow_unused=True)


@cache
def expected_gradients(name, dtype, branch):
    inputs, ids = drawn(name, dtype).leaves(), gold_ids(name, dtype)
    wide = drawn(name, dtype).to(torch.float64).leaves()
    low = gradients(attend(branch, inputs, ids, "reference"), inputs, SEED)
    return low, gradients(attend(branch, wide, ids, "reference"), wide, SEED)


def further(one, other, gold):
    """Of two results the one that is further from `gold`, element by element."""
    return torch.where((one - gold).abs() > (other - gold).abs(), one, other)


def cancelling(inputs, scale=None):
    """How large a term grad_out . value * key * scale of d query, or its twin of d key, can be."""
    scale = inputs.query.shape[3] ** -0.5 if scale is None else scale
    pairs = [pair for pair in (inputs.compressed, inputs.selected, inputs.window) if pair[0].numel()]
    if not pairs:
        return 0.0
    value = max(pair[1].float().norm(dim=-1).max().item() for pair in pairs)
    key = max(x.float().abs().max().item() for x in (inputs.query, *(pair[0] for pair in pairs)))
    return scale * key * value * inputs.selected[1].shape[3] ** 0.5
