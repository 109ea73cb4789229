"""Random legal calls: the native kernels and the `torch` backend agree, and nothing crashes."""

import os
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from agreement import BRANCHES, attend, cancelling, gradients, ids_of
from decoding import check_rows, make_decoding
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import trisparse
from trisparse import SparseConfig
from trisparse.invariance import batch_invariant
from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks
from trisparse.testing.inputs import Case, make_inputs

from .kernels import instruction_sets, needs_kernels

pytestmark = needs_kernels
# of each data type
EXAMPLES = int(os.environ.get("TRISPARSE_FUZZ", "40"))
RUBBISH = [-(2**31), -123456, -1, 114514, 2147480000, 2**31 - 1]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
SEEDS = st.integers(0, 2**31)
SETS = st.sampled_from(instruction_sets() or ("none",))
RUN = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    # every example selects a set of instructions anew
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


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


def documents(inputs):
    """Of each document with query rows: its rows, its compressed blocks, and where its first row stands."""
    bounds = [0, inputs.query_start + inputs.query.shape[1]]
    if inputs.cu_seqlens is not None:
        bounds = inputs.cu_seqlens.tolist()
    first_block = 0
    for begin, end in zip(bounds, bounds[1:], strict=False):
        blocks = slice(first_block, first_block + inputs.config.num_compressed(end - begin))
        first_block = blocks.stop
        first = max(begin, inputs.query_start)
        if first < end:
            yield slice(first - inputs.query_start, end - inputs.query_start), blocks, first - begin


def check_selection(ids, inputs, wide):
    """`ids` are those of the scores in fp64, up to ties."""
    gold = ids_of(wide, "torch")
    for rows, blocks, start in documents(inputs):
        query, key = wide.query[:, rows], wide.compressed[0][:, blocks]
        ranks = selection_ranks(query, key, inputs.config, query_start=start)
        compare_ids(ids[:, rows], gold[:, rows], ranks)


def results(branch, inputs, ids, backend, seed):
    """What a branch, or the whole op, gives, and the gradients of what it has for inputs."""
    inputs = inputs.leaves()
    if (branch, backend) == ("whole", "cpu"):
        outs = [trisparse.sparse_attention(*inputs.all_arguments, backend=backend, **inputs.where)]
    else:
        outs = attend(branch, inputs, ids, backend)
    return outs, gradients(outs, inputs, seed)


@DTYPES
@given(case=cases(), seed=SEEDS, instructions=SETS)
@RUN
def test_any_legal_call_agrees_with_the_torch_backend(select, dtype, case, seed, instructions):
    """Guards against a shape, document, start or id that no written case has."""
    select(instructions)
    inputs = make_inputs(case, dtype, seed)
    note(f"make_inputs({case!r}, {dtype}, {seed})")
    wide = inputs.to(torch.float64)
    ids = ids_of(inputs, "cpu")
    check_selection(ids, inputs, wide)
    for branch in BRANCHES:
        # the whole op chooses for itself: what `select_blocks` says (spec 11)
        slots = ids if branch == "whole" else spoiled(ids, seed)
        calls = ((inputs, "cpu"), (inputs, "torch"), (wide, "torch"))
        outs, grads = zip(
            *(results(branch, given, slots, backend, seed) for given, backend in calls), strict=True
        )
        for got, low, gold in zip(*outs, strict=True):
            assert_within_budget(branch, got, low, gold, seed=seed)
        for what, (got, low, gold) in enumerate(zip(*grads, strict=True)):
            assert (got is None) == (gold is None)
            if got is None:
                continue
            # d value too: of one token and 18 heads it was once 1.006 times what is allowed without (float32)
            size = cancelling(inputs) if inputs.query.numel() else 0.0
            name = f"{branch} gradient {what}"
            assert_within_budget(name, got, low, gold, gradient=True, cancelling=size, seed=seed)


@st.composite
def steps(draw):
    """Rows of different length with few or many new tokens, in a cache with or without a ring."""
    new_tokens = draw(st.one_of(st.integers(1, 6), st.integers(1, 70)))
    before = draw(st.lists(st.integers(0, 150), min_size=1, max_size=4))
    groups = draw(st.integers(1, 3))
    return {
        "lengths": [length + new_tokens for length in before],
        "new_tokens": new_tokens,
        "config": draw(configs()),
        "heads": groups * draw(st.integers(1, 20)),
        "groups": groups,
        "head_dim": draw(st.integers(1, 70)),
        "value_dim": draw(st.integers(1, 70)),
        "ring": draw(st.booleans()),
        "spare": draw(st.integers(0, 9)),
    }


@DTYPES
@given(step=steps(), seed=SEEDS, instructions=SETS, invariant=st.booleans())
@RUN
def test_any_legal_step_agrees_with_the_reference(select, dtype, step, seed, instructions, invariant):
    """Guards against a length, cache or number of new tokens that no written decode step has."""
    select(instructions)
    note(f"make_decoding(**{step!r}, dtype={dtype}, seed={seed})")
    call = make_decoding(**step, dtype=dtype, seed=seed)
    with batch_invariant() if invariant else nullcontext():
        out, ids = call.run("cpu")
    check_rows(call, out, ids)


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
