"""What the tests of the window and of the compressed branch ask alike of a branch's two functions."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import trisparse
from trisparse import triton as room
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import CASES, PACKED_CASES, Case, Inputs, device_of, make_inputs

SEED = 20
DEVICE = device_of("triton")
NAN = float("nan")


def _quick(case: Case) -> Case:
    """The case, if it is long with one batch row and one group: the interpreter is slow."""
    if case.tokens <= 64:
        return case
    return replace(case, batch=1, heads=case.heads // case.groups, groups=1)


SHORT = {case.name: _quick(case) for case in CASES if case.tokens <= 130}
PACKED = {case.name: case for case in PACKED_CASES}
BY_NAME = {**SHORT, **PACKED}


class Branch(NamedTuple):
    """A branch: its functions in this room, and the name of its keys in `Inputs`."""

    keys: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    reference: Callable[..., Any]


WINDOW = Branch("window", room.window_forward, room.window_backward, trisparse.window_attention)
COMPRESSED = Branch(
    "compressed", room.compressed_forward, room.compressed_backward, trisparse.compressed_attention
)


def draw(case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
    """Inputs where the kernels run."""
    return make_inputs(case, dtype, SEED).to(DEVICE)


def place(inputs: Inputs) -> tuple[Any, ...]:
    """The arguments that follow the tensors in every function of the room."""
    scale = inputs.query.shape[3] ** -0.5
    return inputs.config, scale, inputs.cu_seqlens, inputs.query_start


def rows_of(inputs: Inputs, rows: slice) -> Inputs:
    """The same keys with some of the query rows."""
    tensors = (inputs.query[:, rows], *inputs.tensors[1:-1], inputs.gates[:, rows])
    return replace(inputs.with_tensors(tensors), query_start=inputs.query_start + rows.start)


def upstream(inputs: Inputs, branch: Branch) -> Tensor:
    """A gradient of the branch's output, exact in every dtype that is tested."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (*inputs.query.shape[:3], getattr(inputs, branch.keys)[1].shape[3])
    return torch.randn(shape, generator=generator).bfloat16().to(inputs.query)


def run(branch: Branch, inputs: Inputs, grad_out: Tensor | None = None) -> list[Tensor]:
    """[out, lse, d query, d key, d value] of the room."""
    pair, where = getattr(inputs, branch.keys), place(inputs)
    out, lse = branch.forward(inputs.query, *pair, *where)
    grad_out = upstream(inputs, branch) if grad_out is None else grad_out
    return [out, lse, *branch.backward(grad_out, inputs.query, *pair, out, lse, *where)]


def expected(branch: Branch, inputs: Inputs, grad_out: Tensor) -> list[Tensor]:
    """[out, lse or None, d query, d key, d value] of the reference in the inputs' dtype."""
    leaves = [x.detach().cpu().requires_grad_() for x in (inputs.query, *getattr(inputs, branch.keys))]
    bounds = None if inputs.cu_seqlens is None else inputs.cu_seqlens.cpu()
    where = {"cu_seqlens": bounds, "query_start": inputs.query_start, "backend": "reference"}
    result = branch.reference(*leaves, inputs.config, **where)
    out, lse = result if isinstance(result, tuple) else (result, None)
    grads = torch.autograd.grad(out, leaves, grad_out.cpu().to(out), allow_unused=True)
    grads = tuple(torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True))
    return [out.detach(), lse, *grads]


def cancelling(inputs: Inputs, branch: Branch) -> float:
    """How large a term grad_out . value * key * scale of d query, or its twin of d key, can be."""
    key, value = getattr(inputs, branch.keys)
    if key.numel() == 0:
        return 0.0
    largest = max(x.float().abs().max().item() for x in (inputs.query, key))
    value_norm = value.float().norm(dim=-1).max().item()
    return inputs.query.shape[3] ** -0.5 * largest * value_norm * value.shape[3] ** 0.5


def recomputed(inputs: Inputs, branch: Branch) -> float:
    """How large a score in base 2 is at most, which times a term of d value is a term that is rounded.

    A backward makes its weights of scores and log-sum-exps as they were rounded, where the reference gives a
    row that sees one key the weight 1 exactly.
    """
    key = getattr(inputs, branch.keys)[0]
    if key.numel() == 0 or inputs.query.numel() == 0:
        return 0.0
    heads = key.repeat_interleave(inputs.query.shape[2] // key.shape[2], dim=2)
    products = torch.einsum("bthd,bshd->bhts", inputs.query.float(), heads.float())
    return inputs.query.shape[3] ** -0.5 * products.abs().max().item() / math.log(2)


def terms_of(name: str, inputs: Inputs, branch: Branch, grad_out: Tensor) -> float:
    """`cancelling` of the error budget for the result `name`."""
    if name in ("d query", "d key"):
        return cancelling(inputs, branch)
    return recomputed(inputs, branch) * grad_out.abs().max().item() if name == "d value" else 0.0


def check(branch: Branch, inputs: Inputs) -> None:
    """Forward and backward are within the budget of the reference."""
    grad_out = upstream(inputs, branch)
    actual = run(branch, inputs, grad_out)
    low = expected(branch, inputs, grad_out)
    gold = expected(branch, inputs.to(torch.float64), grad_out)
    names = ("out", "lse", "d query", "d key", "d value")
    for name, got, one_low, one_gold in zip(names, actual, low, gold, strict=True):
        if one_gold is None or one_gold.numel() == 0:
            continue
        terms = terms_of(name, inputs, branch, grad_out)
        gradient = name.startswith("d ")
        assert_within_budget(name, got, one_low, one_gold, gradient=gradient, cancelling=terms, seed=SEED)


def poisoned(inputs: Inputs, branch: Branch, cut: slice, value: float = NAN) -> Inputs:
    """The inputs with a run of the branch's keys and values replaced."""
    pair = []
    for tensor in getattr(inputs, branch.keys):
        spoiled = tensor.clone()
        spoiled[:, cut] = value
        pair.append(spoiled)
    return replace(inputs, **{branch.keys: tuple(pair)})


def assert_same(actual: list[Tensor], wanted: list[Tensor]) -> None:
    """Bit for bit."""
    for index, (got, one) in enumerate(zip(actual, wanted, strict=True)):
        assert torch.equal(got, one), f"result {index} differs"


def relaid(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another layout."""
    batch, tokens, heads, dim = tensor.shape
    if layout == "slice of a fused projection":
        wide = tensor.new_full((batch, tokens, heads + 3, dim), NAN)
        wide[:, :, 1 : heads + 1] = tensor
        return wide[:, :, 1 : heads + 1]
    if layout == "heads before tokens":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "every other dim":
        wide = tensor.new_full((batch, tokens, heads, 2 * dim), NAN)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    assert layout == "odd storage offset"
    flat = tensor.new_full((tensor.numel() + 1,), NAN)
    flat[1:] = tensor.flatten()
    return flat[1:].view(tensor.shape)


LAYOUTS = ("slice of a fused projection", "heads before tokens", "every other dim", "odd storage offset")


def in_layout(inputs: Inputs, layout: str) -> Inputs:
    """All tensors but the gates in another layout."""
    return inputs.with_tensors((*(relaid(x, layout) for x in inputs.tensors[:-1]), inputs.gates))
