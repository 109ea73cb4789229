"""torch's thread pool as C function pointers, so that a library without torch's headers can use it."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

from trisparse.cpu.errors import BuildError
from trisparse.cpu.notice import LOG

# of torch's stable C interface; their signatures are in csrc/interface.h
PARALLEL_FOR = "torch_parallel_for"
GET_NUM_THREADS = "torch_get_num_threads"

# of the process that imported this module, which one forked from it still knows
_IMPORTED_IN = os.getpid()


@cache
def _leave_the_pool() -> None:
    """Take one thread in all of torch, once, as its data loader does in its workers; and say so."""
    import torch

    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        LOG.warning(
            "this process was forked, and torch's thread pool stayed behind: torch computes on one thread "
            "here from now on; start processes by 'spawn'"
        )


@ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32))
def _one_thread(count: "ctypes._Pointer[ctypes.c_uint32]") -> int:
    # not at the fork: a child that never calls the kernels is none of our business
    _leave_the_pool()
    count[0] = 1
    return 0


# `torch_get_num_threads` for a forked process
ONE_THREAD = ctypes.cast(_one_thread, ctypes.c_void_p)


def torch_library() -> Path:
    """The library that holds torch's functions for the CPU."""
    import torch

    suffix = "dylib" if sys.platform == "darwin" else "so"
    return Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"


def thread_functions(path: Path) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """`torch_parallel_for` and `torch_get_num_threads` in the library at `path`.

    In a process forked from one that had these kernels, the second is `ONE_THREAD`: the pool's threads stay
    behind at a fork, and GNU's OpenMP would wait for them for ever.

    Raises:
        BuildError: there is no such library, or it is older than these functions.
    """
    import torch

    # some packagers keep it elsewhere; torch has loaded it, so its bare name finds it
    name = str(path) if path.exists() else path.name
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise BuildError(f"torch's library cannot be opened: {error}") from None
    try:
        functions = getattr(library, PARALLEL_FOR), getattr(library, GET_NUM_THREADS)
    except AttributeError:
        raise BuildError(
            f"torch {torch.__version__} is too old: it has no {PARALLEL_FOR}, which came with torch 2.10"
        ) from None
    parallel_for, get_num_threads = (ctypes.cast(each, ctypes.c_void_p) for each in functions)
    return parallel_for, get_num_threads if os.getpid() == _IMPORTED_IN else ONE_THREAD
