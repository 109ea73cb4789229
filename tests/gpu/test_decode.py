"""Decoding on a GPU: rows at real sizes, graphs, rows that do not depend on their batch, huge caches."""

import gc

import pytest
import torch

from trisparse.bench.chosen import selection_ratio
from trisparse.bench.expected import sparse_rows
from trisparse.testing.budget import assert_within_budget

from .decoding import PAPER, ROOM, SHAPES, STARTS, alone, cast, decode, draw, flat, rows_of, starts_of
from .device import GIB, needs_gpu, one_at_a_time, pick, require_memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("new_tokens", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape, new_tokens, dtype):
    """Guards against faults of the compiled kernels: ids by scores, results by the reference for them."""
    tensors, starts = draw(shape, new_tokens, len(STARTS), dtype), starts_of(STARTS)
    out, ids = decode(tensors, starts)
    assert not out[starts < 0].any()
    for row, start in enumerate(STARTS):
        if start >= 0:
            one = slice(row, row + 1)
            low = alone(rows_of(tensors, one), start)
            assert selection_ratio(ids[one], low[0], low[2][0], PAPER, start) <= 1
            gold = cast(low, torch.float64)
            results = (sparse_rows(*each, ids[one], PAPER, start) for each in (low, gold))
            assert_within_budget(f"row {row}", out[one], *results)


@pytest.mark.parametrize("shape", SHAPES)
def test_row_alone_equals_the_row_in_a_batch(shape):
    """Guards against pieces that depend on the batch or on the longest row."""
    tensors, starts = draw(shape, 2, len(STARTS), torch.bfloat16), starts_of(STARTS)
    out, ids = decode(tensors, starts)
    for row in range(len(STARTS)):
        rows = slice(row, row + 1)
        one, one_ids = decode(rows_of(tensors, rows), starts[rows])
        assert torch.equal(one, out[rows])
        assert torch.equal(one_ids, ids[rows])


@pytest.mark.parametrize("new_tokens", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_repeats_are_equal_to_the_bit(shape, new_tokens):
    """Guards against pieces that are joined in the order in which they happen to end."""
    tensors, starts = draw(shape, new_tokens, len(STARTS), torch.bfloat16), starts_of(STARTS)
    first = decode(tensors, starts)
    for _ in range(pick(50, 2)):
        for got, wanted in zip(decode(tensors, starts), first, strict=True):
            assert torch.equal(got, wanted)


@needs_gpu
@pytest.mark.parametrize("new_tokens", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_replay_equals_eager(shape, new_tokens):
    """Guards against a host synchronisation, and a launch that a graph would freeze at the first lengths."""
    static, starts = draw(shape, new_tokens, len(STARTS), torch.bfloat16), starts_of(STARTS)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            decode(static, starts)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = decode(static, starts)
    for seed in (1, 2):
        for old, new in zip(
            flat(static), flat(draw(shape, new_tokens, len(STARTS), torch.bfloat16, seed)), strict=True
        ):
            old.copy_(new)
        starts.copy_(starts_of([*STARTS[seed:], *STARTS[:seed]]))
        graph.replay()
        torch.cuda.synchronize()
        for got, wanted in zip([x.clone() for x in captured], decode(static, starts), strict=True):
            assert torch.equal(got, wanted)


@needs_gpu
def test_wild_starts_touch_nothing_outside():
    """Guards against addresses made of a start that nobody has checked."""
    tensors = draw("paper", 1, 3, torch.bfloat16)
    out, ids = decode(tensors, starts_of([2**31 - 1, -(2**31), ROOM]))
    torch.cuda.synchronize()
    assert out.isfinite().all()
    assert int(ids.max()) < PAPER.num_select_blocks(ROOM)


@needs_gpu
def test_three_hundred_steps_leave_nothing_behind():
    """Guards against pieces, scores or ids that stay with every token."""
    tensors, starts = draw("paper", 1, len(STARTS), torch.bfloat16), starts_of(STARTS)
    decode(tensors, starts)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for count in range(300):
        decode(tensors, starts)
        assert torch.cuda.memory_allocated() == before, f"after step {count}"


def far_apart(tensor, stride):
    """A copy whose rows of the batch lie `stride` elements apart."""
    size = (tensor.shape[0] - 1) * stride + tensor[0].numel()
    storage = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
    view = storage.as_strided(tensor.shape, (stride, *tensor[0].contiguous().stride()))
    return view.copy_(tensor)


@one_at_a_time
@pytest.mark.parametrize("branch", ["compressed", "selected", "window"])
def test_cache_of_more_than_two_to_the_31_elements(branch):
    """Guards against a row times its stride in 32 bits: 64 rows of 128k tokens reach there."""
    require_memory(20 * GIB)
    tensors, starts = list(draw("small groups", 2, 2, torch.bfloat16)), starts_of([STARTS[2], ROOM - 2])
    wanted = decode(tensors, starts)
    place = ["compressed", "selected", "window"].index(branch) + 1
    # divisible by 16, as the usual stride is: another binary would not be the same test
    stride = pick(2**31 + 2**10, 2**18)
    tensors[place] = tuple(far_apart(tensor, stride) for tensor in tensors[place])
    for got, expected in zip(decode(tensors, starts), wanted, strict=True):
        assert torch.equal(got, expected)
