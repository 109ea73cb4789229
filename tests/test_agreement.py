"""Every backend gives the reference's answer, and the reference gives the loop oracle's."""

from dataclasses import replace

import pytest
import torch
from agreement import (
    BRANCHES,
    BY_NAME,
    DTYPES,
    NAMES,
    SEED,
    attend,
    cancelling,
    drawn,
    expected,
    expected_gradients,
    gold_ids,
    gradients,
    ids_of,
)

import trisparse
from trisparse.testing import oracle
from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks
from trisparse.testing.inputs import PACKED_CASES, device_of, kernel_backends, make_inputs, usable_backends

FORWARD = [(backend, dtype) for dtype in DTYPES for backend in kernel_backends(DTYPES[dtype])]
BACKWARD = [(backend, dtype) for backend, dtype in FORWARD if dtype in ("float32", "bfloat16")]


def small(case):
    """The case cut down to what loops over Python floats can do."""
    tokens = min(case.tokens, 130)
    return replace(
        case,
        batch=min(case.batch, 2),
        tokens=tokens,
        heads=min(case.heads, 2 * case.groups),
        head_dim=min(case.head_dim, 6),
        value_dim=min(case.value_dim, 5),
    )


def relative_error(actual, exact):
    if exact.numel() == 0:
        return 0.0
    return ((actual - exact).abs().max() / exact.abs().max().clamp(min=1e-300)).item()


@pytest.mark.parametrize("name", BY_NAME)
def test_reference_selects_what_the_oracle_selects(name):
    """Guards against a misread eq. 9-12: overlap, group sum, forced blocks, ties."""
    inputs = make_inputs(small(BY_NAME[name]), torch.float64, SEED)
    ids = oracle.oracle_select_blocks(inputs.query, inputs.compressed[0], inputs.config, **inputs.where)
    assert torch.equal(ids_of(inputs, "reference"), ids)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", BY_NAME)
def test_reference_equals_the_oracle(name, branch):
    """Guards against a reference that is wrong in the way every kernel tested against it then is."""
    inputs = make_inputs(small(BY_NAME[name]), torch.float64, SEED)
    where, config = inputs.where, inputs.config
    ids = oracle.oracle_select_blocks(inputs.query, inputs.compressed[0], config, **where)
    if branch == "compressed":
        exact = oracle.oracle_compressed_attention(inputs.query, *inputs.compressed, config, **where)
    elif branch == "selected":
        exact = (oracle.oracle_selected_attention(inputs.query, *inputs.selected, ids, config, **where),)
    elif branch == "window":
        exact = (oracle.oracle_window_attention(inputs.query, *inputs.window, config, **where),)
    else:
        exact = (oracle.oracle_sparse_attention(*inputs.all_arguments, **where),)
        actual = [trisparse.sparse_attention(*inputs.all_arguments, backend="reference", **where)]
    if branch != "whole":
        actual = attend(branch, inputs, ids, "reference")
    for got, wanted in zip(actual, exact, strict=True):
        assert got.shape == wanted.shape
        empty = wanted.isneginf()
        assert torch.equal(got.isneginf(), empty)
        assert relative_error(got.masked_fill(empty, 0.0), wanted.masked_fill(empty, 0.0)) < 1e-12


@pytest.mark.parametrize("start", [0, 1, 30, 61, 96])
def test_reference_equals_the_oracle_from_a_row_in_the_middle(start):
    """Guards against positions counted from the first query row instead of the first token."""
    case = replace(small(BY_NAME["below_power_of_two"]), tokens=97, query_start=start)
    inputs = make_inputs(case, torch.float64, SEED)
    exact = oracle.oracle_sparse_attention(*inputs.all_arguments, **inputs.where)
    actual = trisparse.sparse_attention(*inputs.all_arguments, backend="reference", **inputs.where)
    assert relative_error(actual, exact) < 1e-12


@pytest.mark.parametrize("branch", BRANCHES[:3])
@pytest.mark.parametrize(("backend", "dtype"), FORWARD)
@pytest.mark.parametrize("name", NAMES)
def test_forward_agrees_with_the_reference(name, backend, dtype, branch):
    """Guards against a wrong tile edge, mask, head, group, stride or accumulation dtype in a kernel."""
    dtype = DTYPES[dtype]
    low, gold = expected(name, dtype, branch)
    device = device_of(backend)
    ids = gold_ids(name, dtype).to(device)
    actual = attend(branch, drawn(name, dtype).to(device), ids, backend)
    for what, got, one_low, one_gold in zip(("out", "lse"), actual, low, gold, strict=False):
        assert_within_budget(f"{branch} {what}, {name}", got, one_low, one_gold, seed=SEED)


@pytest.mark.parametrize(("backend", "dtype"), FORWARD)
@pytest.mark.parametrize("name", NAMES)
def test_selection_agrees_with_the_reference(name, backend, dtype):
    """Guards against wrong scores or a wrong order of blocks in a kernel."""
    inputs = drawn(name, DTYPES[dtype])
    wide = inputs.to(torch.float64)
    ranks = selection_ranks(wide.query, wide.compressed[0], inputs.config)
    compare_ids(ids_of(inputs.to(device_of(backend)), backend), gold_ids(name, DTYPES[dtype]), ranks)


@pytest.mark.parametrize(("backend", "dtype"), FORWARD)
@pytest.mark.parametrize("name", NAMES)
def test_whole_op_uses_the_ids_of_select_blocks(name, backend, dtype):
    """Guards against a whole op whose selection or gating is not that of its parts."""
    inputs = drawn(name, DTYPES[dtype])
    moved = inputs.to(device_of(backend))
    ids = ids_of(moved, backend)
    actual = trisparse.sparse_attention(*moved.all_arguments, backend=backend)
    # the same operators ran, so nothing but the rounding of the sum may differ
    parts = attend("whole", moved, ids, backend)[0]
    (gold,) = attend("whole", inputs.to(torch.float64), ids.cpu(), "reference")
    (low,) = attend("whole", inputs, ids.cpu(), "reference")
    assert_within_budget(f"whole, {name}", actual, low, gold, seed=SEED)
    assert_within_budget(f"sum of parts, {name}", actual, parts.cpu(), gold, seed=SEED)


@pytest.mark.parametrize("branch", BRANCHES[:3])
@pytest.mark.parametrize(("backend", "dtype"), BACKWARD)
@pytest.mark.parametrize("name", NAMES)
def test_backward_agrees_with_the_reference(name, backend, dtype, branch):
    """Guards against a gradient that misses a key, counts one twice, or forgets the scale."""
    dtype = DTYPES[dtype]
    low, gold = expected_gradients(name, dtype, branch)
    device = device_of(backend)
    inputs = drawn(name, dtype).to(device).leaves()
    ids = gold_ids(name, dtype).to(device)
    actual = gradients(attend(branch, inputs, ids, backend), inputs, SEED)
    assert sum(x is not None for x in actual) == 3
    for what, (got, one_low, one_gold) in enumerate(zip(actual, low, gold, strict=True)):
        assert (got is None) == (one_gold is None)
        if got is not None:
            name_of = f"{branch} gradient {what}, {name}"
            # neither d value nor d gates subtracts anything
            terms = cancelling(inputs) if what in (0, 1, 3, 5) else 0.0
            assert_within_budget(name_of, got, one_low, one_gold, gradient=True, cancelling=terms, seed=SEED)


@pytest.mark.parametrize(("backend", "dtype"), BACKWARD)
@pytest.mark.parametrize("name", NAMES[::3])
def test_backward_of_the_whole_op_agrees_with_the_reference(name, backend, dtype):
    """Guards against swapped gates, and against gradients of the three branches added up wrongly."""
    dtype, device = DTYPES[dtype], device_of(backend)
    inputs = drawn(name, dtype).to(device).leaves()
    ids = ids_of(inputs, backend).cpu()
    actual = gradients([trisparse.sparse_attention(*inputs.all_arguments, backend=backend)], inputs, SEED)
    pair = []
    for target in (dtype, torch.float64):
        copy = drawn(name, dtype).to(target).leaves()
        pair.append(gradients(attend("whole", copy, ids, "reference"), copy, SEED))
    for what, (got, low, gold) in enumerate(zip(actual, *pair, strict=True)):
        name_of = f"whole gradient {what}, {name}"
        terms = cancelling(inputs)
        assert_within_budget(name_of, got, low, gold, gradient=True, cancelling=terms, seed=SEED)


@pytest.mark.parametrize("start", [0, 1, 15, 16, 64, 100, 128])
@pytest.mark.parametrize("backend", usable_backends(torch.float32))
@pytest.mark.parametrize("name", ["over_two_blocks", "own_block_only"])
def test_rows_from_the_middle_equal_those_of_the_whole_sequence(name, backend, start):
    """Guards against chunked prefill that loses the past or counts blocks from the chunk."""
    inputs = drawn(name, torch.float32)
    device = device_of(backend)
    whole = trisparse.sparse_attention(*inputs.to(device).all_arguments, backend=backend)
    gold = trisparse.sparse_attention(*inputs.to(torch.float64).all_arguments, backend="reference")
    low = trisparse.sparse_attention(*inputs.all_arguments, backend="reference")
    chunk = inputs.with_tensors((inputs.query[:, start:], *inputs.tensors[1:-1], inputs.gates[:, start:])).to(
        device
    )
    actual = trisparse.sparse_attention(*chunk.all_arguments, query_start=start, backend=backend)
    assert_within_budget("chunk", actual, low[:, start:], gold[:, start:], seed=SEED)
    assert_within_budget("chunk", actual, whole[:, start:].cpu(), gold[:, start:], seed=SEED)


@pytest.mark.parametrize("backend", usable_backends(torch.float32))
def test_a_chunk_in_the_middle_may_see_keys_past_its_last_row(backend):
    """Guards against parts that need exactly the compressed keys their rows can see."""
    inputs = drawn("below_two_blocks", torch.float32).to(device_of(backend))
    ids = ids_of(inputs, backend)
    full = [attend(branch, inputs, ids, backend)[0] for branch in BRANCHES[:3]]
    rows = slice(33, 70)
    query = inputs.query[:, rows]
    where = {"query_start": rows.start, "backend": backend}
    config = inputs.config
    out_cmp, _ = trisparse.compressed_attention(query, *inputs.compressed, config, **where)
    ids_of_chunk = trisparse.select_blocks(query, inputs.compressed[0], config, **where)
    out_slc = trisparse.selected_attention(query, *inputs.selected, ids[:, rows], config, **where)
    out_win = trisparse.window_attention(query, *inputs.window, config, **where)
    assert torch.equal(ids_of_chunk, ids[:, rows])
    for got, wanted in zip((out_cmp, out_slc, out_win), full, strict=True):
        assert_within_budget("rows 33-69", got, wanted[:, rows].cpu(), wanted[:, rows].cpu().double())


@pytest.mark.parametrize("name", [case.name for case in PACKED_CASES])
@pytest.mark.parametrize(("backend", "dtype"), BACKWARD)
def test_packed_agrees_with_the_reference(name, backend, dtype):
    """Guards against documents that see one another, forward and backward."""
    dtype, device = DTYPES[dtype], device_of(backend)
    ids = gold_ids(name, dtype)
    for branch in BRANCHES[:3]:
        low, gold = expected(name, dtype, branch)
        inputs = drawn(name, dtype).to(device).leaves()
        actual = attend(branch, inputs, ids.to(device), backend)
        for got, one_low, one_gold in zip(actual, low, gold, strict=True):
            assert_within_budget(f"{branch}, {name}", got, one_low, one_gold, seed=SEED)
        low, gold = expected_gradients(name, dtype, branch)
        for got, one_low, one_gold in zip(gradients(actual, inputs, SEED), low, gold, strict=True):
            if one_gold is not None:
                name_of = f"{branch} gradient, {name}"
                terms = cancelling(inputs)
                assert_within_budget(
                    name_of, got, one_low, one_gold, gradient=True, cancelling=terms, seed=SEED
                )


@pytest.mark.parametrize("scale", [0.01, 0.3, 2, 1.0])
@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_scale_is_used_everywhere(backend, scale):
    """Guards against a backend that keeps D ** -0.5 in one branch or direction."""
    results = []
    for target, name in (
        (torch.float32, backend),
        (torch.float32, "reference"),
        (torch.float64, "reference"),
    ):
        inputs = drawn("many_forced", torch.float32).to(target).to(device_of(name)).leaves()
        out = trisparse.sparse_attention(*inputs.all_arguments, scale=scale, backend=name)
        results.append((out, *gradients([out], inputs, SEED)))
    for index, (got, low, gold) in enumerate(zip(*results, strict=True)):
        name_of, terms = f"scale {scale}, result {index}", cancelling(inputs, scale)
        assert_within_budget(name_of, got, low, gold, gradient=index > 0, cancelling=terms * (index > 0))


@pytest.mark.parametrize("backend", kernel_backends(torch.bfloat16))
def test_gates_may_be_wider_than_the_query(backend):
    """Guards against gates rounded to bf16 on their way in (spec 9)."""
    inputs = drawn("many_forced", torch.bfloat16).to(device_of(backend))
    gates = inputs.gates.float() + 2**-14
    arguments = (inputs.query, inputs.compressed, inputs.selected, inputs.window)
    out = trisparse.sparse_attention(*arguments, gates, inputs.config, backend=backend)
    low = trisparse.sparse_attention(
        *drawn("many_forced", torch.bfloat16).all_arguments[:4],
        gates.cpu(),
        inputs.config,
        backend="reference",
    )
    gold_inputs = drawn("many_forced", torch.bfloat16).to(torch.float64)
    gold = trisparse.sparse_attention(
        *gold_inputs.all_arguments[:4], gates.cpu().double(), inputs.config, backend="reference"
    )
    assert out.dtype == torch.bfloat16
    assert_within_budget("fp32 gates", out, low, gold)
