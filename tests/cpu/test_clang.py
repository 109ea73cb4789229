"""Both compilers read the real sources: the kernels are built by the first that is found."""

import shutil
import subprocess
from pathlib import Path

import pytest

from trisparse.cpu.build import SOURCES
from trisparse.cpu.instructions import InstructionSet, candidates
from trisparse.cpu.processor import this_processor
from trisparse.cpu.recipe import COMMON_FLAGS, DISPATCH

SETS = candidates(this_processor())


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.label)
def test_clang_takes_the_sources_without_a_warning(tmp_path: Path, one: InstructionSet):
    """Guards against code that only g++ takes, for sets that this processor may not have."""
    clang = shutil.which("clang++")
    if clang is None:
        pytest.skip("clang++ is not installed here")
    command = [clang, "-fsyntax-only", "-Werror", *COMMON_FLAGS, *one.all_flags, one.macro]
    files = [SOURCES / name for name in (DISPATCH, one.source, "forward.cpp", "backward.cpp")]
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
