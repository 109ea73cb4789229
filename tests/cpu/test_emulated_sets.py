"""The sets for AMX and AVX-512 on processors without: all of their code, with emulated instructions."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .kernels import instruction_sets, needs_kernels

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "tools" / "emulated_cpu"
FILES = [HERE / f"test_{name}.py" for name in ("instruction_sets", "decode")]


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these sets are built on x86-64 only")
@pytest.mark.timeout(900)  # with building the kernels, and the other tests beside it
@pytest.mark.parametrize(("name", "dtype"), [("amx", "bfloat16"), ("avx512", "float32")])
def test_a_set_that_is_not_here_agrees_with_the_reference(name: str, dtype: str):
    """Guards roundings, layouts and passes of sets that most machines cannot run."""
    if name in instruction_sets():
        pytest.skip("it is here, and tested as it is")
    command = [sys.executable, "-m", "pytest", "-p", "emulated_cpu", "-o", "addopts=", "-q"]
    done = subprocess.run(
        [*command, "-k", f"{name} and {dtype}", *map(str, FILES)],
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
