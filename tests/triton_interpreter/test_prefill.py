"""A prompt read through a cache: more new tokens than the kernels for decoding take."""

import pytest
import torch
from comparison import DEVICE
from decoding import check_rows, make_decoding
from operators import Operators

import trisparse.decode
from trisparse import SparseConfig
from trisparse.decode import sparse_decode
from trisparse.invariance import batch_invariant

SMALL = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=4, num_initial=1, num_local=2, window=9
)


@pytest.fixture(autouse=True)
def few_rows_are_a_prompt(monkeypatch):
    """Prompts that the interpreter reads in seconds."""
    monkeypatch.setattr(trisparse.decode, "_GPU_ROWS", 4)
    trisparse.decode._KNOWN.clear()
    yield
    trisparse.decode._KNOWN.clear()


def make(lengths, new_tokens, **others):
    return make_decoding(lengths, new_tokens, SMALL, heads=4, groups=1, head_dim=24, value_dim=40, **others)


@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
@pytest.mark.parametrize("lengths", [[30, 30], [70, 70], [30, 61]], ids=str)
def test_a_prompt_agrees_with_the_reference(lengths, ring):
    """Guards a fresh prompt, a later part of one and rows of different length; NaN lies behind the tokens."""
    call = make(lengths, 30, ring=ring)
    check_rows(call, *call.to(DEVICE).run("triton"))


@pytest.mark.parametrize("tokens", [30, 70])
def test_rows_of_one_length_are_attended_together(tokens):
    """Guards against launches for each row of a batch, and against a neighbour's influence."""
    call = make([tokens, tokens], 30, ring=True).to(DEVICE)
    with Operators() as operators:
        out, ids = call.run("triton")
    assert set(operators.ours().values()) == {1}
    for row in range(2):
        found, found_ids = call.only(row).run("triton")
        assert torch.equal(found, out[row : row + 1])
        assert torch.equal(found_ids, ids[row : row + 1])


def test_the_compressed_branch_is_passed_once():
    """Guards against a selection that makes the compressed branch's scores again."""
    with Operators() as fresh:
        make([30], 30).to(DEVICE).run("triton")
    assert fresh.ours() == {"sparse_forward": 1}
    other = torch.randn(1, 30, 4, 24, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    for lengths, more in (([70], {}), ([30], {"query_cmp": other})):
        with Operators() as later:
            make(lengths, 30).to(DEVICE).run("triton", **more)
        assert later.ours() == {"compressed_select_forward": 1, "selected_forward": 1, "window_forward": 1}


@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
def test_batch_invariant_mode_gives_the_bits_of_the_whole_forward(ring):
    """Guards against a chunk whose window branch is added in another order."""
    call = make([70, 70], 30, ring=ring).to(DEVICE)
    with batch_invariant(), Operators() as operators:
        out, _ = call.run("triton")
    assert operators.ours() == {"sparse_forward": 1}
    for index, row in enumerate(call.rows):
        place = {"query_start": row.query_start, "backend": "triton"}
        tensors = (row.query, row.compressed, row.selected, row.window, row.gates)
        query, *pairs, gates = tensors
        pairs = [tuple(x.to(DEVICE) for x in pair) for pair in pairs]
        gold = trisparse.sparse_attention(query.to(DEVICE), *pairs, gates.to(DEVICE), SMALL, **place)
        assert torch.equal(out[index : index + 1], gold)


def test_a_chunk_in_the_mode_has_the_bits_of_the_whole():
    """Guards the same against the rows of the whole forward, from where one of its tiles begins."""
    # a tile has 64 rows here, 16 tokens of 4 heads
    start, call = 48, make([70], 70).to(DEVICE)
    query, *pairs, gates = call.tensors
    # what lies behind the tokens is NaN, and no forward over a whole sequence has room for it
    blocks = SMALL.num_compressed(70)
    pairs = [tuple(x[:, :size] for x in pair) for pair, size in zip(pairs, (blocks, 70, 70), strict=True)]
    whole = trisparse.sparse_attention(query, *pairs, gates, SMALL, backend="triton")
    rows = (query[:, start:], *call.tensors[1:4], gates[:, start:])
    starts = torch.tensor([start], dtype=torch.int32, device=DEVICE)
    with batch_invariant():
        found, _ = sparse_decode(*rows, starts, SMALL, backend="triton")
    assert torch.equal(found, whole[:, start:])
