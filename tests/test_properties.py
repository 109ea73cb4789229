"""What must hold whatever the numbers are."""

import pytest
import torch
from agreement import attend, ids_of
from hypothesis import given, settings
from hypothesis import strategies as st

import trisparse
from trisparse import SparseConfig
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case, device_of, make_inputs, usable_backends

BACKENDS = usable_backends(torch.float32)
WIDE = torch.float64
# on a GPU each example is compiled first
FEW = settings(max_examples=4 if "triton" in BACKENDS else 12, deadline=None, derandomize=True, database=None)


@st.composite
def cases(draw):
    """Small legal shapes and configs."""
    stride = draw(st.sampled_from([1, 2, 3, 4]))
    block = stride * draw(st.integers(1, 3))
    select = stride * draw(st.integers(block // stride, block // stride + 3))
    initial, local = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    config = SparseConfig(
        compress_block=block,
        compress_stride=stride,
        select_block=select,
        num_selected=max(1, initial + local + draw(st.integers(0, 2))),
        num_initial=initial,
        num_local=local,
        window=draw(st.integers(1, 40)),
    )
    groups = draw(st.integers(1, 2))
    return Case(
        name="drawn",
        batch=draw(st.integers(1, 2)),
        tokens=draw(st.integers(1, 40)),
        heads=groups * draw(st.integers(1, 3)),
        groups=groups,
        head_dim=draw(st.integers(1, 9)),
        value_dim=draw(st.integers(1, 9)),
        config=config,
    )


def inputs_of(case, seed, backend, dtype=torch.float32):
    return make_inputs(case, dtype, seed).to(device_of(backend))


def dense(query, key, value):
    """Causal attention by PyTorch in the inputs' dtype, and in fp64."""
    repeat = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(repeat, dim=2) for x in (key, value))
    wide = [x.double().cpu().transpose(1, 2) for x in (query, key, value)]
    outs = [
        torch.nn.functional.scaled_dot_product_attention(*each, is_causal=True).transpose(1, 2)
        for each in ([x.to(query.dtype) for x in wide], wide)
    ]
    return outs[0], outs[1]


def whole(inputs, backend, **others):
    return trisparse.sparse_attention(*inputs.all_arguments, backend=backend, **others)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_wide_window_is_dense_attention(backend, case, seed):
    """Guards against a window or scale that is not attention's own."""
    inputs = inputs_of(case, seed, backend)
    config = SparseConfig(window=case.tokens)
    out = trisparse.window_attention(inputs.query, *inputs.window, config, backend=backend)
    assert_within_budget("wide window", out, *dense(inputs.query, *inputs.window), seed=seed)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_selecting_every_block_is_dense_attention(backend, case, seed):
    """Guards against blocks lost when there are more slots than blocks."""
    inputs = inputs_of(case, seed, backend)
    sizes = {**vars(case.config), "num_selected": 64}
    config = SparseConfig(**sizes)
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], config, backend=backend)
    out = trisparse.selected_attention(inputs.query, *inputs.selected, ids, config, backend=backend)
    assert_within_budget("every block", out, *dense(inputs.query, *inputs.selected), seed=seed)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99), data=st.data())
@FEW
def test_chunks_equal_the_whole(backend, case, seed, data):
    """Guards against rows that depend on where a sequence is cut, selection included."""
    inputs = inputs_of(case, seed, backend)
    start = data.draw(st.integers(0, case.tokens))
    chunk = inputs.with_tensors((inputs.query[:, start:], *inputs.tensors[1:-1], inputs.gates[:, start:]))
    out = whole(chunk, backend, query_start=start)
    ids = ids_of(inputs, backend).cpu()
    low, gold = (
        attend("whole", given, ids, "reference")[0] for given in (inputs.to("cpu"), inputs.to("cpu").to(WIDE))
    )
    assert_within_budget("chunk", out, low[:, start:], gold[:, start:], seed=seed)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_ids_keep_their_contract(backend, case, seed):
    """Guards against ids unsorted, repeated, in the future, or fewer than there are candidates."""
    inputs, config = inputs_of(case, seed, backend), case.config
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], config, backend=backend)
    for row in range(case.tokens):
        own = row // config.select_block
        count = min(own + 1, config.num_selected)
        forced = {*range(config.num_initial), *range(own, own - config.num_local, -1)} & {*range(own + 1)}
        for found in ids[:, row].flatten(0, 1).tolist():
            assert found[count:] == [-1] * (config.num_selected - count)
            assert found[:count] == sorted({*found[:count]})
            assert len({*found[:count]}) == count
            assert {*found[:count]} <= {*range(own + 1)}
            assert forced <= {*found}


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_output_is_linear_in_values_and_gates(backend, case, seed):
    """Guards against values or gates that reach the softmax."""
    inputs = inputs_of(case, seed, backend)
    query, key_cmp, value_cmp, key_slc, value_slc, key_win, value_win, gates = inputs.tensors
    doubled = (query, key_cmp, 2 * value_cmp, key_slc, 2 * value_slc, key_win, 2 * value_win, gates)
    out = whole(inputs, backend)
    assert torch.equal(whole(inputs.with_tensors(doubled), backend), 2 * out)
    assert torch.equal(whole(inputs.with_tensors((*inputs.tensors[:-1], 2 * gates)), backend), 2 * out)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_scale_can_be_folded_into_the_query(backend, case, seed):
    """Guards against a scale used twice or in two of three branches."""
    inputs = inputs_of(case, seed, backend)
    folded = inputs.with_tensors((2 * inputs.query, *inputs.tensors[1:]))
    # powers of two change no digit
    assert torch.equal(whole(folded, backend, scale=0.25), whole(inputs, backend, scale=0.5))


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_constant_values_come_back(backend, case, seed):
    """Guards against probabilities that do not sum to one."""
    inputs = inputs_of(case, seed, backend)
    ones = torch.ones_like(inputs.selected[1])
    config = SparseConfig(**{**vars(case.config), "num_selected": 9})
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], config, backend=backend)
    out = trisparse.selected_attention(inputs.query, inputs.selected[0], ones, ids, config, backend=backend)
    torch.testing.assert_close(out, torch.ones_like(out))
    out = trisparse.window_attention(inputs.query, inputs.window[0], ones, config, backend=backend)
    torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_lse_is_that_of_the_scores(backend, case, seed):
    """Guards against a log-sum-exp in another base, scale or order of dimensions."""
    inputs, config = inputs_of(case, seed, backend), case.config
    _, lse = trisparse.compressed_attention(inputs.query, *inputs.compressed, config, backend=backend)
    key = inputs.compressed[0].repeat_interleave(case.heads // case.groups, dim=2)
    ends = torch.arange(key.shape[1]) * config.compress_stride + config.compress_block - 1
    hidden = (ends > torch.arange(case.tokens)[:, None])[:, None]
    exact = []
    for dtype in (torch.float32, WIDE):
        scores = torch.einsum("bthd,bchd->bthc", inputs.query.to(dtype), key.to(dtype)) * case.head_dim**-0.5
        exact.append(scores.cpu().masked_fill(hidden, float("-inf")).logsumexp(dim=-1))
    assert_within_budget("lse", lse, *exact, seed=seed)
