"""A plugin of pytest: the CPU kernels' set `amx` is there on any processor, its tiles computed without AMX.

PYTHONPATH=tools/emulated_amx pytest -p emulated_amx ...

What is tested then is all that is built on the tiles for bfloat16; the tile instructions themselves are not.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from trisparse.cpu import build, instructions, library, recipe
from trisparse.cpu.processor import Processor

ENGINE = "engine_emulated.h"
ASKED = "if (runs_amx()) "


def emulating_sources(folder: Path) -> Path:
    """A copy of the sources with the engine, whose dispatcher does not ask the processor for tiles."""
    copy = folder / "csrc"
    shutil.copytree(build.SOURCES, copy)
    shutil.copy(Path(__file__).with_name(ENGINE), copy)
    dispatcher = copy / recipe.DISPATCH
    text = dispatcher.read_text(encoding="utf-8")
    if ASKED not in text:
        raise RuntimeError(f"{recipe.DISPATCH}: expected {ASKED!r} in it")
    dispatcher.write_text(text.replace(ASKED, ""), encoding="utf-8")
    return copy


def emulating_candidates(processor: Processor) -> tuple[instructions.InstructionSet, ...]:
    """What there is without AMX and AVX-512, and the emulation in place of AMX."""
    plain = [one for one in instructions.candidates(processor) if one.name == "portable"]
    tiles = next(one for one in instructions.candidates(processor) if one.name == "amx")
    flags = next(one for one in plain if instructions.why_not(one, processor) is None)
    emulated = replace(
        tiles, flags=flags.flags, features=flags.features, probe=flags.probe, variant="", engine=ENGINE
    )
    return emulated, *plain


_FOLDER = tempfile.TemporaryDirectory(prefix="emulated-amx-")
library.SOURCES = emulating_sources(Path(_FOLDER.name))
recipe.candidates = emulating_candidates
