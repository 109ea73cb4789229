"""Decoding against a cache: every row gets what the reference gives it alone, however its keys are cut."""

from dataclasses import replace

import pytest
import torch
from comparison import DEVICE, NAN, relaid
from decoding import Decoding, check_rows, make_decoding

from trisparse import SparseConfig
from trisparse.triton import decode_rows

SMALL = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=4, num_initial=1, num_local=2, window=9
)
CONFIGS = {
    "small": SMALL,
    "window over pieces": replace(SMALL, window=50),
    "nothing forced": replace(SMALL, num_selected=1, num_initial=0, num_local=0, window=1),
    "odd blocks": SparseConfig(
        compress_block=6,
        compress_stride=3,
        select_block=9,
        num_selected=5,
        num_initial=2,
        num_local=1,
        window=21,
    ),
    "no overlap": SparseConfig(
        compress_block=4,
        compress_stride=4,
        select_block=4,
        num_selected=9,
        num_initial=1,
        num_local=2,
        window=5,
    ),
}
# (H, G, D, E)
HEADS = {
    "1 of 1": (1, 1, 16, 16),
    "4 of 1": (4, 1, 24, 40),
    "6 of 2": (6, 2, 20, 12),
    "16 of 1": (16, 1, 32, 16),
    "70 of 1": (70, 1, 4, 6),
}


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Short rows with several pieces of each branch."""
    monkeypatch.setattr(decode_rows, "COMPRESSED_PIECE", 8)
    monkeypatch.setattr(decode_rows, "TOKEN_PIECE", 16)


def make(lengths, new_tokens=1, config=SMALL, heads="4 of 1", **others):
    h, g, d, e = HEADS[heads]
    shape = {"heads": h, "groups": g, "head_dim": d, "value_dim": e}
    return make_decoding(lengths, new_tokens, config, **shape, **others)


# many heads take the interpreter a minute and a half: once
PLACES = [(heads, ring) for heads in HEADS for ring in (False, True) if ring or heads != "70 of 1"]


@pytest.mark.parametrize(
    ("heads", "ring"), PLACES, ids=lambda x: {False: "positions", True: "ring"}.get(x, x)
)
def test_ragged_rows_agree_with_the_reference(heads, ring):
    """Guards against another row's length, stale slots, NaN behind a row, and heads of other groups."""
    for new_tokens, lengths in ((1, [1, 100]), (3, [3, 77])):
        call = make(lengths, new_tokens, heads=heads, ring=ring)
        check_rows(call, *call.to(DEVICE).run("triton"))


# (heads, new tokens, panels): rows of several programs, of which the last has one token; and one program
# whose rows are new tokens of one head, about half of them none
PANELS = [("16 of 1", 9, 3), ("4 of 1", 17, 2), ("1 of 1", 33, 1)]


@pytest.mark.parametrize(("heads", "new_tokens", "panels"), PANELS)
def test_many_new_tokens_agree_with_the_reference(heads, new_tokens, panels, monkeypatch):
    """Guards against tokens of a second program: their rows, positions, hidden keys and pieces."""
    monkeypatch.setattr(decode_rows, "TOKEN_PIECE", 2)
    num_heads, groups, *_ = HEADS[heads]
    found = decode_rows.panel(new_tokens, num_heads // groups, 64)
    assert (found.rows, found.panels) == (64, panels)
    call = make([new_tokens + 1, 90], new_tokens, heads=heads, ring=True)
    check_rows(call, *call.to(DEVICE).run("triton"))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_agrees_with_the_reference(config):
    """Guards against blocks that are cut by a piece, and against a wrong overlap or window edge."""
    for new_tokens, lengths in ((1, [9, 120]), (3, [50, 21])):
        call = make(lengths, new_tokens, CONFIGS[config], ring=new_tokens == 1)
        check_rows(call, *call.to(DEVICE).run("triton"))


@pytest.mark.parametrize("heads", ["16 of 1", "6 of 2"])
def test_agrees_with_the_reference_in_fp16(heads):
    """Guards against pieces that are rounded before they are joined."""
    call = make([120, 40], 3, heads=heads, dtype=torch.float16, ring=True)
    check_rows(call, *call.to(DEVICE).run("triton"))


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_a_row_is_bit_for_bit_what_it_is_alone(new_tokens):
    """Guards against pieces whose length or order depends on the batch or on the room."""
    call = make([120, 9, 64], new_tokens).to(DEVICE)
    out, ids = call.run("triton")
    for row in range(3):
        one = call.only(row)
        for case in (one, in_less_room(one, len(call.rows[row].selected[0][0]))):
            found, found_ids = case.run("triton")
            assert torch.equal(found, out[row : row + 1])
            assert torch.equal(found_ids, ids[row : row + 1])


def in_less_room(call: Decoding, tokens: int) -> Decoding:
    """The row in exactly the room that it fills."""
    query, compressed, selected, window, gates = call.tensors
    blocks = call.config.num_compressed(tokens)
    pairs = (
        tuple(x[:, :blocks] for x in compressed),
        tuple(x[:, :tokens] for x in selected),
        tuple(x[:, :tokens] for x in window),
    )
    return replace(call, tensors=(query, *pairs, gates))


def test_length_of_pieces_matters_by_rounding_only():
    """Guards against a piece that is weighed by its own softmax: one piece is a softmax without a join."""
    call = make([120, 70], 1, heads="6 of 2").to(DEVICE)
    out, ids = call.run("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_rows, "COMPRESSED_PIECE", 1024)
        patch.setattr(decode_rows, "TOKEN_PIECE", 1024)
        whole, whole_ids = call.run("triton")
    assert torch.equal(ids, whole_ids)
    torch.testing.assert_close(out, whole)


def test_more_pieces_than_a_step_joins(monkeypatch):
    """Guards against a join that forgets what its first step has added up."""
    monkeypatch.setattr(decode_rows, "COMPRESSED_PIECE", 1)
    monkeypatch.setattr(decode_rows, "TOKEN_PIECE", 3)
    call = make([120, 90], config=CONFIGS["window over pieces"])
    check_rows(call, *call.to(DEVICE).run("triton"))


def test_row_that_starts_below_zero_takes_no_part():
    """Guards against a free slot of the batch that is computed, or that spoils its neighbours."""
    call = make([40, 70], 3, ring=True).to(DEVICE)
    out, ids = call.run("triton")
    starts = call.starts.clone()
    starts[1] = -2
    found, found_ids = replace(call, starts=starts).run("triton")
    assert not found[1].any()
    assert (found_ids[1] == -1).all()
    assert torch.equal(found[0], out[0])
    assert torch.equal(found_ids[0], ids[0])


def test_a_start_past_the_room_is_moved_inside():
    """Guards against reads outside of the tensors: on a GPU nobody looks at `starts` before."""
    call = make([60, 70], 1).to(DEVICE)
    query, compressed, selected, window, gates = call.tensors
    room = selected[0].shape[1]
    pairs = [tuple(x.nan_to_num(0.5) for x in pair) for pair in (compressed, selected, window)]
    arguments = (query, None, *(x for pair in pairs for x in pair), gates)
    results = []
    for start in (room - 1, 2**31 - 1):
        starts = torch.tensor([start, 69], dtype=torch.int32, device=DEVICE)
        results.append(
            torch.ops.trisparse.decode_forward(*arguments, starts, 0, SMALL.as_ints(), 0.3, "triton")
        )
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_compressed_branch_takes_its_own_query():
    """Guards against one query for all branches, or the other one for the scores."""
    call = make([90, 120], 3)
    other = torch.randn(call.tensors[0].shape, generator=torch.Generator().manual_seed(3))
    gold, gold_ids = call.run("reference", query_cmp=other)
    out, ids = call.to(DEVICE).run("triton", query_cmp=other.to(DEVICE))
    assert torch.equal(ids.cpu(), gold_ids)
    torch.testing.assert_close(out.cpu(), gold)


@pytest.mark.parametrize("layout", ["slice of a fused projection", "every other dim"])
def test_layout_does_not_matter(layout):
    """Guards against an assumed stride; NaN lies between the values that count."""
    call = make([40, 90], 3, heads="6 of 2").to(DEVICE)
    out, ids = call.run("triton")
    query, *pairs, gates = call.tensors
    pairs = [tuple(relaid(x, layout) for x in pair) for pair in pairs]
    wide = torch.full((*gates.shape[:3], 5), NAN, device=DEVICE)
    wide[..., 1:4] = gates
    strided = replace(call, tensors=(relaid(query, layout), *pairs, wide[..., 1:4]))
    found, found_ids = strided.run("triton")
    assert torch.equal(found, out)
    assert torch.equal(found_ids, ids)


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("branch", [0, 1, 2], ids=["compressed", "selected", "window"])
def test_a_gate_of_zero_removes_its_branch(branch, value):
    """Guards against 0 times NaN (K16): a branch whose gate is 0 adds exactly 0, whatever its values are."""
    call = make([40, 90], 3).to(DEVICE)
    query, *pairs, gates = call.tensors
    gates[..., branch] = 0.0
    # behind a row's tokens lies NaN already, and nobody reads it
    quiet, spoiled = list(pairs), list(pairs)
    key, values = pairs[branch]
    quiet[branch], spoiled[branch] = (key, torch.zeros_like(values)), (key, torch.full_like(values, value))
    wanted, wanted_ids = replace(call, tensors=(query, *quiet, gates)).run("triton")
    found, found_ids = replace(call, tensors=(query, *spoiled, gates)).run("triton")
    assert torch.equal(found_ids, wanted_ids)
    assert torch.equal(found, wanted)
    gates[0, 0, 0, branch] = 0.5
    open_gate, _ = replace(call, tensors=(query, *spoiled, gates)).run("triton")
    assert not open_gate[0, 0, 0].isfinite().any()


def test_ties_go_to_the_lower_block():
    """Guards against an order of equal scores by chance: without a query all scores are equal."""
    config = replace(SMALL, compress_block=4, select_block=4, num_selected=5)
    call = make([100], 1, config).to(DEVICE)
    query, *others = call.tensors
    _, ids = replace(call, tensors=(torch.zeros_like(query), *others)).run("triton")
    assert ids[0, 0, 0].tolist() == [0, 1, 2, 23, 24]


def test_no_compressed_block_and_no_row():
    """Guards against launches of no programs."""
    call = make([5, 3], 3).to(DEVICE)
    query, compressed, *others = call.tensors
    empty = tuple(x[:, :0] for x in compressed)
    starts = torch.tensor([2, 0], dtype=torch.int32, device=DEVICE)
    out, ids = call.run("triton")
    found, found_ids = replace(call, tensors=(query, empty, *others), starts=starts).run("triton")
    assert torch.equal(found, out)
    assert torch.equal(found_ids, ids)
    nothing = tuple(
        tuple(x[:0] for x in part) if isinstance(part, tuple) else part[:0] for part in call.tensors
    )
    out, ids = replace(call, tensors=nothing, starts=starts[:0]).run("triton")
    assert out.shape == (0, 3, 4, 40)
    assert ids.shape == (0, 3, 1, 4)


def test_no_new_token_gives_no_rows():
    """Guards against pieces of no tokens, by whose number something is divided."""
    call = make([5, 3], 3).to(DEVICE)
    query, *pairs, gates = call.tensors
    out, ids = replace(call, tensors=(query[:, :0], *pairs, gates[:, :0])).run("triton")
    assert out.shape == (2, 0, 4, 40)
    assert ids.shape == (2, 0, 1, 4)
