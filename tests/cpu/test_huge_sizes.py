"""Block sizes and windows far beyond the tokens that are there, up to the largest int64."""

from dataclasses import replace

import pytest
import torch
from agreement import cancelling
from decoding import make_decoding

import trisparse
from trisparse import SparseConfig
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Inputs

from .kernels import draw, grad_of, instruction_sets, needs_kernels

pytestmark = needs_kernels
SETS = pytest.mark.parametrize("instructions", instruction_sets())
SMALL = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=4,
    num_initial=1,
    num_local=1,
    window=30,
)
SHAPE = {"batch": 2, "tokens": 150, "heads": 4, "head_dim": 20, "value_dim": 12}
# sizes, and smaller ones that mean the same for up to 160 tokens: the torch backend's time grows with them
_COMPRESS = ("compress_block", "select_block")
_BLOCKS = ("compress_block", "compress_stride", "select_block")
CHANGES = {
    **{f"window {size}": ({"window": size}, {"window": 160}) for size in (2**31, 2**62, 2**63 - 1)},
    **{
        f"select_block 2**{power}": ({"select_block": 2**power}, {"select_block": 160})
        for power in (20, 30, 36, 40, 62)
    },
    "stride 16": (
        {"compress_block": 32, "compress_stride": 16, "select_block": 2**36},
        {"compress_block": 32, "compress_stride": 16, "select_block": 160},
    ),
    "stride 1": (
        {"compress_block": 1, "compress_stride": 1, "select_block": 2**62},
        {"compress_block": 1, "compress_stride": 1, "select_block": 160},
    ),
    "compress_block 2**40": (dict.fromkeys(_COMPRESS, 2**40), dict.fromkeys(_COMPRESS, 160)),
    "compress_stride 2**40": (dict.fromkeys(_BLOCKS, 2**40), dict.fromkeys(_BLOCKS, 160)),
    "everything 2**62": (
        dict.fromkeys((*_BLOCKS, "window"), 2**62),
        dict.fromkeys((*_BLOCKS, "window"), 160),
    ),
}
PLACES = {
    "rows of a batch": {},
    "documents": {"batch": 1, "cu_seqlens": (0, 5, 5, 80, 150)},
    "from the middle": {"query_start": 83},
    "few rows": {"query_start": 148},
}
CALLS = pytest.mark.parametrize("change", CHANGES)


def whole(inputs: Inputs, backend: str) -> list[torch.Tensor]:
    """Output and all gradients."""
    leaves = inputs.leaves()
    out = trisparse.sparse_attention(*leaves.all_arguments, backend=backend, **inputs.where)
    return [out, *torch.autograd.grad(out, leaves.tensors, grad_of(inputs))]


def parts(inputs: Inputs, ids: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Outputs of the branches, and the gradients of each."""
    leaves, where = inputs.leaves(), {**inputs.where, "backend": backend}
    query, config = leaves.query, leaves.config
    outs = [
        trisparse.compressed_attention(query, *leaves.compressed, config, **where)[0],
        trisparse.selected_attention(query, *leaves.selected, ids, config, **where),
        trisparse.window_attention(query, *leaves.window, config, **where),
    ]
    pairs = (leaves.compressed, leaves.selected, leaves.window)
    grads = [
        torch.autograd.grad(out, (query, *pair), grad_of(inputs))
        for out, pair in zip(outs, pairs, strict=True)
    ]
    return [*outs, *(x for each in grads for x in each)]


def check(inputs: Inputs, results: list[list[torch.Tensor]]) -> None:
    """`results`: of the kernels, of the torch backend, and of the same in fp64."""
    for index, (got, low, gold) in enumerate(zip(*results, strict=True)):
        terms = cancelling(inputs)
        assert_within_budget(f"result {index}", got, low, gold, gradient=True, cancelling=terms)


@pytest.mark.parametrize("place", PLACES)
@CALLS
@SETS
def test_sizes_beyond_the_sequence_agree_with_the_torch_backend(select, instructions, change, place):
    """Guards against sums of sizes that overflow, divisions by a cut size, and memory for no tokens."""
    select(instructions)
    huge, same = (replace(SMALL, **sizes) for sizes in CHANGES[change])
    inputs = draw(**SHAPE | PLACES[place], config=huge)
    low = replace(inputs, config=same)
    wide = low.to(torch.float64)
    ids = [
        trisparse.select_blocks(
            given.query, given.compressed[0], given.config, backend=backend, **given.where
        )
        for given, backend in ((inputs, "cpu"), (wide, "torch"))
    ]
    assert torch.equal(*ids)
    calls = ((inputs, "cpu"), (low, "torch"), (wide, "torch"))
    check(inputs, [whole(given, backend) for given, backend in calls])
    check(inputs, [parts(given, ids[1], backend) for given, backend in calls])


@pytest.mark.parametrize("new_tokens", [1, 3])
@CALLS
@SETS
def test_decoding_with_sizes_beyond_the_room_agrees_with_the_torch_backend(
    select, instructions, change, new_tokens
):
    """Guards against the same where rows have room for more tokens than they hold."""
    select(instructions)
    huge, same = (replace(SMALL, **sizes) for sizes in CHANGES[change])
    call = make_decoding([150, 3, 70], new_tokens, huge)
    out, ids = call.run("cpu")
    wanted, wanted_ids = replace(call, config=same).run("torch")
    assert torch.equal(ids, wanted_ids)
    assert_within_budget("decoded", out, wanted, wanted.double(), cancelling=16.0)
