"""What a sequence gives does not depend on its company: batch size, place, neighbours, packing."""

from functools import partial

import pytest
import torch

from trisparse import SparseConfig
from trisparse.decode import sparse_decode
from trisparse.invariance import batch_invariant
from trisparse.testing.budget import assert_within_budget

from .calls import draw, everything, forward, grad_like, make_case
from .device import BACKEND, DEVICE, pick

TOKENS = pick(1100, 90)
FEW_SLOTS = SparseConfig(compress_block=16, compress_stride=8, select_block=16, num_selected=3, window=20)
SHAPES = {"paper": ((64, 4), (192, 128)), "small groups": ((8, 4), (64, 64))}


def case_of(shape, batch):
    heads, dims = SHAPES[shape]
    return make_case(shape, heads, dims, TOKENS, batch=batch)


def rows_of(inputs, index):
    """The inputs of some batch rows."""
    return inputs.with_tensors(tuple(tensor[index].contiguous() for tensor in inputs.tensors))


def assert_equal(found, wanted):
    for place, (left, right) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(left, right), place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("batch", pick([2, 3, 7, 32], [3]))
@pytest.mark.parametrize("shape", SHAPES)
def test_row_alone_equals_the_row_in_a_batch(shape, batch, dtype):
    """Guards against a configuration or a split chosen by the size of the batch."""
    inputs = draw(case_of(shape, batch), dtype)
    grad_out = grad_like(inputs)
    together = everything(inputs, grad_out)
    for row in {0, batch // 2, batch - 1}:
        place = slice(row, row + 1)
        alone = everything(rows_of(inputs, place), grad_out[place].contiguous())
        assert_equal([tensor[place] for tensor in together], alone)


@pytest.mark.parametrize("shape", SHAPES)
def test_order_and_neighbours_do_not_matter(shape):
    """Guards against a program that reads its neighbour's rows, or sums that cross a batch row."""
    inputs = draw(case_of(shape, 5), torch.bfloat16)
    grad_out = grad_like(inputs)
    base = everything(inputs, grad_out)
    order = torch.tensor([3, 0, 4, 1, 2], device=inputs.query.device)
    permuted = everything(rows_of(inputs, order), grad_out[order])
    assert_equal(permuted, [tensor[order] for tensor in base])
    spoiled = inputs.with_tensors(tuple(tensor.clone() for tensor in inputs.tensors))
    for tensor in spoiled.tensors:
        tensor[1:] = torch.randn_like(tensor[1:]) * 100
    assert_equal([x[:1] for x in everything(spoiled, grad_out)], [x[:1] for x in base])


@pytest.mark.parametrize("shape", SHAPES)
def test_document_in_a_packed_sequence_equals_it_alone(shape):
    """Guards against tiles that are cut where the packed sequence begins, not where a document does."""
    heads, dims = SHAPES[shape]
    # in all short enough that no sum over rows is split: where it is, the split goes by the packed length.
    # Each with more blocks than slots: alone, one whose blocks are all selected takes the window's kernels
    lengths = pick([65, 600, 0, 137, 301, 64], [1, 40, 0, 7, 65])
    bounds = [sum(lengths[:count]) for count in range(len(lengths) + 1)]
    case = make_case("packed", heads, dims, bounds[-1], cu_seqlens=tuple(bounds), config=FEW_SLOTS)
    inputs = draw(case, torch.bfloat16)
    grad_out = grad_like(inputs)
    packed = everything(inputs, grad_out)
    first_block = 0
    for start, length in zip(bounds, lengths, strict=False):
        tokens = slice(start, start + length)
        blocks = slice(first_block, first_block + case.config.num_compressed(length))
        first_block = blocks.stop
        if length == 0:
            continue
        # in the order of `tensors`, and of `everything`: out, ids, gradients
        cuts = (tokens, blocks, blocks, *[tokens] * 5)
        alone = draw(make_case("alone", heads, dims, length, config=FEW_SLOTS), torch.bfloat16).with_tensors(
            tuple(x[:, cut].contiguous() for x, cut in zip(inputs.tensors, cuts, strict=True))
        )
        found = everything(alone, grad_out[:, tokens].contiguous())
        wanted = [x[:, cut] for x, cut in zip(packed, (tokens, tokens, *cuts), strict=True)]
        assert_equal(found, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_long_document_in_a_packed_sequence_agrees_with_it_alone(shape):
    """Guards against splits of long sums that count rows from the packed sequence's first."""
    heads, dims = SHAPES[shape]
    first, length, last = pick((1000, 5000, 300), (30, 140, 20))
    bounds = (0, first, first + length, first + length + last)
    inputs = draw(make_case("packed", heads, dims, bounds[-1], cu_seqlens=bounds), torch.bfloat16)
    grad_out = grad_like(inputs)
    packed = everything(inputs, grad_out)
    tokens = slice(first, first + length)
    before = inputs.config.num_compressed(first)
    blocks = slice(before, before + inputs.config.num_compressed(length))
    cuts = (tokens, blocks, blocks, *[tokens] * 5)
    alone = draw(make_case("alone", heads, dims, length), torch.bfloat16).with_tensors(
        tuple(x[:, cut].contiguous() for x, cut in zip(inputs.tensors, cuts, strict=True))
    )
    found = everything(alone, grad_out[:, tokens].contiguous())
    wanted = [x[:, cut] for x, cut in zip(packed, (tokens, tokens, *cuts), strict=True)]
    # out, ids, and the gradients of query, window and gates know no splits
    for place, (left, right) in enumerate(zip(found, wanted, strict=True)):
        if place in (0, 1, 2, 7, 8, 9):
            assert torch.equal(left, right), place
        else:
            assert_within_budget(f"result {place}", left, right, right.double(), gradient=True)


# they begin where a tile of rows begins, in whatever size of a tile, and see more blocks than are selected
CHUNKS = pick([(64, 65), (128, 141), (576, 704), (1024, TOKENS)], [(64, 65), (64, TOKENS)])


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_in_the_mode_have_the_bits_of_the_whole(shape):
    """Guards against decoding's kernels, or another cut of the cache, inside the batch-invariant mode.

    Elsewhere than at the beginning of a tile it promises no bits on a GPU: the window's keys go by tiles that
    are counted from the first key that a tile of rows sees.
    """
    heads, dims = SHAPES[shape]
    inputs = draw(make_case(shape, heads, dims, TOKENS, batch=2, config=FEW_SLOTS), torch.bfloat16)
    whole = forward(inputs)
    pairs = inputs.compressed, inputs.selected, inputs.window
    for first, stop in CHUNKS:
        starts = torch.full((2,), first, dtype=torch.int32, device=DEVICE)
        rows = inputs.query[:, first:stop], *pairs, inputs.gates[:, first:stop]
        with batch_invariant():
            found, _ = sparse_decode(*rows, starts, FEW_SLOTS, backend=BACKEND)
        # products of the rehearsal's backend round by how many rows they have
        alike = pick(torch.equal, partial(torch.allclose, rtol=0.02, atol=0.02))
        assert alike(found, whole[:, first:stop]), (first, stop)
