"""What the tests of this folder run on.

With TRISPARSE_REHEARSE=1 and no GPU they run the `torch` backend on the CPU instead, at small sizes: that
proves nothing about a GPU, but a test that cannot run there is found before one is at hand.
"""

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
REHEARSAL = os.environ.get("TRISPARSE_REHEARSE") == "1" and not HAS_GPU
BACKEND = "torch" if REHEARSAL else "triton"
DEVICE = "cpu" if REHEARSAL else "cuda"

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
GIB = 2**30

# tests that take much memory share one worker, so that they follow one another
one_at_a_time = pytest.mark.xdist_group("large")
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device: a rehearsal cannot run this")


def pick(full, rehearsed):
    """`full` on a GPU, `rehearsed` in a rehearsal."""
    return rehearsed if REHEARSAL else full


def require_memory(wanted: int) -> None:
    """Skip unless that many bytes are free; what this process holds for later is given back first."""
    if REHEARSAL:
        return
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < wanted:
        pytest.skip(f"needs {wanted / GIB:.0f} GiB of free GPU memory, found {free / GIB:.0f}")


def synchronize() -> None:
    if not REHEARSAL:
        torch.cuda.synchronize()
