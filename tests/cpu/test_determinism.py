"""The same call gives the same bits, whatever runs beside it and however the work is shared out."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.cpu.library import library
from trisparse.cpu.threads import thread_functions, torch_library
from trisparse.invariance import batch_invariant

from .kernels import CONFIG, assert_same_bits, draw, grad_of, instruction_sets, needs_kernels, run

pytestmark = needs_kernels
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SETS = pytest.mark.parametrize("instructions", instruction_sets())
# (H, G): tiles of one token's heads, of parts of tokens, of several tokens, and of one head
HEADS = pytest.mark.parametrize(("heads", "groups"), [(16, 1), (6, 1), (10, 2), (2, 2)])
# for one thread, and just enough work to be shared out
TINY = {"tokens": 83, "heads": 6, "head_dim": 20, "value_dim": 12}
SHARED = {"batch": 1, "tokens": 179, "head_dim": 32, "value_dim": 40}
# prints a hash of a forward and a backward, and of one of many short rows
HASHES = """
import hashlib
import torch
from cpu.kernels import draw, run

threads = torch.get_num_threads()
for dtype in (torch.float32, torch.bfloat16):
    for sizes in ({"tokens": 333}, {"batch": 60, "tokens": 70, "heads": 4, "head_dim": 32}):
        # PyTorch's own sigmoid, of the gates, depends on where threads part
        torch.set_num_threads(1)
        inputs = draw(dtype, **sizes)
        torch.set_num_threads(threads)
        digest = hashlib.sha256()
        for tensor in run(inputs):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        print(digest.hexdigest())
"""
RangeFunction = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
ParallelFor = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, RangeFunction, ctypes.c_void_p
)
GetNumThreads = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32))


@pytest.fixture
def threads():
    """Sets the number of torch's threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@HEADS
@DTYPES
@SETS
def test_number_of_threads_does_not_matter(select, threads, instructions, dtype, heads, groups):
    """Guards against sums whose order depends on how rows are cut into tasks, and against races."""
    select(instructions)
    inputs = draw(dtype, heads=heads, groups=groups, head_dim=32, value_dim=40)
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(run(inputs))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("bounds", [None, (0, 1000, 1001, 1005, 4096)], ids=["one", "documents"])
def test_parts_of_a_long_call_do_not_matter(threads, bounds):
    """Guards against window keys packed for other rows: a long backward packs them part by part."""
    small = SparseConfig(num_selected=4, window=100)
    sizes = {"batch": 1, "tokens": 4096, "heads": 16, "groups": 1, "head_dim": 16, "value_dim": 16}
    inputs = draw(**sizes, cu_seqlens=bounds, config=small)
    # 64 chunks: two parts for one thread, one for two
    results = []
    for count in (1, 2):
        threads(count)
        results.append(run(inputs))
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("sizes", [TINY, SHARED], ids=["one thread", "two threads"])
@DTYPES
@SETS
def test_many_repeats_are_equal(select, threads, instructions, dtype, sizes):
    """Guards against a race that shows once in many runs, and memory that is read before it is written."""
    select(instructions)
    threads(2)
    inputs = draw(dtype, **sizes)
    first = run(inputs)
    for _ in range(50):
        assert_same_bits(run(inputs), first)
    for _ in range(100):
        assert torch.equal(trisparse.sparse_attention(*inputs.all_arguments, backend="cpu"), first[0])


@DTYPES
def test_rows_of_a_large_batch_are_what_they_are_alone(threads, dtype):
    """Guards against tasks of many short rows that meet in one place."""
    threads(2)
    inputs = draw(dtype, batch=60, tokens=70, heads=4, head_dim=32)
    grad = grad_of(inputs)
    together = run(inputs, grad)
    assert_same_bits(run(inputs, grad), together)
    for row in (0, 29, 59):
        alone = run(inputs.with_tensors(tuple(x[row : row + 1] for x in inputs.tensors)), grad[row : row + 1])
        assert_same_bits([x[row : row + 1] for x in together], alone)


def test_fresh_processes_give_the_same_bits():
    """Guards against results that depend on addresses, or on what a process did before."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", HASHES],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.split()
        for threads in ("1", "2")
    ]
    assert len(outputs[0]) == len(set(outputs[0])) == 4
    assert outputs[0] == outputs[1]


@pytest.fixture
def pool_calls():
    """The threads that were asked for, call by call, of a pool of two that runs all in this one."""
    calls = []

    @ParallelFor
    def parallel_for(begin, end, _grain, function, context):
        calls.append(end - begin)
        function(begin, end, context)
        return 0

    @GetNumThreads
    def get_num_threads(count):
        count[0] = 2
        return 0

    initialize = library().functions.trisparse_initialize
    initialize(*(ctypes.cast(each, ctypes.c_void_p) for each in (parallel_for, get_num_threads)))
    yield calls
    initialize(*thread_functions(torch_library()))


def test_small_call_stays_on_one_thread(pool_calls):
    """Guards against threads that are woken for less work than waking them costs."""
    run(draw(**TINY))
    assert pool_calls == []
    run(draw(**SHARED))
    assert set(pool_calls) == {2}


@HEADS
@DTYPES
@SETS
def test_a_row_of_the_batch_is_what_it_is_alone(select, instructions, dtype, heads, groups):
    """Guards against tasks cut by the size of the batch, on which a row's sums then depend."""
    select(instructions)
    inputs = draw(dtype, batch=3, tokens=390, heads=heads, groups=groups, head_dim=32, value_dim=24)
    grad = grad_of(inputs)
    together = run(inputs, grad)
    alone = run(inputs.with_tensors(tuple(x[1:2] for x in inputs.tensors)), grad[1:2])
    assert_same_bits([x[1:2] for x in together], alone)


@HEADS
@DTYPES
@SETS
def test_rows_from_the_middle_equal_those_of_the_whole(select, instructions, dtype, heads, groups):
    """Guards against sums that begin at the first row of a chunk instead of the first tile of keys."""
    select(instructions)
    inputs = draw(dtype, batch=1, heads=heads, groups=groups, head_dim=32, value_dim=24)
    whole = trisparse.sparse_attention(*inputs.all_arguments, backend="cpu")
    for start in (1, 7, 320, 500, 610):
        rows = inputs.with_tensors((inputs.query[:, start:], *inputs.tensors[1:-1], inputs.gates[:, start:]))
        with batch_invariant():
            out = trisparse.sparse_attention(*rows.all_arguments, backend="cpu", query_start=start)
        assert torch.equal(out, whole[:, start:]), start


@DTYPES
def test_query_gradient_of_rows_from_the_middle_equals_that_of_the_whole(dtype):
    """Guards against a backward whose sums begin at the first row of a chunk."""
    inputs = draw(dtype, batch=1, heads=6, groups=1)
    grad = grad_of(inputs)
    whole = run(inputs, grad)
    for start in (7, 500):
        rows = inputs.with_tensors((inputs.query[:, start:], *inputs.tensors[1:-1], inputs.gates[:, start:]))
        with batch_invariant():
            part = run(rows, grad[:, start:], query_start=start)
        for index in (0, 1, 8):
            assert torch.equal(part[index], whole[index][:, start:])


@DTYPES
def test_select_blocks_gives_the_ids_of_the_whole_op(dtype):
    """Guards against ids that depend on whether values are attended in the same pass."""
    inputs = draw(dtype)
    place = (CONFIG.as_ints(), 0.125, None, 0, "cpu")
    ids = torch.ops.trisparse.select_blocks(inputs.query, inputs.compressed[0], *place)
    *_, whole = torch.ops.trisparse.sparse_forward(*inputs.tensors, False, *place)
    _, _, parts = torch.ops.trisparse.compressed_select_forward(inputs.query, *inputs.compressed, *place)
    assert torch.equal(ids, whole)
    assert torch.equal(ids, parts)


def test_two_python_threads_at_once():
    """Guards against scratch memory that two calls share."""
    calls = [draw(seed=seed, tokens=333) for seed in (1, 2)]
    wanted = [run(inputs) for inputs in calls]
    found: list[list] = [[], []]

    def repeat(index):
        found[index] = [run(calls[index]) for _ in range(5)]

    workers = [threading.Thread(target=repeat, args=(index,)) for index in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results, exact in zip(found, wanted, strict=True):
        assert len(results) == 5
        for result in results:
            assert_same_bits(result, exact)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# the warning is about what this test does on purpose
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_computes(threads):
    """Guards against locks or tile settings that a fork leaves behind; one thread, as in a data loader."""
    threads(2)
    inputs = draw(torch.bfloat16, tokens=333)
    wanted = run(inputs)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            # torch's own pool does not survive a fork
            torch.set_num_threads(1)
            with torch.no_grad():
                out = trisparse.sparse_attention(*inputs.all_arguments, backend="cpu")
            code = 0 if torch.equal(out, wanted[0]) else 1
        finally:
            os._exit(code)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
