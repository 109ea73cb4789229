"""Run the tests of the CPU kernels so that memory errors and undefined behaviour end them.

python tools/sanitize.py

First with AddressSanitizer and UBSan in all instruction sets, then, where it is installed, under valgrind's
memcheck, which knows no AVX-512, in the portable one. Each builds a library for itself, in a cache that is
removed afterwards. Neither sees the loads and stores of AMX tiles; tests/cpu/test_memory_use.py looks around
those.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEBUGGING = "-O1 -g -fno-omit-frame-pointer"
SANITIZERS = f"{DEBUGGING} -fsanitize=address,undefined -fno-sanitize-recover=undefined"
# reports of a process that ends at once must get through, and slow tools may take their time
PYTEST = (sys.executable, "-m", "pytest", "-n", "0", "--capture=sys", "-o", "timeout=0")
# without those that measure or limit memory or fork, which the sanitizers disturb, and those of emulated
# instructions, which take hours with them
SANITIZED_TESTS = (
    "-k",
    "(cpu or fuzz) and not grow and not forked and not peak and not too_large and not emulated",
)
# memcheck is some thirty times slower: a choice of calls
CHECKED_FILES = tuple(f"tests/cpu/test_{name}.py" for name in ("memory_use", "strides", "values", "decode"))
CHECKED_DECODING = "starts_that_do_not_fit or nan_stays or (each_set and bfloat16)"
CHECKED_TESTS = (*CHECKED_FILES, "-k", f"not grow and (not test_decode or {CHECKED_DECODING})")
MEMCHECK = ("valgrind", "--track-origins=yes", "--num-callers=30")


def run(command: Sequence[str], folder: Path, flags: str, settings: Mapping[str, str]) -> int:
    """The exit status of a command that finds, or builds, a library with `flags` in `folder`."""
    kernels = {"CXX": "g++", "TRISPARSE_CACHE": str(folder), "TRISPARSE_CPU_FLAGS": flags}
    environment = {**os.environ, **kernels, **settings}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def build(folder: Path, flags: str) -> None:
    """Beforehand: inside of a tool, the compiler would be watched too."""
    code = "from trisparse.cpu.build import build; build()"
    if run((sys.executable, "-c", code), folder, flags, {}) != 0:
        raise SystemExit("sanitize: the kernels cannot be built")


def runtime_libraries() -> str:
    """For LD_PRELOAD: sanitizers come before all else, with the library whose calls they take over."""
    paths = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        command = ("g++", f"-print-file-name={name}")
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        # g++ repeats the name of what it does not have
        if path == name:
            raise SystemExit(f"sanitize: g++ has no {name}; install the sanitizers of its version")
        paths.append(path)
    return " ".join(paths)


def sanitized(folder: Path) -> bool:
    """Whether all tests pass with the sanitizers, the first report being the end."""
    build(folder, SANITIZERS)
    settings = {
        "LD_PRELOAD": runtime_libraries(),
        # Python itself frees little at its end
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TRISPARSE_FUZZ": "50",
    }
    return run((*PYTEST, *SANITIZED_TESTS), folder, SANITIZERS, settings) == 0


def kernel_errors(log: str) -> list[str]:
    """Memcheck's reports that name a function or the library of ours; torch and Python have others.

    Raises:
        ValueError: the log ends before memcheck's summary.
    """
    if "ERROR SUMMARY" not in log:
        raise ValueError("memcheck did not come to its end")
    reports = re.split(r"^==\d+== *$", log, flags=re.MULTILINE)
    return [text.strip() for text in reports if re.search(r"(at|by) 0x.*(trisparse::|kernels\.so)", text)]


def checked(folder: Path) -> bool:
    """Whether tests pass under memcheck, and it has nothing to say of the kernels."""
    build(folder, DEBUGGING)
    log = folder / "memcheck.log"
    # torch's threads would only take turns
    settings = {"PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
    command = (*MEMCHECK, f"--log-file={log}", *PYTEST, *CHECKED_TESTS)
    passed = run(command, folder, DEBUGGING, settings) == 0
    errors = kernel_errors(log.read_text(encoding="utf-8", errors="replace"))
    sys.stdout.write("\n\n".join([*errors, f"memcheck: {len(errors)} errors in the kernels\n"]))
    return passed and not errors


def main() -> None:
    if shutil.which("g++") is None:
        raise SystemExit("sanitize: g++ is not installed")
    with tempfile.TemporaryDirectory() as folder:
        if not sanitized(Path(folder, "sanitized")):
            raise SystemExit("sanitize: failed with AddressSanitizer and UBSan")
        if shutil.which("valgrind") is None:
            sys.stdout.write("sanitize: nothing ran under memcheck: valgrind is not installed\n")
        elif not checked(Path(folder, "checked")):
            raise SystemExit("sanitize: failed under memcheck")


if __name__ == "__main__":
    main()
