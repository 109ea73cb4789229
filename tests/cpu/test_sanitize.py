"""`make sanitize` ends with an error where the kernels have one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trisparse.cpu.build import build

from .standin import DISPATCH

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("sanitize", ROOT / "tools" / "sanitize.py")
assert _SPEC is not None and _SPEC.loader is not None
sanitize = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sanitize)

FAULTS = """
#include <cstdlib>
EXPORT int beyond(int count) {
  auto* numbers = static_cast<volatile char*>(malloc(count));
  numbers[count] = 1;
  free(const_cast<char*>(numbers));
  return 0;
}
EXPORT int sum(int a, int b) { return a + b; }
"""
CALL = "import ctypes, sys; exec('ctypes.CDLL(sys.argv[1]).' + sys.argv[2])"
LOG = """
==7== Memcheck, a memory error detector
==7==
==7== Conditional jump or move depends on uninitialised value(s)
==7==    at 0xD46F947: at::native::to(at::Tensor const&) (in /lib/libtorch_cpu.so)
==7==
==7== Invalid write of size 4
==7==    at 0x1000: trisparse::portable::store(float*, float) (vector.h:52)
==7==    by 0x2000: ffi_call (in /lib/libffi.so)
==7==
==7== Conditional jump or move depends on uninitialised value(s)
==7==    at 0xD46F947: at::native::any(at::Tensor const&) (in /lib/libtorch_cpu.so)
==7==  Uninitialised value was created by a heap allocation
==7==    at 0x4841: aligned_alloc (in /lib/vgpreload_memcheck.so)
==7==    by 0x1000: ??? (in /cache/cpu/kernels.so)
==7==
==7== ERROR SUMMARY: 3 errors from 3 contexts (suppressed: 0 from 0)
"""


@pytest.fixture
def faulty(sources: Path, folder: Path, clean_environment: pytest.MonkeyPatch) -> Path:
    """A library with faults, built as the kernels are."""
    try:
        sanitize.runtime_libraries()
    except (OSError, SystemExit) as error:
        pytest.skip(str(error))
    (sources / "dispatch.cpp").write_text(DISPATCH + FAULTS)
    clean_environment.setenv("CXX", "g++")
    clean_environment.setenv("TRISPARSE_CPU_FLAGS", sanitize.SANITIZERS)
    return build(sources, folder).path


@pytest.mark.usefixtures("plain_processor")
@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ("beyond(16)", "heap-buffer-overflow"),
        ("sum(2147483647, 1)", "signed integer overflow"),
        ("sum(1, 1)", ""),
    ],
)
def test_fault_ends_the_process(faulty: Path, call: str, wanted: str) -> None:
    """Guards against flags or preloaded libraries with which nothing is watched, or with which it goes on."""
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(faulty), call],
        env={**os.environ, "LD_PRELOAD": sanitize.runtime_libraries(), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == bool(wanted), done.stderr
    assert wanted in done.stderr


def test_reports_of_the_kernels_are_told_from_others() -> None:
    """Guards against a run that fails for torch's sake, and against one that cannot fail."""
    first, second = sanitize.kernel_errors(LOG.replace("\n==7==\n", "\n==7== \n"))
    assert "vector.h:52" in first and "libtorch" not in first
    assert "kernels.so" in second


def test_log_without_an_end_is_refused() -> None:
    """Guards against a tool that was killed and reported nothing."""
    with pytest.raises(ValueError, match="did not come to its end"):
        sanitize.kernel_errors(LOG[: LOG.index("ERROR SUMMARY")])
