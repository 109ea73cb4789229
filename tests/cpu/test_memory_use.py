"""The kernels write where they should, read what was written, and give back what they took."""

import ctypes
import gc
import os
import sys

import pytest
import torch
from decoding import make_decoding

from trisparse.cpu import attention
from trisparse.cpu.attention import BRANCHES

from .kernels import CONFIG, assert_same_bits, draw, grad_of, instruction_sets, needs_kernels, run

pytestmark = needs_kernels
SETS = pytest.mark.parametrize("instructions", instruction_sets())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# sizes that end in the middle of a tile, with the last batch row at the very end of each tensor
SIZES = {"tokens": 83, "heads": 6, "head_dim": 20, "value_dim": 12}
PLACE = (CONFIG, 0.2, None, 0)
# elements; as many bytes as a row of tiles and more
PADDING = 4096
PATTERN = -1234


class Guarded:
    """Results in the middle of larger buffers full of a pattern, in place of those that torch makes."""

    def __init__(self, monkeypatch):
        self.buffers = []
        # a function, not a method: it will be a method of tensors
        monkeypatch.setattr(
            torch.Tensor, "new_empty", lambda *given, **others: self._new_empty(*given, **others)
        )
        monkeypatch.setattr(torch, "zeros_like", self._zeros_like)

    def _make(self, shape, dtype):
        count = torch.Size(shape).numel()
        buffer = torch.full((count + 2 * PADDING,), PATTERN, dtype=dtype)
        self.buffers.append(buffer)
        return buffer[PADDING : PADDING + count].view(torch.Size(shape))

    def _new_empty(self, tensor, *shape, dtype=None):
        sizes = shape[0] if shape and not isinstance(shape[0], int) else shape
        return self._make(sizes, dtype or tensor.dtype)

    def _zeros_like(self, tensor, **_):
        return self._make(tensor.shape, tensor.dtype).zero_()

    def check(self):
        """The pattern stands before and after every result."""
        assert self.buffers
        for number, buffer in enumerate(self.buffers):
            around = torch.cat([buffer[:PADDING], buffer[-PADDING:]])
            assert (around == torch.tensor(PATTERN, dtype=buffer.dtype)).all(), f"result {number}"


@DTYPES
@SETS
def test_words_around_every_result_of_the_whole_op_stay(select, monkeypatch, instructions, dtype):
    """Guards against a store without a mask at the end of a row, tile or tensor."""
    select(instructions)
    inputs = draw(dtype, **SIZES)
    before = [x.clone() for x in inputs.tensors]
    guarded = Guarded(monkeypatch)
    out, branches, lse, ids = attention.sparse_forward(*inputs.tensors, True, *PLACE)
    assert len(guarded.buffers) == 4
    grads = attention.sparse_backward(grad_of(inputs), *inputs.tensors, branches, lse, ids, *PLACE)
    assert len(guarded.buffers) == 4 + len(grads)
    guarded.check()
    assert all(x.isfinite().all() for x in (out, *grads))
    assert_same_bits(list(inputs.tensors), before)


@DTYPES
@SETS
def test_words_around_every_result_of_the_branches_stay(select, monkeypatch, instructions, dtype):
    """Guards against a store without a mask where a branch runs alone."""
    select(instructions)
    inputs = draw(dtype, **SIZES)
    grad = grad_of(inputs)
    guarded = Guarded(monkeypatch)
    ids = attention.select_blocks(inputs.query, inputs.compressed[0], *PLACE)
    attention.compressed_select_forward(inputs.query, *inputs.compressed, *PLACE)
    for branch in BRANCHES:
        tensors = (inputs.query, *getattr(inputs, branch), *((ids,) if branch == "selected" else ()))
        saved = getattr(attention, f"{branch}_forward")(*tensors, *PLACE)
        getattr(attention, f"{branch}_backward")(grad, *tensors, *saved, *PLACE)
    # one list of ids, three results with ids, and of each branch two results and three gradients
    assert len(guarded.buffers) == 1 + 3 + 3 * 5
    guarded.check()


@DTYPES
@SETS
def test_words_around_every_result_of_a_recomputing_backward_stay(select, monkeypatch, instructions, dtype):
    """Guards against a store without a mask where branches are computed again from the ids."""
    select(instructions)
    inputs = draw(dtype, **SIZES)
    *_, ids = attention.sparse_forward(*inputs.tensors, False, *PLACE)
    guarded = Guarded(monkeypatch)
    attention.sparse_recompute_backward(grad_of(inputs), *inputs.tensors, ids, *PLACE)
    # branches and log-sum-exp once more, eight gradients
    assert len(guarded.buffers) == 2 + 8
    guarded.check()


@pytest.mark.parametrize("ring", [False, True], ids=["positions", "ring"])
@pytest.mark.parametrize("new_tokens", [1, 5, 70])
@DTYPES
@SETS
def test_words_around_every_result_of_a_decode_step_stay(
    select, monkeypatch, instructions, dtype, new_tokens, ring
):
    """Guards against a store without a mask in rows of different length, one of which takes no part."""
    select(instructions)
    shape = {"heads": 6, "head_dim": 20, "value_dim": 12, "dtype": dtype, "ring": ring}
    call = make_decoding([700, new_tokens, 83], new_tokens, CONFIG, **shape)
    query, *pairs, gates = call.tensors
    call.starts[1] = -1
    slots = pairs[2][0].shape[1] if ring else 0
    tensors = (query, None, *(x for pair in pairs for x in pair), gates, call.starts)
    guarded = Guarded(monkeypatch)
    out, _ = attention.decode_forward(*tensors, slots, CONFIG, 0.2)
    # two for the layout of a step, two that it fills
    assert len(guarded.buffers) == 4
    guarded.check()
    assert out.isfinite().all()
    assert not out[1].any()


@pytest.fixture
def spoiled_scratch():
    """Memory of the kernels, where the C library can, is full of NaN when it is handed out."""
    # of glibc: fresh memory is filled with the complement of the lowest byte of the number
    perturb = -6
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(perturb, 0x100)
    yield
    if mallopt:
        mallopt(perturb, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="not done where there is a GPU")
def test_memory_of_results_is_spoiled_in_every_test():
    """Guards against a fixture of all tests that fills nothing (reliability row K12)."""
    tensor = torch.ones(3)
    for made in (
        torch.empty(3),
        torch.empty_like(tensor),
        tensor.new_empty(3),
        tensor.new_empty(3).bfloat16(),
    ):
        assert made.isnan().all()
    assert (tensor.new_empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


@DTYPES
@SETS
def test_uninitialized_memory_does_not_matter(select, request, instructions, dtype):
    """Guards against results, scratch memory or padding that are read before they are written."""
    select(instructions)
    calls = [
        draw(dtype, **SIZES),
        draw(dtype, **SIZES | {"tokens": 611, "heads": 16, "groups": 1}),
        draw(dtype, **SIZES | {"batch": 1}, cu_seqlens=(0, 0, 30, 31, 83)),
        draw(dtype, **SIZES | {"tokens": 700}, query_start=697),
    ]
    wanted = [run(inputs) for inputs in calls]
    request.getfixturevalue("spoiled_scratch")
    for inputs, exact in zip(calls, wanted, strict=True):
        results = run(inputs)
        assert_same_bits(results, exact)
        # what torch hands out is spoiled in either run
        assert all(x.isfinite().all() for x in results)


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="this system has no /proc/self/statm")
def test_memory_does_not_grow_from_call_to_call():
    """Guards against scratch memory, saved tensors or addresses that outlive their call."""
    inputs = draw(torch.bfloat16, batch=1, tokens=150, heads=4)
    for _ in range(30):
        run(inputs)
    gc.collect()
    before = resident_bytes()
    for _ in range(300):
        run(inputs)
    gc.collect()
    # one query per call would be 23 MB
    assert resident_bytes() - before < 8 * 2**20
