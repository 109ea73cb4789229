"""The native kernels as a loaded library; the first call that needs them builds them."""

import ctypes
import os
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from trisparse.cpu.build import SOURCES, Build, build, find
from trisparse.cpu.cache import cache_folder
from trisparse.cpu.errors import BuildError, CacheError, LoadError
from trisparse.cpu.instructions import FORCE
from trisparse.cpu.notice import LOG, say
from trisparse.cpu.recipe import INTERFACE_VERSION, make_recipe
from trisparse.cpu.threads import ONE_THREAD, thread_functions, torch_library

# some containers and old kernels do not grant AMX its tiles
_REFUSED = "processor or operating system refuse it to this process"


class Library:
    """The loaded kernels.

    `functions`: its C functions, as attributes. `instruction_sets`: those that this processor can run, best
    first. `instructions`: the one in use. `build`: where it came from. `uncached`: why it is not in the
    cache, if it was built for this process alone, and its file is gone.
    """

    def __init__(self, built: Build, functions: ctypes.CDLL, uncached: str = "") -> None:
        self.build = built
        self.functions = functions
        self.uncached = uncached
        self.instruction_sets = _words(functions.trisparse_instruction_sets())
        self.instructions = ""

    def select(self, name: str) -> None:
        """Use the instruction set `name` from now on, in all threads.

        Raises:
            ValueError: this processor or this library cannot run it.
        """
        refused = name not in self.instruction_sets
        if refused or self.functions.trisparse_select_instruction_set(name.encode()) != 0:
            raise ValueError(f"{name!r} cannot run here; choose one of {', '.join(self.instruction_sets)}")
        self.instructions = name


@cache
def _whole() -> Library | str:
    """The kernels for all instruction sets, or why there are none.

    Asked once per process, as is `_part`: a build that fails takes seconds too.
    """
    try:
        return open_library(SOURCES)
    except BuildError as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error}"


@cache
def _part(dtype: torch.dtype) -> Library | str:
    """Kernels that compute in `dtype`, or why there are none.

    With all instruction sets, if they are built already or one is asked for by name, else with the best for
    `dtype` alone, which takes a third of the time to build.
    """
    try:
        if not forced() and not find(SOURCES, cache_folder()):
            return open_library(SOURCES, only=_best_set(dtype))
    except (BuildError, OSError):
        # the set cannot be had after all: another may, and if not, the answer below says why
        pass
    return _whole()


def forced() -> str:
    """The instruction set that the environment asks for, or nothing."""
    return os.environ.get(FORCE, "").strip()


def _best_set(dtype: torch.dtype) -> str | None:
    name = str(dtype).removeprefix("torch.")
    return next((one.name for one in make_recipe(SOURCES).sets if name in one.dtypes), None)


def library(dtype: torch.dtype | None = None) -> Library:
    """The kernels, built and loaded when first asked for: those that compute in `dtype`, or all.

    All of them, once they are loaded, serve every dtype: whoever selects an instruction set gets it.

    Raises:
        BuildError: they cannot be had; one line says why.
    """
    loaded = _whole.cache_info().currsize > 0
    answer = _whole() if dtype is None or loaded else _part(dtype)
    if isinstance(answer, str):
        raise BuildError(answer)
    return answer


def unavailable_reason(dtype: torch.dtype = torch.float32) -> str | None:
    """None if the kernels for `dtype` are built and loaded, which the first call does; else why not."""
    try:
        library(dtype)
    except BuildError as error:
        return str(error)
    return None


def open_library(sources: Path, folder: Path | None = None, *, only: str | None = None) -> Library:
    """The library of `sources`, from the cache in `folder` or else built for this process alone.

    `only`: the one instruction set that is wanted, by default all.

    Raises:
        BuildError: it cannot be built or loaded.
    """
    try:
        return open_cached(sources, folder or cache_folder(), only=only)
    except CacheError as error:
        LOG.warning("%s; building the CPU kernels for this process alone", error)
        return _open_private(sources, only, str(error))


def open_cached(sources: Path, folder: Path, *, force: bool = False, only: str | None = None) -> Library:
    """The library of `sources` from the cache in `folder`; what cannot be loaded is built anew, once.

    With `force` it is built anew in any case.

    Raises:
        CacheError: the cache cannot be used.
        BuildError: the library cannot be built or loaded.
    """
    built = build(sources, folder, force=force, only=only)
    try:
        return load(built)
    except LoadError as error:
        if built.fresh:
            raise
        say(f"{error}; building it anew")
        return load(build(sources, folder, force=True, only=only))


def _open_private(sources: Path, only: str | None, reason: str) -> Library:
    try:
        place = Path(tempfile.mkdtemp(prefix="trisparse-"))
    except OSError as error:
        raise BuildError(f"no temporary folder can be made either: {error.strerror}") from None
    folder = place / "cpu"
    try:
        # once loaded, a library needs its file no longer
        return load(build(sources, folder, only=only), uncached=reason)
    finally:
        # the reason of a failure may name a log
        if not any(folder.glob("*.log")):
            shutil.rmtree(place, ignore_errors=True)


def load(built: Build, uncached: str = "") -> Library:
    """Load a built library, `uncached` for a reason or not, and hand it torch's thread pool.

    Raises:
        LoadError: the file cannot be loaded, or does not have our functions.
        BuildError: torch is too old, or the instruction set asked for cannot run here.
    """
    try:
        functions = ctypes.CDLL(str(built.path))
    except OSError as error:
        raise LoadError(f"the CPU kernels cannot be loaded: {error}") from None
    _declare(functions, built.path)
    parallel_for, get_num_threads = thread_functions(torch_library())
    if functions.trisparse_initialize(parallel_for, get_num_threads) != 0:
        raise LoadError(f"the CPU kernels in {built.path} refuse torch's thread pool")
    os.register_at_fork(after_in_child=lambda: functions.trisparse_initialize(parallel_for, ONE_THREAD))
    usable = _words(functions.trisparse_instruction_sets())
    refused = {name: _REFUSED for name in built.instruction_sets if name not in usable}
    found = Library(replace(built, left_out=built.left_out | refused), functions, uncached)
    if not found.instruction_sets:
        raise BuildError(f"this processor runs none of the instruction sets in {built.path}")
    asked = forced()
    try:
        found.select(asked or found.instruction_sets[0])
    except ValueError as error:
        raise BuildError(f"{FORCE if asked else 'the CPU kernels'}: {error}") from None
    return found


def _words(text: bytes) -> tuple[str, ...]:
    return tuple(word for word in text.decode().split(",") if word)


def _declare(functions: ctypes.CDLL, path: Path) -> None:
    """Tell ctypes the signatures that are needed here, and check that both sides mean the same interface."""
    try:
        functions.trisparse_interface_version.restype = ctypes.c_uint32
        functions.trisparse_initialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        functions.trisparse_initialize.restype = ctypes.c_int32
        functions.trisparse_instruction_sets.restype = ctypes.c_char_p
        functions.trisparse_select_instruction_set.argtypes = [ctypes.c_char_p]
        functions.trisparse_select_instruction_set.restype = ctypes.c_int32
    except AttributeError as error:
        raise LoadError(f"the CPU kernels in {path} are incomplete: {error}") from None
    version = functions.trisparse_interface_version()
    if version != INTERFACE_VERSION:
        raise LoadError(f"the CPU kernels in {path} have interface {version}, not {INTERFACE_VERSION}")
