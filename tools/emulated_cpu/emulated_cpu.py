"""A plugin of pytest: the CPU kernels' sets for AMX and AVX-512 on any x86-64, with emulated instructions.

PYTHONPATH=tools/emulated_cpu pytest -p emulated_cpu ...

The sources are those of the package but for `amx_tiles.h` and CHANGES; the functions of AVX-512 that they
call come from `immintrin.h` here.
"""

import atexit
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from trisparse.cpu import build, instructions, library, recipe
from trisparse.cpu.processor import Processor

HERE = Path(__file__).parent
# file, what it says, what the emulation needs
CHANGES = (
    (recipe.DISPATCH, "if (runs_amx()) ", ""),
    (recipe.DISPATCH, "if (runs_avx512_bf16()) ", ""),
    (recipe.DISPATCH, "if (runs_avx512()) ", ""),
    # no register is that wide
    ("softmax.h", '"+x"', '"+m"'),
)


def emulating_sources(folder: Path) -> Path:
    """A copy of the sources that does not ask the processor for anything."""
    copy = folder / "csrc"
    shutil.copytree(build.SOURCES, copy)
    # the other header too, so that a library is built anew when it changes
    for header in HERE.glob("*.h"):
        shutil.copy(header, copy)
    for name, old, new in CHANGES:
        text = (copy / name).read_text(encoding="utf-8")
        if old not in text:
            raise RuntimeError(f"{name}: expected {old!r} in it")
        (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    return copy


def emulating_candidates(processor: Processor) -> tuple[instructions.InstructionSet, ...]:
    """All sets, the special ones built with what this processor has."""
    all_sets = instructions.candidates(processor)
    plain = [one for one in all_sets if one.name == "portable"]
    had = next(one for one in plain if instructions.why_not(one, processor) is None)
    flags = (*had.flags, "-D__AVX512F__", f"-I{HERE}", "-Wno-psabi")
    special = [
        replace(one, flags=flags, features=had.features, probe=had.probe, vendor="")
        for one in all_sets
        if one.name != "portable"
    ]
    return *special, *plain


_folder = Path(tempfile.mkdtemp(prefix="emulated-cpu-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
library.SOURCES = emulating_sources(_folder)
recipe.candidates = emulating_candidates
