"""Block sizes and windows far beyond the tokens that are there, up to the largest int64."""

from dataclasses import replace

import pytest
import torch
from agreement import cancelling
from comparison import DEVICE
from decoding import make_decoding

import trisparse
from trisparse import SparseConfig
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case, Inputs, make_inputs
from trisparse.triton import selected_key_gradient
from trisparse.triton.sizes import cut_sizes

TOKENS = 70
SMALL = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=4,
    num_initial=1,
    num_local=1,
    window=30,
)
_COMPRESS = ("compress_block", "select_block")
_BLOCKS = ("compress_block", "compress_stride", "select_block")
# sizes, and smaller ones that mean the same for up to 80 tokens
CHANGES = {
    "window 2**63 - 1": ({"window": 2**63 - 1}, {"window": 80}),
    "select_block 2**21": ({"select_block": 2**21}, {"select_block": 80}),
    "select_block 2**62": ({"select_block": 2**62}, {"select_block": 80}),
    "stride 1": (
        {"compress_block": 1, "compress_stride": 1, "select_block": 2**62},
        {"compress_block": 1, "compress_stride": 1, "select_block": 80},
    ),
    "compress_block 2**40": (dict.fromkeys(_COMPRESS, 2**40), dict.fromkeys(_COMPRESS, 80)),
    "everything 2**62": (
        dict.fromkeys((*_BLOCKS, "window"), 2**62),
        dict.fromkeys((*_BLOCKS, "window"), 80),
    ),
}
PLACES = {
    "rows of a batch": {"batch": 2, "tokens": 40},
    "documents": {"cu_seqlens": (0, 5, 5, 40, TOKENS)},
    "from the middle": {"query_start": 33},
}
CALLS = pytest.mark.parametrize("change", CHANGES)


def configs(change: str) -> list[SparseConfig]:
    return [replace(SMALL, **sizes) for sizes in CHANGES[change]]


def draw(config: SparseConfig, **place) -> Inputs:
    sizes = {"batch": 1, "tokens": TOKENS, "heads": 2, "groups": 1, "head_dim": 20, "value_dim": 12}
    return make_inputs(Case(name="huge", config=config, **sizes | place), torch.float32, 0)


def results(inputs: Inputs, ids: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """The whole op and each branch: outputs, and the gradients of all they are made of."""
    leaves, where = inputs.leaves(), {**inputs.where, "backend": backend}
    query, config = leaves.query, leaves.config
    outs = [
        trisparse.sparse_attention(*leaves.all_arguments, **where),
        trisparse.compressed_attention(query, *leaves.compressed, config, **where)[0],
        trisparse.selected_attention(query, *leaves.selected, ids, config, **where),
        trisparse.window_attention(query, *leaves.window, config, **where),
    ]
    parts = (
        leaves.tensors,
        *((query, *pair) for pair in (leaves.compressed, leaves.selected, leaves.window)),
    )
    grad = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(1)).to(outs[0])
    grads = [torch.autograd.grad(out, part, grad) for out, part in zip(outs, parts, strict=True)]
    return [x.cpu() for x in (*(out.detach() for out in outs), *(x for each in grads for x in each))]


# a call takes the interpreter ten seconds: every change in one place, one change in all
CASES = [(change, "documents") for change in CHANGES] + [
    ("everything 2**62", "rows of a batch"),
    ("select_block 2**62", "from the middle"),
]


@pytest.mark.parametrize(("change", "place"), CASES)
def test_sizes_beyond_the_sequence_agree_with_the_torch_backend(change, place):
    """Guards against sizes that overflow int32, that no kernel compiles with, and a list cut to its end."""
    huge, same = configs(change)
    inputs = draw(huge, **PLACES[place])
    low = replace(inputs, config=same)
    wide = low.to(torch.float64)
    given = inputs.to(DEVICE)
    arguments = given.query, given.compressed[0], huge
    ids = trisparse.select_blocks(*arguments, backend="triton", **given.where)
    wanted = trisparse.select_blocks(wide.query, wide.compressed[0], same, backend="torch", **wide.where)
    assert torch.equal(ids.cpu(), wanted)
    found = results(given, ids, "triton")
    others = (results(each, wanted, "torch") for each in (low, wide))
    for index, (got, one, gold) in enumerate(zip(found, *others, strict=True)):
        terms = cancelling(inputs)
        assert_within_budget(f"result {index}", got, one, gold, gradient=True, cancelling=terms)


@pytest.mark.parametrize("new_tokens", [1, 3])
@CALLS
def test_decoding_with_sizes_beyond_the_room_agrees_with_the_torch_backend(change, new_tokens):
    """Guards against the same where rows have room for more tokens than they hold."""
    huge, same = configs(change)
    call = make_decoding([TOKENS, 3], new_tokens, huge, heads=2, groups=1, head_dim=20, value_dim=12)
    out, ids = call.to(DEVICE).run("triton")
    wanted, wanted_ids = replace(call, config=same).run("torch")
    assert torch.equal(ids.cpu(), wanted_ids)
    assert_within_budget("decoded", out.cpu(), wanted, wanted.double(), cancelling=16.0)


def test_leaders_of_a_long_block_are_counted_piece_by_piece(monkeypatch):
    """Guards against hidden tokens that attend: rows inside a block are counted, and only they are masked."""
    monkeypatch.setattr(selected_key_gradient, "_MOST_LEADERS", 8)
    config = replace(SMALL, select_block=48, num_selected=2)
    inputs = draw(config)
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], config, backend="torch")
    found = results(inputs.to(DEVICE), ids.to(DEVICE), "triton")
    others = (results(each, ids, "torch") for each in (inputs, inputs.to(torch.float64)))
    for index, (got, one, gold) in enumerate(zip(found, *others, strict=True)):
        assert_within_budget(f"result {index}", got, one, gold, gradient=True, cancelling=cancelling(inputs))


def test_usual_sizes_are_not_cut():
    """Guards against a binary for each length: only sizes past all positions go by the length."""
    for config in (SparseConfig(), SMALL, replace(SMALL, select_block=4096, window=2**40)):
        assert cut_sizes(config, 1) is config


SIZES = [(2**20, 2**19, 2**21), (12, 6, 6000), (1, 1, 2**63 - 1), (4500, 4500, 4500 * 2**49)]


@pytest.mark.parametrize("positions", [1, 100, 4500, 5000, 2**20, 2**22])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_cut_block_holds_all_positions(sizes, positions):
    """Guards against a size that is no legal one, that cuts a block in two, or that goes by another step."""
    config = replace(SMALL, **dict(zip(_BLOCKS, sizes, strict=True)))
    cut = cut_sizes(config, positions)
    if cut != config:
        assert positions < cut.select_block < 2 * max(positions + 1, 64) + 64 * config.compress_stride
    assert (config.select_block - cut.select_block) % 64 == 0
    assert cut.num_compressed(positions) == config.num_compressed(positions)
    assert cut.num_select_blocks(positions) == config.num_select_blocks(positions)
