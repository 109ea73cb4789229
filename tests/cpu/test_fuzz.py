"""Random legal calls: the native kernels and the `torch` backend agree, and nothing crashes."""

import os
from dataclasses import replace

import pytest
import torch
from agreement import cancelling
from hypothesis import given, note, settings
from hypothesis import strategies as st

import trisparse
from trisparse import SparseConfig
from trisparse.cpu.library import library
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case, make_inputs

from .kernels import grad_of, instruction_sets, needs_kernels

pytestmark = needs_kernels
# of each data type
EXAMPLES = int(os.environ.get("TRISPARSE_FUZZ", "100"))
RUBBISH = [-(2**31), -123456, -1, 114514, 2147480000, 2**31 - 1]


@st.composite
def configs(draw):
    """Small legal sizes, tiles of 64 keys among them."""
    stride = draw(st.sampled_from([1, 2, 4, 5, 16]))
    strides = draw(st.integers(1, 3))
    select = draw(st.integers(strides, max(strides, min(8, 130 // stride))))
    initial, local = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return SparseConfig(
        compress_block=stride * strides,
        compress_stride=stride,
        select_block=stride * select,
        num_selected=max(1, initial + local + draw(st.integers(0, 3))),
        num_initial=initial,
        num_local=local,
        window=draw(st.one_of(st.integers(1, 20), st.integers(21, 200))),
    )


@st.composite
def cases(draw):
    """Shapes alone, packed, and from the middle."""
    tokens = draw(st.integers(0, 150))
    groups = draw(st.integers(1, 3))
    bounds = None
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, tokens), max_size=4)))
        bounds = (0, *cuts, tokens)
    return Case(
        name="drawn",
        batch=1 if bounds else draw(st.integers(0, 2)),
        tokens=tokens,
        heads=groups * draw(st.integers(1, 20)),
        groups=groups,
        head_dim=draw(st.integers(1, 70)),
        value_dim=draw(st.integers(1, 70)),
        config=draw(configs()),
        query_start=draw(st.one_of(st.just(0), st.integers(0, tokens))),
        cu_seqlens=bounds,
    )


def spoiled(ids, seed):
    """The same choice with rubbish and repeats in some slots, in any order."""
    generator = torch.Generator().manual_seed(seed)
    wider = torch.cat([ids, ids[..., :1], torch.full_like(ids[..., :1], -1)], dim=-1)
    rubbish = torch.tensor(RUBBISH, dtype=ids.dtype)
    drawn = rubbish[torch.randint(len(RUBBISH), wider.shape, generator=generator)]
    keep = torch.rand(wider.shape, generator=generator) < 0.7
    keep &= wider >= 0
    order = torch.randperm(wider.shape[-1], generator=generator)
    return torch.where(keep, wider, drawn)[..., order]


def attend(inputs, ids, backend):
    """Outputs of the branches and log-sum-exp, and all gradients of each branch's inputs."""
    where = {**inputs.where, "backend": backend}
    query, config = inputs.query, inputs.config
    out, lse = trisparse.compressed_attention(query, *inputs.compressed, config, **where)
    outs = [
        (out, inputs.compressed),
        (trisparse.selected_attention(query, *inputs.selected, ids, config, **where), inputs.selected),
        (trisparse.window_attention(query, *inputs.window, config, **where), inputs.window),
    ]
    grad = grad_of(inputs)
    grads = [torch.autograd.grad(branch, (query, *pair), grad) for branch, pair in outs]
    return [branch for branch, _ in outs] + [lse], [x for each in grads for x in each]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(
    case=cases(),
    seed=st.integers(0, 2**31),
    instructions=st.sampled_from(instruction_sets() or ("none",)),
)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
def test_any_legal_call_agrees_with_the_torch_backend(dtype, case, seed, instructions):
    """Guards against a shape, document, start or id that no written case has."""
    before = library().instructions
    library().select(instructions)
    try:
        check(case, dtype, seed)
    finally:
        library().select(before)


def check(case, dtype, seed):
    inputs = make_inputs(case, dtype, seed)
    note(f"make_inputs({case!r}, {dtype}, {seed})")
    wide = inputs.to(torch.float64)
    ids = trisparse.select_blocks(
        wide.query, wide.compressed[0], case.config, backend="torch", **inputs.where
    )
    own = trisparse.select_blocks(
        inputs.query, inputs.compressed[0], case.config, backend="cpu", **inputs.where
    )
    assert torch.equal((own >= 0).sum(-1), (ids >= 0).sum(-1))
    ids = spoiled(ids, seed)
    results = [
        attend(given.leaves(), ids, backend)
        for given, backend in ((inputs, "cpu"), (inputs, "torch"), (wide, "torch"))
    ]
    for index, (got, low, gold) in enumerate(zip(*(outs for outs, _ in results), strict=True)):
        assert_within_budget(f"result {index}", got, low, gold, seed=seed)
    for index, (got, low, gold) in enumerate(zip(*(grads for _, grads in results), strict=True)):
        # query, key, value of each branch; d value subtracts nothing
        size = cancelling(inputs) if index % 3 < 2 and inputs.query.numel() else 0.0
        assert_within_budget(f"gradient {index}", got, low, gold, gradient=True, cancelling=size, seed=seed)
    whole = [
        trisparse.sparse_attention(*given.all_arguments, backend=backend, **given.where)
        for given, backend in ((inputs, "cpu"), (inputs, "torch"))
    ]
    # a selection may differ in a tie; the form may not
    assert whole[0].shape == whole[1].shape
    assert whole[0].isfinite().all()


def test_the_comparison_rejects_a_wrong_window():
    """Guards against a tolerance so wide that everything agrees."""
    config = SparseConfig(window=9)
    case = Case(name="wrong", batch=1, tokens=70, heads=4, groups=2, head_dim=16, value_dim=16, config=config)
    inputs = make_inputs(case, torch.bfloat16, 1)
    wide = inputs.to(torch.float64)
    wrong = trisparse.window_attention(
        inputs.query, *inputs.window, replace(config, window=10), backend="cpu"
    )
    low = trisparse.window_attention(inputs.query, *inputs.window, config, backend="torch")
    gold = trisparse.window_attention(wide.query, *wide.window, config, backend="torch")
    with pytest.raises(AssertionError, match="worst error"):
        assert_within_budget("window", wrong, low, gold)
