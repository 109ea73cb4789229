"""What no query attends takes no part: in no bit of an output, in no gradient (reliability row K16)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_properties import FEW, cases, dense, inputs_of, whole
from test_symmetry import EACH

import trisparse
from trisparse import SparseConfig
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case, make_inputs

NARROW = SparseConfig(
    compress_block=4, compress_stride=2, select_block=8, num_selected=2, num_initial=0, num_local=1, window=5
)


def with_other_future(inputs, cut, seed):
    """The same call with other numbers in all that belongs to tokens from `cut` on."""
    generator = torch.Generator().manual_seed(seed)
    seen = inputs.config.num_compressed(cut)
    first = [cut, seen, seen, cut, cut, cut, cut, cut]
    changed = []
    for tensor, begin in zip(inputs.tensors, first, strict=True):
        noise = 30 * torch.randn(tensor.shape, generator=generator)
        past = torch.arange(tensor.shape[1]) < begin
        changed.append(
            torch.where(past[:, None, None], tensor.cpu(), noise.to(tensor.dtype)).to(tensor.device)
        )
    return inputs.with_tensors(tuple(changed)), first


@EACH
@given(case=cases(), seed=st.integers(0, 99), data=st.data())
@FEW
def test_future_changes_no_bit_of_the_past_and_gets_no_gradient_from_it(backend, dtype, case, seed, data):
    """Guards against a mask that is off by one token or block, forward or backward, in any branch."""
    cut = data.draw(st.integers(0, case.tokens))
    inputs = inputs_of(case, seed, backend, dtype).leaves()
    changed, first = with_other_future(inputs, cut, seed)
    past, other = whole(inputs, backend)[:, :cut], whole(changed, backend)[:, :cut]
    assert torch.equal(past, other)
    grads = torch.autograd.grad(past.float().square().sum(), inputs.tensors)
    for index, (grad, begin) in enumerate(zip(grads, first, strict=True)):
        assert not grad[:, begin:].any(), index


@pytest.mark.parametrize("seed", range(3))
@EACH
def test_blocks_that_nobody_selected_get_no_gradient(backend, dtype, seed):
    """Guards against a gradient that is added to the block beside the right one."""
    case = Case(
        name="narrow",
        batch=2,
        tokens=61,
        heads=4,
        groups=2,
        head_dim=8,
        value_dim=6,
        config=NARROW,
        query_start=45,
    )
    inputs = make_inputs(case, dtype, seed).leaves()
    where = {**inputs.where, "backend": backend}
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], NARROW, **where)
    out = trisparse.sparse_attention(*inputs.all_arguments, **where)
    grads = torch.autograd.grad(out.float().square().sum(), inputs.selected)
    blocks = torch.arange(61, device=ids.device) // NARROW.select_block
    # [B, G, T]: some row of the group selected the token's block
    chosen = (ids.permute(0, 2, 1, 3).flatten(2)[..., None] == blocks).any(dim=2)
    assert chosen.any() and not chosen.all()
    for grad in grads:
        touched = grad.ne(0).any(dim=-1).transpose(1, 2)
        assert not touched[~chosen].any()
        # the last token of the last row's own block has a single query, whose weight for itself is not 0
        assert touched[chosen].float().mean() > 0.9


@EACH
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_one_gate_gives_one_branch_and_a_wide_window_dense_attention(backend, dtype, case, seed):
    """Guards against gates in another order, and branches rounded differently in the whole op than alone."""
    inputs = inputs_of(case, seed, backend, dtype)
    config = SparseConfig(**{**vars(case.config), "window": case.tokens})
    query, where = inputs.query, {"backend": backend}
    ids = trisparse.select_blocks(query, inputs.compressed[0], config, **where)
    branches = (
        trisparse.compressed_attention(query, *inputs.compressed, config, **where)[0],
        trisparse.selected_attention(query, *inputs.selected, ids, config, **where),
        trisparse.window_attention(query, *inputs.window, config, **where),
    )
    for index, branch in enumerate(branches):
        gates = torch.zeros_like(inputs.gates)
        gates[..., index] = 1.0
        out = trisparse.sparse_attention(*inputs.all_arguments[:4], gates, config, **where)
        assert torch.equal(out, branch)
    assert_within_budget("dense", branches[2], *dense(query, *inputs.window), seed=seed)
