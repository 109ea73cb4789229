"""Many compilers at work: sources to objects, in parallel, and objects to a library."""

import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trisparse.cpu.cache import disk_is_full
from trisparse.cpu.compiler import Compiler
from trisparse.cpu.errors import BuildError, CacheError
from trisparse.cpu.instructions import InstructionSet
from trisparse.cpu.recipe import DISPATCH, LINK_FLAGS, Recipe

# of each command: whether it succeeded, and what it wrote
Results = Sequence[tuple[bool, str]]


def compile_library(
    recipe: Recipe, compiler: Compiler, library: Path, log: Path
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Compile and link `recipe` to a file `library` -> the instruction sets in it, and set -> why it is not.

    Commands and messages go to `log`; objects are made, and removed, beside `library`.

    Raises:
        BuildError: a command failed.
        CacheError: one failed because the disk is full.
    """
    work = library.with_suffix(".work")
    work.mkdir()
    with ThreadPoolExecutor(max_workers=_processors()) as pool:
        known = pool.map(lambda one: not one.probe or compiler.knows(one.flags, one.probe, work), recipe.sets)
        sets, left_out = _choose(recipe, list(known))
        if not sets:
            raise BuildError(f"{compiler.name} can build none of the instruction sets asked for")
        commands = _commands(recipe, sets, work)
        results = list(pool.map(lambda arguments: compiler.run(arguments, work), commands.values()))
    if all(done for done, _ in results):
        objects = [arguments[-1] for arguments in commands.values()]
        commands["linking"] = (*LINK_FLAGS, *recipe.extra_flags, *objects, "-o", str(library))
        results.append(compiler.run(commands["linking"], work))
    _write_log(log, compiler, commands.values(), results)
    for name, (done, text) in zip(commands, results, strict=True):
        if not done:
            raise _failure(compiler, name, text)
    if not library.is_file():
        raise BuildError(f"{compiler.name} made no library and gave no reason")
    shutil.rmtree(work)
    return tuple(one.name for one in sets), left_out


def _commands(recipe: Recipe, sets: list[InstructionSet], work: Path) -> dict[str, tuple[str, ...]]:
    """What is compiled -> the compiler's arguments for it; the last one is the object's path."""
    commands = {DISPATCH: _command(recipe, DISPATCH, [one.macro for one in sets], work / "dispatch.o")}
    # the plainest first: of an inline function that several objects contain, the linker keeps the first
    for one in reversed(sets):
        commands[one.source] = _command(recipe, one.source, one.all_flags, work / f"{one.name}.o")
        for name in recipe.shared_sources:
            place = work / f"{one.name}.{name}.o"
            commands[f"{name} for {one.name}"] = _command(recipe, name, one.all_flags, place)
    return commands


def _command(recipe: Recipe, name: str, flags: Sequence[str], place: Path) -> tuple[str, ...]:
    return (*recipe.flags, *flags, "-c", str(recipe.sources / name), "-o", str(place))


def _choose(recipe: Recipe, known: Sequence[bool]) -> tuple[list[InstructionSet], dict[str, str]]:
    """For each name the first set that the compiler knows, and why names or better sets are left out."""
    chosen: dict[str, InstructionSet] = {}
    left_out = dict(recipe.left_out)
    for candidate, is_known in zip(recipe.sets, known, strict=True):
        if not is_known:
            left_out[candidate.label] = f"the compiler does not know {' '.join(candidate.flags)}"
        elif candidate.name not in chosen:
            chosen[candidate.name] = candidate
    return list(chosen.values()), left_out


def _processors() -> int:
    """Processors that this process may use; containers have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_log(path: Path, compiler: Compiler, commands: Iterable[Sequence[str]], results: Results) -> None:
    blocks = (
        f"$ {' '.join((*compiler.command, *arguments))}\n{text}\n"
        for arguments, (_, text) in zip(commands, results, strict=True)
    )
    path.write_text(f"{compiler}\n{''.join(blocks)}", encoding="utf-8")


def _failure(compiler: Compiler, name: str, text: str) -> BuildError:
    """The error for a failed command that wrote `text`, with the first line that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # the linker's own summary comes last and says nothing
    telling = [line for line in lines if "error:" in line.lower() or "undefined" in line]
    first = (telling or lines or ["it gave no reason"])[0]
    kind = CacheError if disk_is_full(text) else BuildError
    return kind(f"{compiler.name} failed on {name}: {first[:300]}")
