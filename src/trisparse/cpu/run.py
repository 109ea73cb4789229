"""A call of the native kernels, and what its status means."""

import ctypes

import torch

from trisparse.cpu.library import library
from trisparse.cpu.problem import Problem

# of `Status` in csrc/interface.h
_OUT_OF_MEMORY = 1
_FAILURES = {
    2: "they do not take this call, or torch's threads did not",
    3: "an error inside of them, which is a fault of Trisparse",
}


def _error(status: int) -> Exception:
    """A new one for each call: an exception keeps what its traceback sees."""
    if status == _OUT_OF_MEMORY:
        return MemoryError("the CPU kernels ran out of memory")
    return RuntimeError(f"the CPU kernels failed with status {status}: {_FAILURES.get(status, 'unknown')}")


def run(direction: str, problem: Problem) -> None:
    """Do `problem`, whose tensors are filled.

    Raises:
        MemoryError, RuntimeError: the kernels failed.
    """
    run_words(direction, problem.dtype, problem.words)


def run_words(direction: str, dtype: torch.dtype, words: "ctypes.Array[ctypes.c_int64]") -> None:
    """The same for a problem's words alone, of tensors that the caller keeps alive."""
    status = getattr(library(dtype).functions, f"trisparse_{direction}")(ctypes.byref(words))
    if status != 0:
        raise _error(status)
