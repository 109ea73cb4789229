"""What happens when the kernels cannot go on: no memory, an exception inside, a write beyond a buffer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .kernels import needs_kernels
from .standin import Program

TESTS = Path(__file__).parents[1]

# the kernels copy keys that are one in memory; 64 MB are far less than those copies
TOO_LARGE = """
import gc, resource, weakref
import torch, trisparse

def attend(batch, blocks):
    query = torch.ones(1, 32, 4, 64).expand(batch, -1, -1, -1)
    key = torch.ones(1, blocks, 1, 64).expand(batch, -1, -1, -1)
    alive = weakref.ref(key)
    config = trisparse.SparseConfig()
    start = 16 * blocks - 16
    try:
        out, *_ = trisparse.compressed_attention(query, key, key, config, query_start=start, backend="cpu")
    except MemoryError as error:
        return str(error), alive
    return out, alive

attend(1, 40)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, -1))
for _ in range(3):
    text, alive = attend(64, 20_000)
    assert text == "the CPU kernels ran out of memory", text
    gc.collect()
    assert alive() is None
    out, _ = attend(1, 40)
    assert torch.equal(out, torch.ones_like(out))
"""

# so many compressed blocks that a vector refuses its length, which is no lack of memory
WRONG_SIZES = """
import torch
from trisparse import SparseConfig
from trisparse.cpu.problem import Problem
from trisparse.cpu.run import run

query, key = torch.ones(1, 32, 1, 4), torch.ones(1, 32, 1, 4)
problem = Problem(query, 1, 4, SparseConfig(), 1.0, None, 0)
problem.give_branch("compressed", key=key, value=key, out=torch.ones(1, 32, 1, 4))
sizes = problem.structure
sizes.compress_block = sizes.compress_stride = sizes.select_block = 1
sizes.query_start = 2**62
try:
    run("forward", problem)
except RuntimeError as error:
    assert str(error) == (
        "the CPU kernels failed with status 3: an error inside of them, which is a fault of Trisparse"
    ), error
else:
    raise AssertionError("nothing was raised")
"""

ODD_SHAPES = """
import torch
from decoding import make_decoding
from trisparse import SparseConfig
from cpu.kernels import draw, run

SIZES = {"tokens": 83, "heads": 6, "head_dim": 20, "value_dim": 12}
config = SparseConfig(compress_block=12, compress_stride=4, select_block=12, num_selected=4, window=37)
for dtype in (torch.float32, torch.bfloat16):
    run(draw(dtype, **SIZES))
    run(draw(dtype, **SIZES | {"batch": 1}, cu_seqlens=(0, 0, 30, 31, 83), config=config))
    run(draw(dtype, **SIZES | {"tokens": 700, "head_dim": 33}, query_start=660))
    run(draw(dtype, **SIZES | {"tokens": 1, "value_dim": 1}))
    for new_tokens in (1, 3):
        for ring in (False, True):
            call = make_decoding([70, new_tokens, 645], new_tokens, config, heads=6, dtype=dtype, ring=ring)
            call.run("cpu")
"""

TOY = """
#include <stdexcept>
#include "buffer.h"
#include "kernels.h"
using namespace trisparse;
using namespace trisparse::toy;

int main(int count, char**) {
  const auto nothing = [] { return 0; };
  const auto fail = [](int, int64_t) { throw std::runtime_error("wrong"); };
  const auto starve = [](int, int64_t) { throw std::bad_alloc(); };
  const ThreadPool pool{};
  if (run_tasks(pool, 3, 1, nothing, fail) != kFailed) return 1;
  if (run_tasks(pool, 3, 1, nothing, starve) != kOutOfMemory) return 2;
  const Buffer<float> buffer(17);
  for (int index = 0; index < 16 + count; ++index) buffer[index] = 1.0f;
  return 0;
}
"""


def child(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that runs `code`, with the folder of the tests in its path."""
    path = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_kernels
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="this system has no /proc/self/statm")
def test_too_large_call_raises_and_leaves_nothing_behind():
    """Guards against one exception for all calls: its traceback kept the tensors of a failed one alive."""
    done = child(TOO_LARGE)
    assert done.returncode == 0, done.stderr


@needs_kernels
def test_any_other_exception_is_a_runtime_error():
    """Guards against C++ exceptions that cross the C interface, where they end the process."""
    done = child(WRONG_SIZES)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def toy(program: Program) -> Path:
    """A program whose tasks fail, and that writes beyond a buffer if it has arguments."""
    return program(TOY)


def test_write_beyond_a_buffer_ends_the_process(toy: Path):
    """Guards against canaries that nobody looks at, and against a task's exception that ends the process."""
    assert subprocess.run([toy], check=False).returncode == 0
    done = subprocess.run([toy, "beyond"], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert "written beyond the memory of a buffer" in done.stderr


@needs_kernels
def test_kernels_write_in_their_buffers_only(tmp_path: Path):
    """Guards against stores past the end of scratch memory (reliability row K13)."""
    # built once more, for the sets in use alone
    done = child(
        ODD_SHAPES,
        TRISPARSE_CPU_FLAGS="-DTRISPARSE_CANARIES -O1",
        TRISPARSE_CACHE=str(tmp_path / "cache"),
        TRISPARSE_CPU_INSTRUCTIONS="",
    )
    assert done.returncode == 0, done.stderr
