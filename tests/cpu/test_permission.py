"""AMX where the system does not grant its tiles: the next set takes over, and reports say so."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trisparse.cpu import library as library_module
from trisparse.cpu.build import SOURCES
from trisparse.cpu.errors import BuildError
from trisparse.cpu.library import library, open_cached, unavailable_reason
from trisparse.cpu.problem import DATA_TYPES

from .standin import EVERYTHING, Call, one_line

pytestmark = [
    pytest.mark.usefixtures("clean_environment", "real_compiler"),
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64",
        reason="AMX is asked for on x86-64 Linux only",
    ),
]

# the product's own dispatcher on a processor with everything and a system that answers as it is told
DISPATCHER = """
#include <cpuid.h>
#include <cstdarg>
#include <string>
#include <sys/syscall.h>
#include <unistd.h>
static long answer = 0, asked = 0;
static std::string missing;
static bool supports(const char* name) { return name != missing; }
static long system_call(long number, ...) {
  std::va_list rest;
  va_start(rest, number);
  const long code = va_arg(rest, long), feature = va_arg(rest, long);
  va_end(rest);
  ++asked;
  return number == SYS_arch_prctl && code == 0x1023 && feature == 18 ? answer : -2;
}
static int all_features(unsigned, unsigned, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
  *a = *b = *c = *d = ~0u;
  return 1;
}
#define syscall system_call
#define __get_cpuid_count all_features
#define __builtin_cpu_supports(name) supports(name)
#include "dispatch.cpp"
TRISPARSE_EXPORT void set_answer(long value) { answer = value; }
TRISPARSE_EXPORT void set_missing(const char* name) { missing = name; }
TRISPARSE_EXPORT long times_asked() { return asked; }
namespace trisparse {
static bool any(int32_t) { return true; }
static bool bfloat16(int32_t type) { return type == kBFloat16; }
const Kernels kAmxKernels = {"amx", bfloat16, nullptr, nullptr};
const Kernels kAvx512Bf16Kernels = {"avx512_bf16", bfloat16, nullptr, nullptr};
const Kernels kAvx512Kernels = {"avx512", any, nullptr, nullptr};
const Kernels kPortableKernels = {"portable", any, nullptr, nullptr};
}  // namespace trisparse
"""


@pytest.fixture
def dispatcher(tmp_path: Path, real_compiler: str) -> ctypes.CDLL:
    """A library of the dispatcher and of kernels that do nothing."""
    source, library = tmp_path / "dispatcher.cpp", tmp_path / "dispatcher.so"
    source.write_text(DISPATCHER)
    sets = [f"-DTRISPARSE_WITH_{name}" for name in ("AMX", "AVX512_BF16", "AVX512", "PORTABLE")]
    flags = ["-std=c++17", "-shared", "-fPIC", f"-I{SOURCES}", *sets]
    subprocess.run([real_compiler, *flags, str(source), "-o", str(library)], check=True)
    functions = ctypes.CDLL(str(library))
    functions.trisparse_instruction_sets.restype = ctypes.c_char_p
    functions.trisparse_instructions_for.restype = ctypes.c_char_p
    return functions


@pytest.mark.parametrize(
    ("answer", "sets", "for_bfloat16"),
    [
        pytest.param(0, "amx,avx512_bf16,avx512,portable", "amx", id="granted"),
        pytest.param(-1, "avx512_bf16,avx512,portable", "avx512_bf16", id="refused"),
        pytest.param(-22, "avx512_bf16,avx512,portable", "avx512_bf16", id="an old kernel"),
    ],
)
def test_dispatcher_asks_for_the_tiles_once_and_goes_on_without(
    dispatcher: ctypes.CDLL, answer: int, sets: str, for_bfloat16: str
) -> None:
    """Guards against tile instructions that end the process where the system did not grant them."""
    dispatcher.set_answer(ctypes.c_long(answer))
    assert dispatcher.trisparse_instruction_sets().decode() == sets
    assert dispatcher.trisparse_instructions_for(DATA_TYPES[torch.bfloat16]).decode() == for_bfloat16
    assert dispatcher.trisparse_instructions_for(DATA_TYPES[torch.float32]).decode() == "avx512"
    assert (dispatcher.trisparse_select_instruction_set(b"amx") == 0) == (answer == 0)
    assert dispatcher.times_asked() == 1


@pytest.mark.parametrize(
    ("missing", "sets"),
    [
        (b"avx512bf16", "avx512,portable"),
        (b"avx512vl", "portable"),
        (b"avx512f", "portable"),
        (b"sse9", "amx,avx512_bf16,avx512,portable"),
    ],
)
def test_dispatcher_leaves_out_what_the_processor_lacks(
    dispatcher: ctypes.CDLL, missing: bytes, sets: str
) -> None:
    """Guards against an instruction that ends the process: a library may have been built elsewhere."""
    dispatcher.set_missing(missing)
    assert dispatcher.trisparse_instruction_sets().decode() == sets


@pytest.fixture
def refusing(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins' folder: all sets are built, and the system then refuses AMX."""
    path = sources / "dispatch.cpp"
    text = path.read_text()
    assert '"amx,"' in text
    path.write_text(text.replace('"amx,"', '""'))
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: EVERYTHING)
    return sources


def test_refused_set_is_built_and_left_out_with_a_reason(refusing: Path, folder: Path) -> None:
    """Guards against a set that is listed as usable and is not, or that is gone without a word."""
    found = open_cached(refusing, folder)
    assert "amx" in found.build.instruction_sets
    assert found.instruction_sets == ("avx512_bf16", "avx512", "portable")
    assert found.instructions == "avx512_bf16"
    assert "refuse it to this process" in found.build.left_out["amx"]


def test_forced_set_that_is_refused_is_an_error(
    refusing: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a comparison of AMX that silently measures AVX-512."""
    monkeypatch.setenv("TRISPARSE_CPU_INSTRUCTIONS", "amx")
    with pytest.raises(BuildError, match="TRISPARSE_CPU_INSTRUCTIONS: 'amx' cannot run here") as error:
        open_cached(refusing, folder)
    assert one_line(error).endswith("choose one of avx512_bf16, avx512, portable")


def test_dtype_of_the_refused_set_gets_the_next(
    refusing: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against losing bfloat16, whose best set is the refused one and is built alone at first."""
    monkeypatch.setattr(library_module, "SOURCES", refusing)
    monkeypatch.setenv("TRISPARSE_CACHE", str(folder.parent))
    assert library(torch.bfloat16).instructions == "avx512_bf16"
    assert unavailable_reason(torch.bfloat16) is None


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("verb", ["env", "build"])
def test_verbs_say_what_is_refused(call: Call, verb: str) -> None:
    """Guards against a bug report of a slow AMX machine that does not show why."""
    code, out, err = call(verb)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "amx" in line and "refuse it to this process" in line]
    assert line.strip().startswith("without amx: " if verb == "env" else "left out: amx: ")
