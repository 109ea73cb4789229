"""Folders, compilers and settings for tests of builds."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trisparse.cli.main import run
from trisparse.cpu import build as build_module
from trisparse.cpu import library as library_module
from trisparse.cpu.library import _part, _whole, library
from trisparse.cpu.processor import Processor
from trisparse.cpu.recipe import COMMON_FLAGS

from .standin import SOURCES, Call, Messages, Program, Script


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No settings of whoever runs the tests, and no remembered answer."""
    for name in list(os.environ):
        if name == "CXX" or name.startswith("TRISPARSE_"):
            monkeypatch.delenv(name)
    for answer in (_whole, _part):
        answer.cache_clear()
    yield monkeypatch
    for answer in (_whole, _part):
        answer.cache_clear()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with small sources for all instruction sets."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, text in SOURCES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache will be; not there yet."""
    return tmp_path / "cache" / "cpu"


@pytest.fixture
def real_compiler() -> str:
    """Path of a compiler that works."""
    path = shutil.which("g++") or shutil.which("clang++")
    if path is None:
        pytest.skip("neither g++ nor clang++ is installed here")
    return path


@pytest.fixture
def program(tmp_path: Path, real_compiler: str) -> Program:
    """Compiles a program of our headers, in namespace `trisparse::toy`."""
    source, place = tmp_path / "toy.cpp", tmp_path / "toy"
    flags = (*COMMON_FLAGS, f"-I{build_module.SOURCES}", "-DTRISPARSE_SET=toy", "-DTRISPARSE_CANARIES", "-O0")

    def make(text: str) -> Path:
        source.write_text(text)
        subprocess.run([real_compiler, *flags, source, "-o", place, "-pthread"], check=True)
        return place

    return make


@pytest.fixture
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with no instruction sets of its own: three files to compile, no questions to ask."""
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: Processor("unknown"))


@pytest.fixture
def compiler(tmp_path: Path, clean_environment: pytest.MonkeyPatch, real_compiler: str) -> Script:
    """Makes the compiler in CXX a shell script: $REAL is a working one, $CALLS a file to write to.

    What the script does not end by itself goes to the working compiler, as do questions for its version.
    """
    calls = tmp_path / "calls"
    calls.touch()

    def write(text: str = "") -> Path:
        path = tmp_path / "compiler"
        path.write_text(
            f"#!/bin/sh\nREAL={real_compiler}\nCALLS={calls}\n"
            f'if [ "$1" = --version ]; then exec $REAL --version; fi\n{text}\nexec $REAL "$@"\n'
        )
        path.chmod(0o755)
        clean_environment.setenv("CXX", str(path))
        return calls

    return write


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Messages:
    """What was logged so far, progress included."""
    caplog.set_level(logging.INFO, logger="trisparse")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def select() -> Iterator[Callable[[str], None]]:
    """Makes the kernels use an instruction set, for one test."""
    before = library().instructions
    yield lambda name: library().select(name)
    library().select(before)


@pytest.fixture
def call(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """Runs `trisparse WORDS` over the stand-in's sources -> exit code, stdout, stderr."""
    monkeypatch.setattr(build_module, "SOURCES", sources)
    monkeypatch.setattr(library_module, "SOURCES", sources)
    monkeypatch.setenv("TRISPARSE_CACHE", str(folder.parent))

    def caller(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trisparse", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return caller
