"""Inputs drawn on the device, and the calls that most tests make."""

import torch
from torch import Tensor

import trisparse
from trisparse import SparseConfig
from trisparse.bench.cases import QUERY_SPREAD
from trisparse.bench.chosen import selection_ratio
from trisparse.testing.inputs import Case, Inputs
from trisparse.testing.sampled_rows import compare_rows, sparse_call

from .device import BACKEND, DEVICE

PAPER = SparseConfig()


def make_case(name: str, heads: tuple[int, int], dims: tuple[int, int], tokens: int, **others) -> Case:
    """A case of H/G heads and D/E dims."""
    sizes = {"batch": 1, "config": PAPER, **others}
    return Case(
        name=name,
        tokens=tokens,
        heads=heads[0],
        groups=heads[1],
        head_dim=dims[0],
        value_dim=dims[1],
        **sizes,
    )


def draw(case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """As `make_inputs`, but drawn on the device: a long sequence would take the CPU longer than its test."""
    generator = torch.Generator(device=DEVICE).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype)

    def pair(length: int) -> tuple[Tensor, Tensor]:
        shape = (case.batch, length, case.groups)
        return normal(*shape, case.head_dim), normal(*shape, case.value_dim)

    bounds = None
    if case.cu_seqlens is not None:
        bounds = torch.tensor(case.cu_seqlens, dtype=torch.int32, device=DEVICE)
    rows = case.tokens - case.query_start
    return Inputs(
        query=normal(case.batch, rows, case.heads, case.head_dim) * QUERY_SPREAD,
        compressed=pair(case.num_compressed),
        selected=pair(case.tokens),
        window=pair(case.tokens),
        gates=normal(case.batch, rows, case.heads, 3).sigmoid(),
        config=case.config,
        cu_seqlens=bounds,
        query_start=case.query_start,
    )


def attend(inputs: Inputs) -> Tensor:
    return trisparse.sparse_attention(*inputs.all_arguments, backend=BACKEND, **inputs.where)


def forward(inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return attend(inputs)


def everything(inputs: Inputs, grad_out: Tensor) -> list[Tensor]:
    """Output, ids, and the gradients of all tensors."""
    leaves = inputs.with_tensors(tuple(tensor.detach().requires_grad_() for tensor in inputs.tensors))
    out = attend(leaves)
    key_cmp = inputs.compressed[0]
    ids = trisparse.select_blocks(inputs.query, key_cmp, inputs.config, backend=BACKEND, **inputs.where)
    return [out.detach(), ids, *torch.autograd.grad(out, leaves.tensors, grad_out)]


def grad_like(inputs: Inputs, seed: int = 1) -> Tensor:
    """A gradient of the output, drawn on the device."""
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    shape = (*inputs.query.shape[:3], inputs.selected[1].shape[3])
    return torch.randn(shape, generator=generator, device=DEVICE, dtype=inputs.query.dtype)


def check(inputs: Inputs, places: list[slice], *, gradients: bool = True) -> None:
    """Ids, output rows and gradients of `places` against the fp64 reference."""
    call, ids = sparse_call(inputs.tensors, inputs.config, BACKEND)
    for rows in places:
        query = inputs.query[:, rows]
        ratio = selection_ratio(ids[:, rows], query, inputs.compressed[0], inputs.config, rows.start)
        assert ratio <= 1.0, (
            f"ids of rows {rows.start}-{rows.stop - 1}: {ratio:.3g} times what rounding allows"
        )
    for found in compare_rows(call, places, gradients=gradients):
        found.check()


def same_bits(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """How many tensors differ; on the device, so that nobody waits."""
    differs = [(left != right).any() for left, right in zip(one, other, strict=True)]
    return torch.stack(differs).sum()
