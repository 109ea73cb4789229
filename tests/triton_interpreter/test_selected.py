"""The selected branch, forward and backward, given the reference's ids."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from comparison import (
    DEVICE,
    PACKED,
    SHORT,
    Branch,
    assert_same,
    check,
    draw,
    expected,
    in_layout,
    place,
    poisoned,
    rows_of,
    run,
    terms_of,
    upstream,
)

import trisparse
from trisparse import SparseConfig
from trisparse import triton as room
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case
from trisparse.triton import selected_key_gradient
from trisparse.triton.block_index import usable_ids
from trisparse.triton.combine import row_sums
from trisparse.triton.selected_backward import selected_key_gradients, selected_query_gradient
from trisparse.triton.selected_forward import selected_place

DTYPES = [torch.float32, torch.float16]
CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=3, num_initial=1, num_local=1
)
# names of cases that are quick, among them odd dims, one group of many heads and many groups of few
NAMES = [
    "one_token",
    "two_tokens",
    "below_stride",
    "one_stride",
    "over_stride",
    "one_select_block",
    "below_select_block",
    "nothing_forced",
]
GRADIENTS = ("d query", "d key", "d value")


def case_of(heads_per_group=4, dims=(8, 6), config=CONFIG, tokens=40, groups=1, **others):
    return Case(
        name="selected",
        batch=1,
        tokens=tokens,
        heads=heads_per_group * groups,
        groups=groups,
        head_dim=dims[0],
        value_dim=dims[1],
        config=config,
        **others,
    )


def reference_ids(inputs):
    """What the reference selects from the inputs in fp64."""
    wide = inputs.to(torch.float64).to("cpu")
    return trisparse.select_blocks(
        wide.query, wide.compressed[0], wide.config, backend="reference", **wide.where
    )


def forward(ids, query, key, value, *where):
    return room.selected_forward(query, key, value, ids, *where)


def backward(ids, grad_out, query, key, value, *others):
    return room.selected_backward(grad_out, query, key, value, ids, *others)


def reference(ids, query, key, value, config, **where):
    return trisparse.selected_attention(query, key, value, ids, config, **where)


def selected(ids):
    """The branch with these ids."""
    moved = ids.to(DEVICE)
    return Branch(
        "selected", partial(forward, moved), partial(backward, moved), partial(reference, ids.cpu())
    )


def branch_of(inputs):
    return selected(reference_ids(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name, dtype):
    """Guards against a wrong mask, head, group or accumulation dtype, forward and backward."""
    inputs = draw(SHORT[name], dtype)
    check(branch_of(inputs), inputs)


@pytest.mark.parametrize(
    ("heads_per_group", "dims"),
    [
        (1, (60, 100)),
        (2, (16, 16)),
        (3, (24, 16)),
        (4, (192, 128)),
        (6, (16, 24)),
        (16, (60, 100)),
        (32, (192, 128)),
    ],
    ids=str,
)
def test_every_group_size(heads_per_group, dims):
    """Guards against rows of a tile that are given to the wrong token or head, and members of a union."""
    # more blocks than a token chooses, or all tokens of a tile would choose the same
    inputs = draw(case_of(heads_per_group, dims, tokens=80, groups=2, query_start=53), torch.float16)
    check(branch_of(inputs), inputs)


def test_a_group_larger_than_a_tile():
    """Guards against heads behind the first chunk of a group."""
    inputs = draw(case_of(70, tokens=6))
    check(branch_of(inputs), inputs)


@pytest.mark.parametrize("select_block", [1, 3, 12, 24, 80, 128])
@pytest.mark.parametrize("heads_per_group", [2, 16])
def test_every_block_size(select_block, heads_per_group):
    """Guards against padding of a block, or the parts of a large one, read as tokens of it."""
    blocks = {"compress_block": select_block, "compress_stride": select_block, "select_block": select_block}
    config = SparseConfig(**blocks, num_selected=3, num_initial=0, num_local=1)
    last = 3 * select_block + min(select_block, 7)
    inputs = draw(case_of(heads_per_group, config=config, tokens=last, query_start=max(0, last - 12)))
    check(branch_of(inputs), inputs)


@pytest.mark.parametrize("name", PACKED)
def test_packed_agrees_with_the_reference(name):
    """Guards against documents that see one another, and lists of the wrong tile."""
    inputs = draw(PACKED[name])
    check(branch_of(inputs), inputs)


def test_packed_with_one_token_a_tile():
    """Guards against tiles, of which there are more than tokens, that read a list past the last one."""
    inputs = draw(replace(PACKED["empty_in_the_middle"], heads=32))
    check(branch_of(inputs), inputs)


def test_packed_rows_from_the_middle():
    """Guards against documents cut by the query rows."""
    inputs = draw(PACKED["uneven"])
    ids = reference_ids(inputs)
    part = rows_of(inputs, slice(20, 50))
    check(selected(ids[:, 20:50]), part)


@pytest.mark.parametrize("heads_per_group", [2, 16])
def test_any_ids_mean_their_set(heads_per_group):
    """Guards against ids that name no block but are dereferenced, repeats counted twice, and order."""
    inputs = draw(case_of(heads_per_group, tokens=40))
    clean = reference_ids(inputs).long()
    repeated = torch.cat([clean.flip(-1), clean], dim=-1)
    bad = torch.tensor([-(2**31), 2**31 - 1, 2**33, -5, 4]).expand(*clean.shape[:3], 5)
    wanted = run(selected(clean), inputs)
    assert_same(run(selected(torch.cat([bad, repeated], dim=-1)), inputs), wanted)
    narrow = torch.cat([bad.clamp(-(2**31), 2**31 - 1), repeated], dim=-1).int()
    assert_same(run(selected(narrow), inputs), wanted)


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("heads_per_group", [2, 16])
def test_rows_without_a_block_are_empty(heads_per_group, slots):
    """Guards against NaN from a softmax of nothing."""
    inputs = draw(case_of(heads_per_group, tokens=20))
    ids = torch.full((1, 20, 1, slots), -1, dtype=torch.int32)
    out, lse, *grads = run(selected(ids), inputs)
    assert lse.isneginf().all()
    for tensor in (out, *grads):
        assert not tensor.any()


def test_some_rows_without_a_block():
    """Guards against an empty row that spoils its tile."""
    inputs = draw(case_of(2, tokens=40))
    ids = reference_ids(inputs)
    ids[:, ::3] = -1
    check(selected(ids), inputs)


@pytest.mark.parametrize("heads_per_group", [2, 16])
def test_unselected_blocks_do_not_matter(heads_per_group):
    """Guards against reading a block nobody selected, or tokens past the last row: 0 * NaN is NaN."""
    inputs = rows_of(draw(case_of(heads_per_group, tokens=90)), slice(0, 70))
    ids = torch.zeros(1, 70, 1, 2, dtype=torch.int32)
    ids[:, 48:, :, 1] = 3
    ids[:, 64:, :, 0] = 4
    branch = selected(ids)
    clean = run(branch, inputs)
    spoiled = poisoned(poisoned(inputs, branch, slice(16, 48)), branch, slice(70, 90))
    assert_same(run(branch, spoiled), clean)


@pytest.mark.parametrize("layout", ["slice of a fused projection", "heads before tokens", "every other dim"])
def test_strides_do_not_matter(layout):
    """Guards against tensors read as if they were contiguous."""
    inputs = draw(case_of(4, (16, 16), tokens=20, groups=2))
    branch = branch_of(inputs)
    assert_same(run(branch, in_layout(inputs, layout)), run(branch, inputs))


def gradients(inputs, ids, gate=None, partial_sum=None, piece_rows=2048):
    """[d query, d key, d value] of the inner function, with what the whole op gives it."""
    where = selected_place(inputs.query, inputs.selected[0], *place(inputs))
    usable = usable_ids(ids.to(DEVICE), where)
    out, lse = room.selected_forward(inputs.query, *inputs.selected, usable, *place(inputs))
    grad_out = upstream(inputs, selected(ids))
    delta = row_sums(grad_out, out)
    if gate is not None:
        delta = delta * gate
    grad_query = torch.empty_like(inputs.query)
    arguments = (grad_out, inputs.query, *inputs.selected, usable, lse, delta, gate)
    selected_query_gradient(*arguments, partial_sum, grad_query, where)
    return [grad_query, *selected_key_gradients(*arguments, where, piece_rows)]


@pytest.mark.parametrize(
    ("case", "room_for_pieces"),
    [
        *((case_of(4, tokens=70, groups=2), rooms) for rooms in (1, 2, 4)),
        (PACKED["one_long_many_short"], 2),
    ],
    ids=["1", "2", "4", "packed"],
)
def test_a_list_in_pieces(case, room_for_pieces, monkeypatch):
    """Guards against a piece that is dropped or added twice, and lists for which there was no room."""
    monkeypatch.setattr(selected_key_gradient, "_SPLIT_BLOCKS", room_for_pieces)
    inputs = draw(case)
    ids = reference_ids(inputs)
    branch = selected(ids)
    grad_out = upstream(inputs, branch)
    low, gold = (expected(branch, x, grad_out)[2:] for x in (inputs, inputs.to(torch.float64)))
    for name, *results in zip(GRADIENTS, gradients(inputs, ids, piece_rows=16), low, gold, strict=True):
        terms = terms_of(name, inputs, branch, grad_out)
        assert_within_budget(name, *results, gradient=True, cancelling=terms)


@pytest.mark.parametrize("heads_per_group", [3, 16])
def test_a_gate_scales_what_reaches_the_branch(heads_per_group):
    """Guards against a gate of the wrong row or head, or one that scales d query but not d value."""
    inputs = draw(case_of(heads_per_group, tokens=40, groups=2))
    ids = reference_ids(inputs)
    branch = selected(ids)
    gate = inputs.gates[..., 1]
    grad_out = upstream(inputs, branch)
    gated = [grad_out * gate[..., None], (grad_out.double() * gate[..., None].double())]
    low, gold = (
        expected(branch, x, grad)[2:]
        for x, grad in zip((inputs, inputs.to(torch.float64)), gated, strict=True)
    )
    for name, *results in zip(GRADIENTS, gradients(inputs, ids, gate), low, gold, strict=True):
        terms = terms_of(name, inputs, branch, grad_out)
        assert_within_budget(name, *results, gradient=True, cancelling=terms)


def test_d_query_is_added_to_what_is_there():
    """Guards against a branch that overwrites the sum of the branches before it."""
    inputs = draw(case_of(4, tokens=20))
    ids = reference_ids(inputs)
    alone = gradients(inputs, ids)[0]
    before = torch.randn_like(alone)
    assert torch.equal(gradients(inputs, ids, partial_sum=before)[0], alone + before)
