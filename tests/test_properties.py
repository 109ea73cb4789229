"""What must hold whatever the numbers are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, device_of, make_inputs, usable_backends

BACKENDS = usable_backends(torch.float32)
# on a GPU each example is compiled first
FEW = settings(max_examples=4 if "triton" in BACKENDS else 12, deadline=None, derandomize=True, database=None)
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


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


def inputs_of(case, seed, backend):
    return make_inputs(case, torch.float32, seed).to(device_of(backend))


def dense(query, key, value):
    """Causal attention by PyTorch."""
    repeat = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(repeat, dim=2).transpose(1, 2) for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query.transpose(1, 2), key, value, is_causal=True)
    return out.transpose(1, 2)


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
    torch.testing.assert_close(out, dense(inputs.query, *inputs.window), **CLOSE)


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
    torch.testing.assert_close(out, dense(inputs.query, *inputs.selected), **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 99), data=st.data())
@FEW
def test_chunks_equal_the_whole(backend, case, seed, data):
    """Guards against rows that depend on where a sequence is cut, selection included."""
    inputs = inputs_of(case, seed, backend)
    start = data.draw(st.integers(0, case.tokens))
    chunk = inputs.with_tensors((inputs.query[:, start:], *inputs.tensors[1:-1], inputs.gates[:, start:]))
    out = whole(chunk, backend, query_start=start)
    torch.testing.assert_close(out, whole(inputs, backend)[:, start:], **CLOSE)


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
def test_groups_and_batch_rows_are_independent(backend, case, seed):
    """Guards against a stride of the wrong group or batch row."""
    inputs = inputs_of(case, seed, backend)
    out = whole(inputs, backend)
    per_group = case.heads // case.groups
    heads = slice((case.groups - 1) * per_group, case.heads)
    cuts = [slice(case.groups - 1, case.groups)] * 6
    tensors = [x[-1:, :, cut] for x, cut in zip(inputs.tensors, [heads, *cuts, heads], strict=True)]
    torch.testing.assert_close(
        whole(inputs.with_tensors(tuple(tensors)), backend), out[-1:, :, heads], **CLOSE
    )


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
    torch.testing.assert_close(whole(folded, backend, scale=0.25), whole(inputs, backend, scale=0.5), **CLOSE)


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
    scores = torch.einsum("bthd,bchd->bthc", inputs.query, key) * case.head_dim**-0.5
    ends = torch.arange(key.shape[1]) * config.compress_stride + config.compress_block - 1
    hidden = ends > torch.arange(case.tokens)[:, None]
    scores = scores.cpu().masked_fill(hidden[:, None], float("-inf"))
    torch.testing.assert_close(lse.cpu(), scores.logsumexp(dim=-1), **CLOSE)
