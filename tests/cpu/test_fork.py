"""Processes forked from one that has used the kernels: they compute, on one thread, and never hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .kernels import needs_kernels

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]
TESTS = Path(__file__).parents[1]

# a parent whose pool has two threads, which a fork leaves behind; it prints how each kind of child ended
PARENT = """
import logging, multiprocessing, os, signal, sys, warnings
import torch
import trisparse
from trisparse.cpu.library import _part, _whole
from cpu.kernels import draw, grad_of

# those of Python about what is done here on purpose
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
logging.basicConfig(format="%(process)d %(levelname)s %(message)s")
torch.set_num_threads(2)
inputs = draw(tokens=333).leaves()
grad = grad_of(inputs)

def results():
    # nothing of torch's before the first call that would use its pool: that does hang in a child
    out = trisparse.sparse_attention(*inputs.all_arguments, backend="cpu")
    grads = torch.autograd.grad(out, inputs.tensors, grad)
    return [x.detach().numpy().tobytes() for x in (out, *grads)]

wanted = results()

def check():
    signal.alarm(30)
    assert results() == wanted
    signal.alarm(0)

def forked(function):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        code = function() or 0
    finally:
        os._exit(code)

def twice():
    check()
    check()

def as_grandchild():
    code = forked(check)
    check()
    return code

def with_a_library_of_its_own():
    for answer in (_part, _whole):
        answer.cache_clear()
    check()

for function in (twice, as_grandchild, with_a_library_of_its_own):
    print(function.__name__, forked(function))

process = multiprocessing.get_context("fork").Process(target=check)
process.start()
process.join(60)
print("process", process.exitcode)
process.kill()

class Attended(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        check()
        return index

loader = torch.utils.data.DataLoader(Attended(), num_workers=2, timeout=60, multiprocessing_context="fork")
print("loader", len([*loader]) - 3)
check()
print("threads", torch.get_num_threads())
"""

ENDS = dict.fromkeys(("twice", "as_grandchild", "with_a_library_of_its_own", "process", "loader"), 0)
# a child and a grandchild each; the workers of a loader have one thread anyway, and nothing to be told
WARNED = 5


def test_forked_process_computes_the_same_bits_and_says_once_that_it_is_slower() -> None:
    """Guards against a child that waits for ever for the parent's threads, forward or backward."""
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    ends = (line.split() for line in done.stdout.splitlines())
    assert {name: int(code) for name, code in ends} == ENDS | {"threads": 2}, done.stderr
    warned = [line.split()[0] for line in done.stderr.splitlines() if "WARNING this process was" in line]
    assert len(warned) == len(set(warned)) == WARNED, done.stderr
