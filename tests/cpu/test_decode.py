"""The native kernels for few query rows against a cache, in every set of instructions."""

from dataclasses import replace

import pytest
import torch
from decoding import make_decoding
from test_decode import SMALL, check_rows

import trisparse
from trisparse import SparseConfig
from trisparse.invariance import batch_invariant
from trisparse.testing.budget import assert_within_budget

from .kernels import assert_same_bits, instruction_sets, needs_kernels, with_jump

pytestmark = needs_kernels
SETS = pytest.mark.parametrize("instructions", instruction_sets())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
MOST = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
NAN = float("nan")
WIDE = {"heads": 16, "groups": 1, "head_dim": 64, "value_dim": 64}


@pytest.fixture
def threads():
    """Sets the number of torch's threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
@DTYPES
@SETS
def test_each_set_agrees_with_the_reference(select, instructions, dtype, ring):
    """Guards against lanes, transposes or tiles in place that are right in one set of instructions only."""
    select(instructions)
    for new_tokens, shape in ((1, WIDE), (3, WIDE), (5, {"heads": 6, "groups": 2, "value_dim": 40})):
        call = make_decoding([700, new_tokens, 65, 130], new_tokens, SMALL, dtype=dtype, ring=ring, **shape)
        check_rows(call, *call.run("cpu"))


@MOST
@SETS
def test_pieces_of_a_long_row_are_joined(select, instructions, dtype):
    """Guards against pooled scores lost, or counted twice, where a piece of compressed keys ends."""
    select(instructions)
    for config in (SparseConfig(), replace(SMALL, compress_block=12, compress_stride=4, select_block=12)):
        call = make_decoding([9000], 2, config, dtype=dtype, heads=4, groups=1, ring=True)
        check_rows(call, *call.run("cpu"))


@MOST
@SETS
def test_dense_window(select, instructions, dtype):
    """Guards against a window that is cut into pieces with gaps, or weighed piece by piece."""
    select(instructions)
    config = SparseConfig(window=9000)
    call = make_decoding([9000, 4097, 3], 2, config, dtype=dtype, heads=4, groups=1)
    check_rows(call, *call.run("cpu"))


@MOST
@SETS
def test_number_of_threads_does_not_matter(select, threads, instructions, dtype):
    """Guards against pieces cut by the number of threads, and against races."""
    select(instructions)
    config = SparseConfig(window=9000)
    call = make_decoding([9000, 700, 5000, 9000], 2, config, dtype=dtype, **WIDE)
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(list(call.run("cpu")))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
@pytest.mark.parametrize("new_tokens", [1, 3])
@MOST
@SETS
def test_batch_invariant_tokens_have_the_bits_of_the_whole(select, instructions, dtype, new_tokens, ring):
    """Guards against a decoded token that adds in another order than the forward over its sequence."""
    select(instructions)
    config = SparseConfig(num_selected=6, window=100)
    call = make_decoding([700, 90, 350], new_tokens, config, dtype=dtype, heads=6, ring=ring)
    with batch_invariant():
        out, _ = call.run("cpu")
        for index, row in enumerate(call.rows):
            # the rows before the new ones are made up: they cannot matter
            before = torch.ones_like(row.query[:, :1]).expand(-1, row.query_start, -1, -1)
            gates = torch.ones_like(row.gates[:, :1]).expand(-1, row.query_start, -1, -1)
            whole = trisparse.sparse_attention(
                torch.cat([before, row.query], dim=1),
                row.compressed,
                row.selected,
                row.window,
                torch.cat([gates, row.gates], dim=1),
                config,
                backend="cpu",
            )
            assert torch.equal(out[index], whole[0, row.query_start :]), index


@MOST
def test_shared_window_in_the_batch_invariant_mode(dtype):
    """Guards against one packing for both branches where a ring, or a ragged batch, forbids it."""
    call = make_decoding([640, 130, 64], 2, SparseConfig(window=64), dtype=dtype)
    query, compressed, selected, _, gates = call.tensors
    shared = replace(call, tensors=(query, compressed, selected, selected, gates))
    copies = replace(call, tensors=(query, compressed, selected, tuple(x.clone() for x in selected), gates))
    with batch_invariant():
        assert_same_bits(list(shared.run("cpu")), list(copies.run("cpu")))


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
@MOST
@SETS
def test_logits_of_any_size(select, instructions, dtype, size):
    """Guards against exponentials that overflow, and a reference that is raised without what hangs on it."""
    select(instructions)
    call = make_decoding([1300], 2, SMALL, dtype=dtype, heads=6, groups=1)
    row = call.rows[0]
    row = row.with_tensors(((row.query * size).to(dtype), *row.tensors[1:]))
    place = {"query_start": row.query_start}
    wide = row.to(torch.float64)
    ids = trisparse.select_blocks(wide.query, wide.compressed[0], SMALL, **place, backend="reference")

    def parts(given, backend):
        where = {**place, "backend": backend}
        return [
            *trisparse.compressed_attention(given.query, *given.compressed, SMALL, **where),
            trisparse.selected_attention(given.query, *given.selected, ids, SMALL, **where),
            trisparse.window_attention(given.query, *given.window, SMALL, **where),
        ]

    results = zip(parts(row, "cpu"), parts(row, "reference"), parts(wide, "reference"), strict=True)
    for got, low, gold in results:
        assert got.isfinite().all()
        assert_within_budget(f"logits times {size}", got, low, gold)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 3e9, 1e12, 1e20])
@MOST
@SETS
def test_logits_that_jump_from_tile_to_tile(select, instructions, dtype, size):
    """Guards against a reference that is rounded when it is raised far: rows became 0."""
    select(instructions)
    config = replace(SMALL, compress_block=4, compress_stride=2, select_block=16, window=200)
    row = with_jump(make_decoding([200], 2, config, dtype=dtype, heads=6, groups=1).rows[0], size)
    wide, place = row.to(torch.float64), {"query_start": row.query_start}
    ids = trisparse.select_blocks(wide.query, wide.compressed[0], config, **place, backend="reference")

    def parts(given, backend):
        where = {**place, "backend": backend}
        return [
            *trisparse.compressed_attention(given.query, *given.compressed, config, **where),
            trisparse.selected_attention(given.query, *given.selected, ids, config, **where),
            trisparse.window_attention(given.query, *given.window, config, **where),
        ]

    results = zip(parts(row, "cpu"), parts(row, "reference"), parts(wide, "reference"), strict=True)
    for got, low, gold in results:
        assert got.isfinite().all()
        assert_within_budget(f"jump of {size}", got, low, gold)


@MOST
@SETS
def test_rising_scores_rescale_what_was_pooled(select, instructions, dtype):
    """Guards against pooled scores relative to an old reference: the last blocks would not be chosen."""
    select(instructions)
    config = SparseConfig(num_selected=6, num_initial=0, num_local=0)
    call = make_decoding([3000], 1, config, dtype=dtype, heads=4, groups=1)
    query, (key, value), *others = call.tensors
    rising = torch.linspace(0, 12, key.shape[1])[None, :, None, None] * torch.ones_like(key)
    call = replace(call, tensors=(torch.ones_like(query), (rising.to(dtype), value), *others))
    _, ids = call.run("cpu")
    # every block scores several times what the one before it does
    assert ids.flatten().tolist() == [41, 42, 43, 44, 45, 46]


@MOST
@SETS
def test_nan_stays_in_the_rows_that_see_it(select, instructions, dtype):
    """Guards against a mask that multiplies, and against NaN that a maximum swallows or spreads to lanes."""
    select(instructions)
    call = make_decoding([400, 300], 2, SMALL, dtype=dtype, heads=6, groups=1)
    out, _ = call.run("cpu")
    query, *others = call.tensors
    spoiled = query.clone()
    spoiled[0, 1, 2, 3] = NAN
    bad = replace(call, tensors=(spoiled, *others)).run("cpu")[0].isnan().any(dim=-1)
    expected = torch.zeros_like(bad)
    expected[0, 1, 2] = True
    assert torch.equal(bad, expected)
    _, _, _, (key, value), _ = call.tensors
    key = key.clone()
    # of the two new tokens, 398 and 399, the window of 9 shows this one to the first alone
    key[0, 390, 0, 5] = NAN
    result = replace(call, tensors=(*call.tensors[:3], (key, value), call.tensors[4])).run("cpu")[0]
    assert result[0, 0].isnan().all()
    assert torch.equal(result[0, 1], out[0, 1])
    assert torch.equal(result[1], out[1])


@pytest.mark.parametrize("new_tokens", [1, 30], ids=["few", "many"])
@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
def test_starts_that_do_not_fit_touch_nothing(new_tokens, ring):
    """Guards against reads and writes outside of the tensors where nobody checks what `starts` holds."""
    wrong = [2**31 - 1, -(2**31), -1, 100, 80]
    call = make_decoding([70] * 6, new_tokens, SMALL, heads=8, groups=1, ring=ring)
    query, *pairs, gates = call.tensors
    starts = torch.tensor([*wrong, 70 - new_tokens], dtype=torch.int32)
    window_ring = pairs[2][0].shape[1] if ring else 0
    out, ids = torch.ops.trisparse.decode_forward(
        query,
        None,
        *(x for pair in pairs for x in pair),
        gates,
        starts,
        window_ring,
        SMALL.as_ints(),
        32**-0.5,
        "cpu",
    )
    assert not out[:5].any()
    assert (ids[:5] == -1).all()
    wanted, wanted_ids = call.run("cpu")
    assert torch.equal(out[5], wanted[5])
    assert torch.equal(ids[5], wanted_ids[5])


@pytest.mark.parametrize("new_tokens", [1, 3, 30])
@SETS
def test_ids_of_the_parts_are_those_of_the_whole(select, instructions, new_tokens):
    """Guards against parts that are routed to other kernels than the whole op."""
    select(instructions)
    call = make_decoding([700], new_tokens, SMALL, dtype=torch.bfloat16, heads=8, groups=2, spare=0)
    row = call.rows[0]
    place = (SMALL.as_ints(), 0.2, None, row.query_start, "cpu")
    ids = torch.ops.trisparse.select_blocks(row.query, row.compressed[0], *place)
    *_, whole = torch.ops.trisparse.sparse_forward(*row.tensors, False, *place)
    _, _, parts = torch.ops.trisparse.compressed_select_forward(row.query, *row.compressed, *place)
    starts = torch.tensor([row.query_start], dtype=torch.int32)
    arguments = (row.query, None, *row.tensors[1:], starts, 0, SMALL.as_ints(), 0.2, "cpu")
    _, decoded = torch.ops.trisparse.decode_forward(*arguments)
    for other in (whole, parts, decoded):
        assert torch.equal(other, ids)
