"""The set for AMX where there is no AMX: all of its code but the tile instructions, which are emulated."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .kernels import instruction_sets, needs_kernels

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "tools" / "emulated_amx"
FILES = [HERE / f"test_{name}.py" for name in ("instruction_sets", "decode")]


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the set for AMX is built on x86-64 only")
@pytest.mark.skipif("amx" in instruction_sets(), reason="AMX is here, and not emulated")
def test_what_is_built_on_tiles_agrees_with_the_reference():
    """Guards roundings, layouts and passes of a set that most machines cannot run."""
    command = [sys.executable, "-m", "pytest", "-p", "emulated_amx", "-o", "addopts=", "-q"]
    done = subprocess.run(
        [*command, "-k", "amx and bfloat16", *map(str, FILES)],
        env={**os.environ, "PYTHONPATH": str(PLUGIN)},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 100
