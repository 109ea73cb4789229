"""Building the native kernels: once for each change, and whole."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from trisparse.cpu.build import build
from trisparse.cpu.processor import Processor
from trisparse.cpu.recipe import make_recipe

from .standin import CHILD, EVERYTHING, Messages, Script, names

pytestmark = pytest.mark.usefixtures("clean_environment", "real_compiler")
plain = pytest.mark.usefixtures("plain_processor")


@plain
def test_a_second_call_compiles_nothing(sources: Path, folder: Path, compiler: Script) -> None:
    """Guards against a build in every process."""
    calls = compiler('echo "$@" >> $CALLS')
    first = build(sources, folder)
    count = len(calls.read_text().splitlines())
    second = build(sources, folder)
    assert first.fresh and not second.fresh
    assert count == 4  # three sources and the linker
    assert len(calls.read_text().splitlines()) == count
    assert (second.path, second.instruction_sets, second.seconds) == (
        first.path,
        ("portable",),
        first.seconds,
    )
    assert names(folder) == [first.path.parent.name]
    assert sorted(path.name for path in first.path.parent.iterdir()) == [
        "build.log",
        "kernels.so",
        "manifest.json",
    ]


@plain
def test_force_builds_again_in_the_same_place(sources: Path, folder: Path) -> None:
    """Guards against a --force that takes what is there, and against leftovers of the old library."""
    first = build(sources, folder)
    inode = first.path.stat().st_ino
    # held open, so that its number is not given away again
    with first.path.open("rb"):
        second = build(sources, folder, force=True)
    assert second.fresh and second.path == first.path
    assert second.path.stat().st_ino != inode
    assert names(folder) == [first.path.parent.name]


@plain
@pytest.mark.parametrize("changed", ["source", "header", "flags", "compiler", "interface"])
def test_whatever_changes_the_library_changes_its_place(
    sources: Path, folder: Path, compiler: Script, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Guards against a stale library after an edit, an update of the compiler, or with other flags."""
    compiler()
    first = build(sources, folder)
    if changed == "source":
        (sources / "portable.cpp").write_text("int other() { return 1; }\n")
    elif changed == "header":
        with (sources / "interface.h").open("a") as file:
            file.write("// a comment\n")
    elif changed == "flags":
        monkeypatch.setenv("TRISPARSE_CPU_FLAGS", "-g '-DNAME=two words'")
    elif changed == "compiler":
        monkeypatch.setenv("CXX", f"{os.environ['CXX']} -g")
    else:
        monkeypatch.setattr("trisparse.cpu.recipe.INTERFACE_VERSION", 99)
    second = build(sources, folder)
    assert second.fresh
    assert second.path != first.path
    assert first.path.exists()


def test_another_processor_has_another_place(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a home folder shared by machines in which one gets the other's instructions."""
    keys = set()
    for features in (EVERYTHING.features, EVERYTHING.features - {"amx_bf16"}, frozenset[str]()):
        for machine in ("x86_64", "aarch64"):
            processor = Processor(machine, features)
            monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda processor=processor: processor)
            keys.add(make_recipe(sources).key)
    # the features of x86-64 say nothing elsewhere
    assert len(keys) == 4


@plain
@pytest.mark.parametrize(
    "damage",
    [
        "half a library",
        "empty library",
        "one bit",
        "no library",
        "no manifest",
        "no JSON",
        "a list",
        "no digest",
    ],
)
def test_a_damaged_cache_is_built_anew(sources: Path, folder: Path, damage: str) -> None:
    """Guards against loading, or for ever refusing, what a crash or a full disk left behind."""
    library = build(sources, folder).path
    manifest = library.with_name("manifest.json")
    content = library.read_bytes()
    if damage == "half a library":
        library.write_bytes(content[: len(content) // 2])
    elif damage == "empty library":
        library.write_bytes(b"")
    elif damage == "one bit":
        library.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no library":
        library.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text({"no JSON": "{", "a list": "[1]", "no digest": "{}"}[damage])
    again = build(sources, folder)
    assert again.fresh and again.path == library
    assert not build(sources, folder).fresh
    assert names(folder) == [library.parent.name]


@plain
def test_a_build_says_that_it_begins_and_how_long_it_took(
    sources: Path, folder: Path, messages: Messages
) -> None:
    """Guards against seconds of silence in the first call."""
    build(sources, folder)
    begin, end = messages()
    assert begin.startswith("building the CPU kernels")
    assert end.startswith("built in ") and end.endswith(" s: portable")
    build(sources, folder)
    assert len(messages()) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_the_lines_appear_on_a_terminal_only(sources: Path, folder: Path, terminal: bool) -> None:
    """Guards against a build that nobody sees, and against noise in the logs of programs."""
    code = CHILD.replace('logging.basicConfig(level=logging.INFO, format="%(message)s")', "")
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", code, str(sources), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 1000):
            text += part
    except OSError:
        # a terminal ends with an error
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = text.decode().splitlines()
    if terminal:
        assert [line.split()[:2] for line in lines] == [["trisparse:", "building"], ["trisparse:", "built"]]
    else:
        assert lines == []


def test_the_manifest_says_what_was_built(sources: Path, folder: Path) -> None:
    """Guards against a library of which nobody knows where it came from."""
    made = build(sources, folder)
    facts = json.loads((made.path.parent / "manifest.json").read_text())
    assert facts["compiler"] == made.compiler
    assert facts["instruction_sets"] == list(made.instruction_sets)
    assert facts["left_out"] == made.left_out
    assert facts["seconds"] == made.seconds > 0
