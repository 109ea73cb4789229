"""Decoding on a GPU: rows at real sizes, captured graphs, and rows that do not depend on their batch."""

import pytest
import torch

from trisparse import SparseConfig
from trisparse.bench.chosen import selection_ratio
from trisparse.bench.expected import first_in_window, sparse_rows
from trisparse.decode import sparse_decode
from trisparse.testing.budget import assert_within_budget

from .device import BACKEND, DEVICE, needs_gpu, pick

PAPER = SparseConfig()
ROOM = pick(32768, 300)
STARTS = pick([0, 31, 1000, 8191, -1, 32000], [0, 31, 200, -1])
# (H, G, D, E)
SHAPES = pick({"paper": (64, 4, 192, 128), "small groups": (16, 4, 64, 64)}, {"small groups": (8, 4, 16, 16)})


def draw(shape, new_tokens, batch, dtype, seed=0):
    """The tensors of a call whose window is a ring."""
    heads, groups, head_dim, value_dim = SHAPES[shape]
    generator = torch.Generator(device=DEVICE).manual_seed(seed)

    def normal(*sizes):
        return torch.randn(sizes, generator=generator, device=DEVICE, dtype=dtype)

    def pair(length):
        return normal(batch, length, groups, head_dim), normal(batch, length, groups, value_dim)

    query = normal(batch, new_tokens, heads, head_dim) * 3
    gates = normal(batch, new_tokens, heads, 3).sigmoid()
    return query, pair(PAPER.num_compressed(ROOM)), pair(ROOM), pair(576), gates


def starts_of(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def decode(tensors, starts, backend=BACKEND):
    return sparse_decode(*tensors, starts, PAPER, window_ring=True, backend=backend)


def cast(tensors, dtype):
    return tuple(tuple(x.to(dtype) for x in t) if isinstance(t, tuple) else t.to(dtype) for t in tensors)


def rows_of(tensors, rows):
    return tuple(tuple(x[rows].clone() for x in t) if isinstance(t, tuple) else t[rows] for t in tensors)


def alone(tensors, start):
    """One row's query, gates, and pairs of exactly its own tokens, the window's in their order."""
    query, *pairs, gates = tensors
    stop = start + query.shape[1]
    slots = torch.arange(first_in_window(start, PAPER), stop, device=DEVICE) % 576
    places = (slice(PAPER.num_compressed(stop)), slice(stop), slots)
    return query, gates, *(tuple(x[:, at] for x in pair) for pair, at in zip(pairs, places, strict=True))


def flat(tensors):
    return [x for t in tensors for x in (t if isinstance(t, tuple) else (t,))]


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


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_replay_equals_eager(shape):
    """Guards against a host synchronisation, and a launch that a graph would freeze at the first lengths."""
    static, starts = draw(shape, 1, len(STARTS), torch.bfloat16), starts_of(STARTS)
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
            flat(static), flat(draw(shape, 1, len(STARTS), torch.bfloat16, seed)), strict=True
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
