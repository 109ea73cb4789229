"""Sets that this processor cannot run, or has better ones than: all of their code is run nevertheless."""

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
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="these sets are built on x86-64 only")
# a session of pytest on a processor that has nothing but what all have
PLAIN = """
import sys
import pytest
from trisparse.cpu import recipe
from trisparse.cpu.library import library
from trisparse.cpu.processor import Processor
recipe.this_processor = lambda: Processor("x86_64")
assert library().instruction_sets == ("portable",)
assert "avx2" in library().build.left_out
sys.exit(pytest.main(sys.argv[1:]))
"""


def passed_in(command: list[str], **settings: str) -> int:
    """The tests that passed in a session of pytest; none may fail."""
    done = subprocess.run(
        [sys.executable, *command, "-o", "addopts=", "-q"],
        env={**os.environ, **settings},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    return int(passed[1])


@needs_kernels
@X86
@pytest.mark.timeout(900)  # with building the kernels, and the other tests beside it
@pytest.mark.parametrize(
    ("name", "choice", "count"),
    [
        ("amx", "amx and bfloat16", 100),
        # operands and passes are those of amx: for want of time, the rest is left to `make test-emulated`
        ("avx512_bf16", "avx512_bf16 and bfloat16 and (whole_op or test_each_set_agrees)", 20),
        ("avx512", "avx512 and not avx512_bf16 and float32", 100),
    ],
)
def test_a_set_that_is_not_here_agrees_with_the_reference(name: str, choice: str, count: int):
    """Guards roundings, layouts and passes of sets that most machines cannot run."""
    if name in instruction_sets():
        pytest.skip("it is here, and tested as it is")
    command = ["-m", "pytest", "-p", "emulated_cpu", "-k", choice, *map(str, FILES)]
    assert passed_in(command, PYTHONPATH=str(PLUGIN)) > count


@needs_kernels
@X86
@pytest.mark.timeout(900)
def test_vectors_of_four_agree_with_the_reference():
    """Guards the lanes of NEON and of old processors, and half precision without instructions for it."""
    cases = "odd_dims or uneven or many_forced or whole_sequence_selected"
    whole = f"(whole_op or selection) and ({cases})"
    choice = f"portable and ({whole} or test_each_set_agrees or batch_invariant_tokens)"
    assert passed_in(["-c", PLAIN, "-k", choice, *map(str, FILES)]) > 30
