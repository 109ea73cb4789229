"""From C++ sources to a library in the cache, once for each processor and compiler."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from trisparse.cpu.cache import FOLDER_MODE, cache_folder, locked, prepare, unwritable
from trisparse.cpu.compilation import compile_library
from trisparse.cpu.compiler import Compiler, find_compiler
from trisparse.cpu.errors import BuildError
from trisparse.cpu.notice import say
from trisparse.cpu.recipe import Recipe, make_recipe
from trisparse.cpu.trust import check_owner
from trisparse.files import sha256_of, sync_file, sync_folder, write_whole

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "kernels.so"
MANIFEST = "manifest.json"
LOG = "build.log"


@dataclass(frozen=True)
class Build:
    """A library in the cache.

    `instruction_sets`: what was built in, best first; the system may yet refuse one. `left_out`: set -> why
    it was not built in, or is refused. `seconds`: what the build took. `fresh`: it was built by this call.
    """

    path: Path
    compiler: str
    instruction_sets: tuple[str, ...]
    left_out: dict[str, str]
    seconds: float
    fresh: bool


def build(
    sources: Path = SOURCES, folder: Path | None = None, *, force: bool = False, only: str | None = None
) -> Build:
    """The library of `sources` for this machine: from the cache, or compiled now.

    `folder`: the cache, by default that of the user. With `force` it is compiled in any case. `only`: name of
    the one instruction set that is wanted, by default all. Where there is no compiler (any longer), a library
    that one had built from the same sources and flags is taken.

    Raises:
        BuildError: there is no such library and none can be built.
        CacheError: the cache cannot be written or must not be trusted.
    """
    if os.name != "posix":
        raise BuildError("the CPU kernels are built on Linux and macOS only")
    folder = folder or cache_folder()
    recipe = make_recipe(sources, only)
    found = None if force else _in_cache(folder, recipe)
    if found is not None:
        return found
    compiler = find_compiler()
    key = recipe.key_with(compiler)
    prepare(folder)
    with locked(folder / f"{key}.lock"):
        # another process may have built it while this one waited
        found = None if force else _find(folder, key, recipe)
        return found or _make(recipe, compiler, folder, key)


def find(sources: Path, folder: Path) -> Build | None:
    """The library with all instruction sets of `sources`, if the cache has it.

    Raises:
        BuildError: the sources are incomplete.
        CacheError: the cache must not be trusted.
    """
    return _in_cache(folder, make_recipe(sources))


def _in_cache(folder: Path, recipe: Recipe) -> Build | None:
    try:
        compiler = find_compiler()
    except BuildError:
        return _by_any_compiler(folder, recipe)
    return _find(folder, recipe.key_with(compiler), recipe)


def _find(folder: Path, key: str, recipe: Recipe) -> Build | None:
    """The library under `key`, if it is whole."""
    place = folder / key
    if not os.path.exists(place):
        return None
    for path in (folder.parent, folder, place):
        check_owner(path)
    try:
        facts = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if sha256_of(place / LIBRARY) != facts["sha256"]:
            return None
        check_owner(place / LIBRARY)
        return Build(
            path=place / LIBRARY,
            compiler=facts["compiler"],
            instruction_sets=tuple(facts["instruction_sets"]),
            # whoever built it may have lacked other features than this processor does
            left_out={**facts["left_out"], **dict(recipe.left_out)},
            seconds=facts["seconds"],
            fresh=False,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _by_any_compiler(folder: Path, recipe: Recipe) -> Build | None:
    builds = (_find(folder, path.name, recipe) for path in sorted(folder.glob(f"{recipe.key}-????????")))
    return next((found for found in builds if found is not None), None)


def _make(recipe: Recipe, compiler: Compiler, folder: Path, key: str) -> Build:
    """Compile into a draft beside the place under `key`, then move it there whole."""
    _clear_drafts(folder, key)
    draft = folder / f".{key}.{os.getpid()}"
    began = time.perf_counter()
    say(f"building the CPU kernels, once: {', '.join(one.label for one in recipe.sets)} by {compiler}")
    try:
        draft.mkdir(mode=FOLDER_MODE)
        sets, left_out = compile_library(recipe, compiler, draft / LIBRARY, draft / LOG)
        seconds = round(time.perf_counter() - began, 2)
        made = Build(folder / key / LIBRARY, str(compiler), sets, left_out, seconds, fresh=True)
        _seal(made, draft)
        _move(draft, folder / key)
    except OSError as error:
        raise unwritable(folder, error) from None
    except BuildError as error:
        raise _with_log(error, draft / LOG, folder / f"{key}.log") from None
    finally:
        # compilers that outlived their process may have been in the way of the first clearing
        _clear_drafts(folder, key)
    say(f"built in {made.seconds:.1f} s: {', '.join(made.instruction_sets)}")
    return made


def _clear_drafts(folder: Path, key: str) -> None:
    """Remove drafts of ours and of processes that were killed: whoever holds the lock is the only builder."""
    for draft in folder.glob(f".{key}.*"):
        shutil.rmtree(draft, ignore_errors=True)


def _with_log(error: BuildError, log: Path, kept: Path) -> BuildError:
    """`error` with the path of the whole log, moved to where it is `kept`."""
    try:
        os.replace(log, kept)
    except OSError:
        return error
    return type(error)(f"{error}; the whole log: {kept}")


def _seal(made: Build, draft: Path) -> None:
    """Write down what the library must be, after it is on the disk."""
    # whatever the umask was: nobody but the owner may write what we shall load
    library = draft / LIBRARY
    library.chmod(0o755)
    sync_file(library)
    facts = {
        "sha256": sha256_of(library),
        "compiler": made.compiler,
        "instruction_sets": made.instruction_sets,
        "left_out": made.left_out,
        "seconds": made.seconds,
    }
    write_whole(draft / MANIFEST, json.dumps(facts, indent=1).encode())


def _move(draft: Path, place: Path) -> None:
    """Put `draft` in its place, in one step; what is there already makes way first."""
    if place.exists():
        aside = draft.with_name(f"{draft.name}.old")
        os.rename(place, aside)
        shutil.rmtree(aside, ignore_errors=True)
    os.rename(draft, place)
    sync_folder(place.parent)
