"""Whatever numbers a caller writes into `ids`, the selected branch takes them as spec 5 says (row K14)."""

import pytest
import torch
from agreement import cancelling, further
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import FEW
from test_symmetry import EACH

import trisparse
from trisparse import SparseConfig
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case, make_inputs

CONFIG = SparseConfig(
    compress_block=5, compress_stride=5, select_block=5, num_selected=2, num_initial=0, num_local=1, window=4
)
# blocks of 5 tokens: 0 to 4 for 23 tokens, most of them in the future of most rows
RUBBISH = (-(2**31), -(2**31) + 1, -123456, -2, 5, 6, 114514, 2**30 + 1, 2147480000, 2**31 - 1)
WIDER = (*RUBBISH, -(2**63), -(2**32), -(2**32) + 1, 2**32, 2**32 + 1, 2**33 + 4, 2**62, 2**63 - 1)
PLACES = {
    "alone": {"batch": 2},
    "from the middle": {"batch": 2, "query_start": 9},
    # 1, 0 and 4 blocks: an id that names one in a document names none in another
    "packed": {"batch": 1, "cu_seqlens": (0, 4, 4, 23)},
}
LAYOUTS = {
    "whole": lambda ids: ids,
    "slots first": lambda ids: ids.movedim(-1, 0).contiguous().movedim(0, -1),
    "groups first": lambda ids: ids.transpose(1, 2).contiguous().transpose(1, 2),
    "every other slot": lambda ids: ids.repeat_interleave(2, dim=-1)[..., ::2],
    "with an offset": lambda ids: torch.nn.functional.pad(ids, (3, 2), value=1)[..., 3:-2],
}


@st.composite
def tables(draw, rows, groups, batch):
    """Ids [B, Tq, G, S], unsorted and repeated, half of them blocks."""
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    slots = draw(st.integers(1, 6))
    pool = torch.tensor([*range(-1, 5)] * 3 + [*(RUBBISH if dtype == torch.int32 else WIDER)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    picked = torch.randint(len(pool), (batch, rows, groups, slots), generator=generator)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](pool[picked].to(dtype))


def documents_of(case):
    """Begin and end of each document, in tokens."""
    bounds = case.cu_seqlens or (0, case.tokens)
    return [*zip(bounds, bounds[1:], strict=False)]


def meant(ids, case):
    """Spec 5 word for word, one id after the other: the blocks that are used, ascending, -1 behind them."""
    plain = torch.full((*ids.shape[:3], 5), -1, dtype=torch.int32)
    for begin, end in documents_of(case):
        for row in range(max(begin, case.query_start), end):
            own = (row - begin) // CONFIG.select_block
            for batch in range(ids.shape[0]):
                for group in range(ids.shape[2]):
                    place = batch, row - case.query_start, group
                    used = sorted({block for block in ids[place].tolist() if 0 <= block <= own})
                    plain[place][: len(used)] = torch.tensor(used, dtype=torch.int32)
    return plain


def attend(inputs, ids, backend):
    """Output and the gradients of query, key and value."""
    leaves = inputs.leaves()
    tensors = (leaves.query, *leaves.selected)
    out = trisparse.selected_attention(*tensors, ids, CONFIG, backend=backend, **leaves.where)
    grad = (out.detach() * 4).round() / 4 + 1
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def draw_case(place, seed, dtype):
    case = Case(
        name="any ids",
        tokens=23,
        heads=6,
        groups=2,
        head_dim=8,
        value_dim=6,
        config=CONFIG,
        **PLACES[place],
    )
    return case, make_inputs(case, dtype, seed)


@pytest.mark.parametrize("place", PLACES)
@EACH
@given(seed=st.integers(0, 99), data=st.data())
@settings(FEW, max_examples=8)
def test_any_ids_mean_the_blocks_among_them(backend, dtype, place, seed, data):
    """Guards against an id that is sorted, clamped, wrapped or dereferenced before it is known to be one."""
    case, inputs = draw_case(place, seed, dtype)
    ids = data.draw(tables(23 - case.query_start, 2, case.batch))
    before = ids.clone()
    found, plain = attend(inputs, ids, backend), attend(inputs, meant(ids, case), backend)
    assert torch.equal(ids, before)
    for index, (got, wanted) in enumerate(zip(found, plain, strict=True)):
        assert torch.equal(got, wanted), index


@pytest.mark.parametrize("place", PLACES)
@EACH
@given(seed=st.integers(0, 99), data=st.data())
@settings(FEW, max_examples=6)
def test_any_ids_mean_the_same_to_every_backend(backend, dtype, place, seed, data):
    """Guards against a backend with a contract of its own."""
    case, inputs = draw_case(place, seed, dtype)
    ids = data.draw(tables(23 - case.query_start, 2, case.batch))
    # of two that round: autograd's, and one that starts its backward from a rounded output, as kernels do
    calls = (
        (inputs, backend),
        (inputs, "reference"),
        (inputs, "torch"),
        (inputs.to(torch.float64), "reference"),
    )
    results = [attend(each, ids, name) for each, name in calls]
    for index, (got, *rounded, gold) in enumerate(zip(*results, strict=True)):
        low = further(*rounded, gold)
        # query and key, whose gradients subtract
        terms = cancelling(inputs) if index in (1, 2) else 0.0
        assert_within_budget(
            f"result {index}", got, low, gold, gradient=index > 0, cancelling=terms, seed=seed
        )


@EACH
def test_one_list_may_be_expanded_to_all_rows(backend, dtype):
    """Guards against strides of zero: one list of ids for every row, group and batch row."""
    case, inputs = draw_case("alone", 1, dtype)
    ids = torch.tensor([3, 0, 2**31 - 1, 1, 3])[None, None, None].expand(2, 23, 2, 5)
    for got, wanted in zip(
        attend(inputs, ids, backend), attend(inputs, meant(ids, case), backend), strict=True
    ):
        assert torch.equal(got, wanted)
