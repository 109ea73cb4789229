"""Small stand-ins for the kernels' sources, and what tests of builds share."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trisparse.cpu.instructions import candidates
from trisparse.cpu.processor import Processor

INTERFACE = """
#pragma once
#include <cstdint>
#define EXPORT extern "C" __attribute__((visibility("default")))
using Range = void (*)(int64_t, int64_t, void*);
"""

DISPATCH = """
#include "interface.h"
static int32_t (*parallel_for)(int64_t, int64_t, int64_t, Range, void*);
static int32_t (*get_num_threads)(uint32_t*);
static char chosen = '-';

EXPORT uint32_t trisparse_interface_version() { return 2; }

EXPORT int32_t trisparse_initialize(void* loop, void* count) {
  parallel_for = reinterpret_cast<decltype(parallel_for)>(loop);
  get_num_threads = reinterpret_cast<decltype(get_num_threads)>(count);
  return 0;
}

EXPORT const char* trisparse_instruction_sets() {
  return ""
#ifdef TRISPARSE_WITH_AMX
      "amx,"
#endif
#ifdef TRISPARSE_WITH_AVX512_BF16
      "avx512_bf16,"
#endif
#ifdef TRISPARSE_WITH_AVX512
      "avx512,"
#endif
#ifdef TRISPARSE_WITH_PORTABLE
      "portable"
#endif
      ;
}

EXPORT int32_t trisparse_select_instruction_set(const char* name) {
  chosen = name[1];
  return 0;
}

EXPORT char chosen_letter() { return chosen; }

EXPORT uint32_t threads() {
  uint32_t count = 0;
  return get_num_threads(&count) == 0 ? count : 0;
}

// every index counts once, whichever thread takes it
static void add(int64_t begin, int64_t end, void* context) {
  auto* total = static_cast<int64_t*>(context);
  for (int64_t index = begin; index < end; ++index) __atomic_fetch_add(total, index, __ATOMIC_RELAXED);
}

EXPORT int64_t sum_below(int64_t count) {
  int64_t total = 0;
  return parallel_for(0, count, 1, add, &total) == 0 ? total : -1;
}
"""

PORTABLE = """
int portable_lanes() {
#ifdef __AVX2__
  return 8;
#else
  return 4;
#endif
}
"""

# wrong flags fail to compile
AVX512 = """
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "flags of AVX-512 are missing"
#endif
#if !defined(__FMA__) || !defined(__F16C__)
#error "flags of AVX2 are missing"
#endif
int avx512_lanes() { return 16; }
"""

AVX512_BF16 = """
#if !defined(__AVX512BF16__) || !defined(__AVX512VL__)
#error "flags of AVX-512 with bfloat16 are missing"
#endif
int avx512_bf16_lanes() { return 32; }
"""

AMX = """
// clang names these macros without the underscore inside, until it follows gcc
#if !(defined(__AMX_TILE__) || defined(__AMXTILE__)) || !(defined(__AMX_BF16__) || defined(__AMXBF16__))
#error "flags of AMX are missing"
#endif
#ifndef __AVX512BF16__
#error "flags of AMX are missing"
#endif
int amx_rows() { return 16; }
"""

# every set has its own
SHARED = """
#define NAME_(set) passes_of_##set
#define NAME(set) NAME_(set)
#include TRISPARSE_ENGINE
int NAME(TRISPARSE_SET)() { return rows_of_engine; }
"""

SOURCES = {
    "engine_amx.h": "#ifndef __AVX512F__\n#error flags\n#endif\nconstexpr int rows_of_engine = 16;\n",
    "engine_bfloat16.h": "#ifndef __AVX512F__\n#error flags\n#endif\nconstexpr int rows_of_engine = 8;\n",
    "engine_float.h": "constexpr int rows_of_engine = 1;\n",
    "interface.h": INTERFACE,
    "dispatch.cpp": DISPATCH,
    "portable.cpp": PORTABLE,
    "avx512.cpp": AVX512,
    "avx512_bf16.cpp": AVX512_BF16,
    "amx.cpp": AMX,
    "shared.cpp": SHARED,
}

# makes the compiler a shell script -> a file that the script may write to
Script = Callable[..., Path]
# text of a program that includes our headers -> the program
Program = Callable[[str], Path]
# words of the command line -> exit code, stdout, stderr
Call = Callable[..., tuple[int, str, str]]
# what was logged so far
Messages = Callable[[], list[str]]

_SETS = candidates(Processor("x86_64"))
(_VENDOR,) = {one.vendor for one in _SETS if one.vendor}
EVERYTHING = Processor("x86_64", frozenset(name for one in _SETS for name in one.features), _VENDOR)

CHILD = """
import logging, sys
from pathlib import Path
from trisparse.cpu.build import build
logging.basicConfig(level=logging.INFO, format="%(message)s")
print("fresh" if build(Path(sys.argv[1]), Path(sys.argv[2])).fresh else "found")
"""


def start(sources: Path, folder: Path, **options) -> subprocess.Popen:
    """Another process that builds `sources` in `folder`."""
    command = [sys.executable, "-c", CHILD, str(sources), str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


def names(folder: Path) -> list[str]:
    """What is in the cache, lock files and logs left aside."""
    return [path.name for path in folder.iterdir() if path.suffix not in (".lock", ".log")]


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message of an error, which must be one line."""
    text = str(error.value)
    assert "\n" not in text
    return text
