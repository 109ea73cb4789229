"""The argument `backend`: names, reasons, and no silent fallback."""

import os
import re
import subprocess
import sys

import pytest
import torch
from arguments import CMP, CONFIG, EVERY, SELECT, SLC, WHOLE, arguments

import trisparse


@pytest.mark.parametrize(
    ("backend", "error", "words"),
    [
        (3, TypeError, "string, got int 3"),
        (None, TypeError, "string, got NoneType"),
        ("cuda", ValueError, "reference, torch, cpu, triton; got 'cuda'"),
        ("Torch", ValueError, "got 'Torch'"),
        ("", ValueError, "got ''"),
    ],
)
@pytest.mark.parametrize("function", EVERY)
def test_unknown_backend_is_named(function, backend, error, words):
    """Guards against a misspelled backend that quietly means another."""
    g = arguments()
    with pytest.raises(error, match=rf"^backend: expected .*{re.escape(words)}"):
        pairs = [(g[f"key_{branch}"], g[f"value_{branch}"]) for branch in ("cmp", "slc", "win")]
        if function == WHOLE:
            trisparse.sparse_attention(g["query"], *pairs, g["gates"], CONFIG, backend=backend)
        elif function == SLC:
            trisparse.selected_attention(g["query"], *pairs[1], g["ids"], CONFIG, backend=backend)
        elif function == SELECT:
            trisparse.select_blocks(g["query"], g["key_cmp"], CONFIG, backend=backend)
        else:
            getattr(trisparse, function)(
                g["query"], *pairs[0 if function == CMP else 2], CONFIG, backend=backend
            )


def test_backend_that_cannot_run_says_why(monkeypatch):
    """Guards against a silent fallback from the backend that was asked for."""
    monkeypatch.setattr(trisparse.backends, "_why_not", {"triton": "no GPU", "torch": None}.get)
    with pytest.raises(NotImplementedError, match=r"^backend: 'triton' cannot run here: no GPU"):
        trisparse.backends.choose("triton")


def test_available_backends_name_a_reason_or_none():
    """Guards against a backend that is neither usable nor explained."""
    table = trisparse.available_backends()
    assert list(table) == ["reference", "torch", "cpu", "triton"]
    assert table["reference"] is None
    assert table["torch"] is None
    assert all(reason is None or (isinstance(reason, str) and reason) for reason in table.values())


WITHOUT_KERNELS = """
import logging, torch, trisparse
logging.basicConfig(format="%(levelname)s %(message)s")
query, key = torch.randn(1, 40, 4, 8), torch.randn(1, 40, 2, 8)
call = (query, key, key, trisparse.SparseConfig())
outs = [trisparse.window_attention(*call) for _ in range(2)]
assert torch.equal(outs[0], trisparse.window_attention(*call, backend="torch"))
try:
    trisparse.window_attention(*call, backend="cpu")
except NotImplementedError as error:
    print(error)
"""


def child(code, **environment):
    """What `code` says in a process of its own, with the compilers that PATH leads to."""
    inherited = {name: value for name, value in os.environ.items() if name != "CXX"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


BROKEN_COMPILER = """#!/bin/sh
test "$1" = --version && echo broken 1.0 && exit
echo "kernel.cpp:1: error: not today" >&2
exit 1
"""
OLD_TORCH = "import trisparse.cpu.threads\ntrisparse.cpu.threads.PARALLEL_FOR = 'torch_of_tomorrow'\n"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("no compiler", "no C++ compiler"),
        ("compiler error", "kernel.cpp:1: error: not today"),
        ("torch too old", f"torch {torch.__version__} is too old"),
    ],
)
def test_without_cpu_kernels_auto_warns_once_and_cpu_says_why(tmp_path, fault, reason):
    """Guards machines that cannot have them: `auto` runs on `torch` and says so once, `cpu` is an error."""
    compiler = tmp_path / "broken"
    compiler.write_text(BROKEN_COMPILER)
    compiler.chmod(0o755)
    elsewhere = {"TRISPARSE_CACHE": str(tmp_path / "cache")}
    environment = {
        "no compiler": {"PATH": str(tmp_path), **elsewhere},
        "compiler error": {"CXX": str(compiler), **elsewhere},
        "torch too old": {},
    }
    done = child((OLD_TORCH if fault == "torch too old" else "") + WITHOUT_KERNELS, **environment[fault])
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "backend 'auto' is 'torch', which is slower than 'cpu': " in warnings[0]
    assert reason in warnings[0]
    assert done.stdout.startswith("backend: 'cpu' cannot run here: ")
    assert reason in done.stdout


def test_forced_instructions_that_cannot_run_are_an_error_for_auto_too():
    """Guards a comparison of instruction sets against another backend in the place of one of them."""
    code = (
        "import torch, trisparse\n"
        "x = torch.randn(1, 40, 2, 8)\n"
        "try:\n    trisparse.window_attention(x, x, x, trisparse.SparseConfig())\n"
        "except NotImplementedError as error:\n    print(error)\n"
    )
    done = child(code, TRISPARSE_CPU_INSTRUCTIONS="none_such")
    assert "backend: 'auto' cannot run what was asked for: TRISPARSE_CPU_INSTRUCTIONS: " in done.stdout
