"""torch's thread pool as C function pointers, so that a library without torch's headers can use it."""

import ctypes
import sys
from pathlib import Path

from trisparse.cpu.errors import BuildError

# of torch's stable C interface; their signatures are in csrc/interface.h
PARALLEL_FOR = "torch_parallel_for"
GET_NUM_THREADS = "torch_get_num_threads"


def torch_library() -> Path:
    """The library that holds torch's functions for the CPU."""
    import torch

    suffix = "dylib" if sys.platform == "darwin" else "so"
    return Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"


def thread_functions(path: Path) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """`torch_parallel_for` and `torch_get_num_threads` in the library at `path`.

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
    return ctypes.cast(functions[0], ctypes.c_void_p), ctypes.cast(functions[1], ctypes.c_void_p)
