"""Compilers that are old, missing or broken, and processors that lack something."""

import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from trisparse.cpu import build as build_module
from trisparse.cpu.build import build
from trisparse.cpu.errors import BuildError
from trisparse.cpu.processor import Processor, processor_in
from trisparse.cpu.recipe import make_recipe

from .standin import EVERYTHING, Script, names, one_line

pytestmark = pytest.mark.usefixtures("clean_environment")
compiled = pytest.mark.usefixtures("real_compiler")
plain = pytest.mark.usefixtures("plain_processor")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_every_compiler_builds_every_set_of_this_processor(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Guards against flags that one of the compilers does not take; the sources refuse missing flags."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed here")
    monkeypatch.setenv("CXX", name)
    recipe = make_recipe(sources)
    made = build(sources, folder)
    assert made.instruction_sets == tuple(dict.fromkeys(one.name for one in recipe.sets))
    assert made.left_out == dict(recipe.left_out)
    assert name in made.compiler


def test_without_cxx_the_first_compiler_that_runs_is_taken(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_compiler: str
) -> None:
    """Guards against giving up because g++ is missing or broken."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "g++").write_text("#!/bin/sh\nexit 3\n")
    (tools / "c++").write_text(f'#!/bin/sh\nPATH={os.environ["PATH"]} exec {real_compiler} "$@"\n')
    for script in tools.iterdir():
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    assert build(sources, folder).compiler.startswith(f"{tools}/c++ (")


def test_without_a_compiler_the_reason_says_what_to_do(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a traceback on machines without a compiler, and against a cache made for nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler: none of g\+\+, clang\+\+, c\+\+ runs") as error:
        build(sources, folder)
    assert "install g++" in one_line(error)
    assert not folder.parent.exists()


@compiled
@plain
def test_an_earlier_build_serves_where_the_compiler_is_gone(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a container that was built with a compiler and runs without one."""
    made = build(sources, folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = build(sources, folder)
    assert not found.fresh and found.path == made.path
    with pytest.raises(BuildError, match="no C"):
        build(sources, folder, force=True)
    (sources / "portable.cpp").write_text("int other() { return 1; }\n")
    with pytest.raises(BuildError, match="no C"):
        build(sources, folder)


@pytest.mark.parametrize("text", ["no/such/compiler", "false", "g++ 'unfinished"])
def test_a_cxx_that_does_not_run_is_named(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Guards against silently taking another compiler than the one asked for."""
    monkeypatch.setenv("CXX", text)
    with pytest.raises(BuildError, match="CXX") as error:
        build(sources, folder)
    assert text.split()[0] in one_line(error)


@plain
def test_cxx_may_have_options(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, real_compiler: str
) -> None:
    """Guards against taking `g++ -DNAME` for the name of a program."""
    (sources / "portable.cpp").write_text("#ifndef NAME\n#error NAME is missing\n#endif\n")
    monkeypatch.setenv("CXX", f"{real_compiler} -DNAME")
    assert build(sources, folder).fresh


@needs_x86
def test_flags_that_the_compiler_does_not_know_leave_a_set_out(
    sources: Path, folder: Path, compiler: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an old compiler that takes the whole backend away, or a dispatcher that expects AMX."""
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: EVERYTHING)
    compiler('case "$*" in *-mavx512bf16*) echo "error: unrecognized option" >&2; exit 1;; esac')
    made = build(sources, folder)
    assert made.instruction_sets == ("avx512", "portable")
    assert "does not know" in made.left_out["amx"]
    assert "does not know" in made.left_out["avx512_bf16"]
    log = (made.path.parent / "build.log").read_text()
    assert "-DTRISPARSE_WITH_AVX512" in log
    assert "-DTRISPARSE_WITH_AMX" not in log
    assert not build(sources, folder).fresh
    assert build(sources, folder).left_out == made.left_out


@needs_x86
def test_the_portable_set_uses_avx2_where_it_can(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, real_compiler: str
) -> None:
    """Guards against portable code at half its speed, because the plain variant took its place."""
    monkeypatch.setenv("CXX", real_compiler)
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: EVERYTHING)
    log = (build(sources, folder).path.parent / "build.log").read_text()
    (command,) = [line for line in log.splitlines() if " -c " in line and "/portable.cpp" in line]
    assert "-mavx2 -mfma -mf16c" in command


@plain
def test_compilers_leave_nothing_outside_the_cache(sources: Path, folder: Path, compiler: Script) -> None:
    """Guards against a full /tmp that stops a build, and files of killed compilers that stay there."""
    calls = compiler('echo "$TMPDIR" >> $CALLS')
    build(sources, folder)
    places = calls.read_text().splitlines()
    assert len(places) == 4
    assert all(folder in Path(place).parents for place in places)
    assert not any(Path(place).exists() for place in places)


@needs_x86
def test_an_assembler_that_does_not_know_avx2_gives_plain_portable_code(
    sources: Path, folder: Path, compiler: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against losing the portable set with its faster variant."""
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: EVERYTHING)
    compiler('case "$*" in *-mfma*) echo "Error: no such instruction" >&2; exit 1;; esac')
    made = build(sources, folder)
    assert made.instruction_sets == ("portable",)
    assert set(made.left_out) == {"amx", "avx512_bf16", "avx512", "avx2"}
    assert "-mavx2" not in (made.path.parent / "build.log").read_text()


def test_a_processor_without_the_features_leaves_sets_out(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against code for instructions that this processor does not have."""
    old = Processor("x86_64", EVERYTHING.features - {"amx_bf16", "avx512vl"})
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: old)
    recipe = make_recipe(sources)
    assert [one.label for one in recipe.sets] == ["avx2", "portable"]
    assert dict(recipe.left_out)["avx512"] == "the processor has no avx512vl"
    assert "amx_bf16" in dict(recipe.left_out)["amx"]


@compiled
def test_a_compiler_error_is_one_line_with_the_path_of_the_log(sources: Path, folder: Path) -> None:
    """Guards against a page of messages as the reason, and against messages that are lost."""
    whole = (sources / "portable.cpp").read_text()
    (sources / "portable.cpp").write_text("int unused(int x) { return 1; }\nint f() { return nonsense; }\n")
    with pytest.raises(BuildError, match=r"failed on portable\.cpp: .*nonsense.*; the whole log: ") as error:
        build(sources, folder)
    log = Path(one_line(error).split("the whole log: ")[1])
    assert "warning" in log.read_text() and "-O3" in log.read_text()
    assert names(folder) == []
    (sources / "portable.cpp").write_text(whole)
    assert build(sources, folder).fresh


@compiled
@plain
def test_a_linker_error_names_what_is_missing(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against "ld returned 1" as the reason."""
    monkeypatch.setenv("TRISPARSE_CPU_FLAGS", "-Wl,-z,defs")
    with (sources / "dispatch.cpp").open("a") as file:
        file.write("int missing_function();\nEXPORT int call() { return missing_function(); }\n")
    with pytest.raises(BuildError, match="failed on linking: .*missing_function"):
        build(sources, folder)
    assert names(folder) == []


@plain
@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("kill -9 $$", "killed by signal 9"),
        ("exit 1", "gave no reason"),
        ("exit 0", "made no library"),
        ('case "$*" in *" -c "*) ;; *) exit 0;; esac', "made no library"),
        ('echo "error: unrecognized argument -std=c++17" >&2; exit 1', "-std="),
        ("rm $0; exit 1", "failed on"),
    ],
)
def test_a_misbehaving_compiler_gives_a_reason(
    sources: Path, folder: Path, compiler: Script, script: str, wanted: str
) -> None:
    """Guards against tracebacks, and against files left behind, where the compiler crashes or lies."""
    compiler(script)
    with pytest.raises(BuildError) as error:
        build(sources, folder)
    assert wanted in one_line(error)
    assert names(folder) == []


@pytest.mark.parametrize("name", ["dispatch.cpp", "portable.cpp"])
def test_missing_sources_are_named(sources: Path, folder: Path, name: str) -> None:
    """Guards against a package without its C++ files that fails somewhere in the linker."""
    (sources / name).unlink()
    with pytest.raises(BuildError, match=f"sources are incomplete: {name}"):
        build(sources, folder)


def test_unreadable_flags_are_named(sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback from a stray quote."""
    monkeypatch.setenv("TRISPARSE_CPU_FLAGS", "-D'A")
    with pytest.raises(BuildError, match="TRISPARSE_CPU_FLAGS"):
        build(sources, folder)


def test_other_systems_get_a_reason(sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an import error where file locks do not exist."""
    monkeypatch.setattr(build_module, "os", SimpleNamespace(name="nt"))
    with pytest.raises(BuildError, match="Linux and macOS"):
        build(sources, folder)


@pytest.mark.parametrize(
    ("text", "features", "vendor"),
    [
        (
            "processor: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu AVX2 fma\n\n"
            "processor: 1\nvendor_id: other\nflags: other\n",
            {"fpu", "avx2", "fma"},
            "GenuineIntel",
        ),
        ("processor\t: 0\nFeatures\t: fp asimd\n", {"fp", "asimd"}, ""),
        ("machine: s390\n", set(), ""),
    ],
)
def test_processor_is_read_from_cpuinfo(text: str, features: set[str], vendor: str) -> None:
    """Guards against a processor that seems to have no features, or somebody else's."""
    assert processor_in(text, "any") == Processor("any", frozenset(features), vendor)


def test_set_that_is_slower_elsewhere_is_for_its_vendor_alone(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against the pair products of AVX-512 where they are slower than its float products."""
    other = replace(EVERYTHING, vendor="GenuineIntel")
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: other)
    recipe = make_recipe(sources)
    assert [one.label for one in recipe.sets] == ["amx", "avx512", "avx2", "portable"]
    assert "AuthenticAMD" in dict(recipe.left_out)["avx512_bf16"]
    # for comparisons
    monkeypatch.setenv("TRISPARSE_CPU_INSTRUCTIONS", "avx512_bf16")
    forced = make_recipe(sources)
    assert [one.label for one in forced.sets] == ["amx", "avx512_bf16", "avx512", "avx2", "portable"]
    assert forced.key != recipe.key


@plain
def test_reasons_are_those_of_this_processor(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a cache shared by two processors whose reports show the reasons of the other."""
    for feature in ("avx512f", "avx512_bf16"):
        # neither can run a set that needs both: one library, two reasons
        processor = Processor("x86_64", frozenset({feature}))
        monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda processor=processor: processor)
        made = build(sources, folder)
        assert feature not in made.left_out["avx512_bf16"].split()[-1]
    assert not made.fresh
