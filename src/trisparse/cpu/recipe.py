"""Everything that decides what a built library is."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trisparse.cpu.compiler import Compiler
from trisparse.cpu.errors import BuildError
from trisparse.cpu.instructions import (
    FORCE,
    PORTABLE,
    SPECIAL_SOURCES,
    InstructionSet,
    candidates,
    why_not,
    why_not_worth,
)
from trisparse.cpu.processor import this_processor

# what Python and the sources agree on; kInterfaceVersion in csrc/interface.h
INTERFACE_VERSION = 2
COMMON_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
LINK_FLAGS = ("-shared", "-fPIC")
# knows which instruction sets are in the library, and runs on any processor
DISPATCH = "dispatch.cpp"


@dataclass(frozen=True)
class Recipe:
    """Sources and flags of a library for this processor.

    `sets`: instruction sets to try, best first; several may have one name. `left_out`: set -> why it is none
    of them. `extra_flags`: for compiler and linker, from TRISPARSE_CPU_FLAGS (sanitizers, debugging).
    """

    sources: Path
    digests: tuple[tuple[str, str], ...]
    machine: str
    sets: tuple[InstructionSet, ...]
    left_out: tuple[tuple[str, str], ...]
    extra_flags: tuple[str, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """What every source file is compiled with."""
        return (*COMMON_FLAGS, *self.extra_flags)

    @property
    def shared_sources(self) -> tuple[str, ...]:
        """Source files that are compiled for each instruction set, with its flags."""
        files = [name for name, _ in self.digests if name.endswith(".cpp")]
        return tuple(name for name in files if name != DISPATCH and name not in SPECIAL_SOURCES)

    @property
    def key(self) -> str:
        """Names the library, whatever compiler builds it."""
        sets = [[one.name, one.all_flags, one.features] for one in self.sets]
        return _digest([INTERFACE_VERSION, self.digests, self.machine, sets, self.flags, LINK_FLAGS])[:16]

    def key_with(self, compiler: Compiler) -> str:
        """Names the library built by `compiler`."""
        return f"{self.key}-{_digest([compiler.command, compiler.version])[:8]}"


def make_recipe(sources: Path, only: str | None = None) -> Recipe:
    """How the sources in a folder are built for this processor: all its instruction sets, or `only` one.

    Raises:
        BuildError: necessary sources are missing, or TRISPARSE_CPU_FLAGS cannot be read.
    """
    digests = tuple(_digests(sources))
    names = [name for name, _ in digests]
    for name in (DISPATCH, PORTABLE.source):
        if name not in names:
            raise BuildError(f"the sources are incomplete: {name} is not in {sources}")
    processor = this_processor()
    wanted = os.environ.get(FORCE, "").strip()
    sets, left_out = [], {}
    for candidate in candidates(processor):
        if only not in (None, candidate.name):
            continue
        reason = why_not(candidate, processor)
        if reason is None and candidate.name not in (wanted, only):
            reason = why_not_worth(candidate, processor)
        if candidate.source not in names:
            reason = f"{candidate.source} is not among the sources"
        if reason is None:
            sets.append(candidate)
        else:
            left_out[candidate.label] = reason
    extra = _extra_flags(os.environ.get("TRISPARSE_CPU_FLAGS", ""))
    return Recipe(sources, digests, processor.machine, tuple(sets), tuple(left_out.items()), extra)


def _extra_flags(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BuildError(f"TRISPARSE_CPU_FLAGS: {text!r} cannot be split into words: {error}") from None


def _digests(sources: Path) -> Iterator[tuple[str, str]]:
    """Name and sha256 of each source file, in order of names."""
    for path in sorted(sources.glob("*")):
        if path.suffix in (".cpp", ".h"):
            try:
                yield path.name, hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise BuildError(f"the source {path} cannot be read: {error.strerror}") from None


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
