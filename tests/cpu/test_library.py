"""Loading the native kernels: torch's thread pool, the instruction set, one line for every reason why not."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from trisparse.cpu import library as library_module
from trisparse.cpu.build import build
from trisparse.cpu.errors import BuildError, LoadError
from trisparse.cpu.library import Library, library, open_cached, open_library, unavailable_reason
from trisparse.cpu.threads import thread_functions, torch_library
from trisparse.files import sha256_of

from .standin import EVERYTHING, Messages, Script, one_line

pytestmark = pytest.mark.usefixtures("clean_environment", "real_compiler")
plain = pytest.mark.usefixtures("plain_processor")

# offset of the machine's number in an ELF file, and a machine that this is not
ELF_MACHINE, ELF_SPARC = 18, 2


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def as_product(sources: Path, folder: Path, clean_environment: pytest.MonkeyPatch) -> Path:
    """The stand-ins in place of the package's sources -> their folder."""
    clean_environment.setattr(library_module, "SOURCES", sources)
    clean_environment.setenv("TRISPARSE_CACHE", str(folder.parent))
    return sources


def edit(sources: Path, old: str, new: str) -> None:
    """Change the text of the stand-in's dispatcher."""
    path = sources / "dispatch.cpp"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def works(found: Library) -> bool:
    """Whether calls into the library come back with the right numbers."""
    found.functions.sum_below.argtypes = [ctypes.c_int64]
    found.functions.sum_below.restype = ctypes.c_int64
    return found.functions.sum_below(1000) == 499500


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Messages that were more than progress."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_the_library_works_in_torchs_thread_pool(sources: Path, folder: Path) -> None:
    """Guards against lost or doubled work, and against threads that torch.set_num_threads does not reach."""
    found = open_cached(sources, folder)
    assert works(found)
    found.functions.threads.restype = ctypes.c_uint32
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert found.functions.threads() == count
            assert works(found)
    finally:
        torch.set_num_threads(before)


def test_the_best_instruction_set_is_used_and_each_can_be_forced(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an instruction set that no test can reach, and a Python that believes in another one."""
    found = open_cached(sources, folder)
    assert found.instruction_sets == found.build.instruction_sets
    assert found.instructions == found.instruction_sets[0]
    found.functions.chosen_letter.restype = ctypes.c_char
    for name in found.instruction_sets:
        monkeypatch.setenv("TRISPARSE_CPU_INSTRUCTIONS", name)
        forced = open_cached(sources, folder)
        assert forced.instructions == name
        assert found.functions.chosen_letter().decode() == name[1]
    found.select("portable")
    assert found.instructions == "portable"
    with pytest.raises(ValueError, match="'sse' cannot run here; choose one of .*portable"):
        found.select("sse")
    assert found.instructions == "portable"


@plain
def test_forcing_what_cannot_run_is_an_error_that_names_what_can(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a test of AMX that silently runs portable code."""
    monkeypatch.setenv("TRISPARSE_CPU_INSTRUCTIONS", "amx")
    with pytest.raises(BuildError, match="TRISPARSE_CPU_INSTRUCTIONS: 'amx' cannot run here") as error:
        open_cached(sources, folder)
    assert one_line(error).endswith("choose one of portable")


@plain
@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("return 2;", "return 1;", "have interface 1, not 2"),
        ("EXPORT int32_t trisparse_select_instruction_set", "int32_t other_name", "incomplete"),
        ("(count);\n  return 0;", "(count);\n  return 1;", "refuse torch's thread pool"),
        ('"portable"', '""', "runs none of the instruction sets"),
        ("chosen = name[1];\n  return 0;", "return 1;", "'portable' cannot run here"),
    ],
)
def test_a_library_that_is_not_ours_is_refused(
    sources: Path, folder: Path, old: str, new: str, wanted: str
) -> None:
    """Guards against calling functions whose arguments mean something else."""
    edit(sources, old, new)
    with pytest.raises(BuildError) as error:
        open_cached(sources, folder)
    assert wanted in one_line(error)


@plain
@pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")
def test_a_library_of_another_architecture_is_built_anew(
    sources: Path, folder: Path, messages: Messages
) -> None:
    """Guards against a home folder shared between machines that are less alike than they seem."""
    path = build(sources, folder).path
    content = bytearray(path.read_bytes())
    content[ELF_MACHINE : ELF_MACHINE + 2] = ELF_SPARC.to_bytes(2, "little")
    path.write_bytes(content)
    manifest = path.with_name("manifest.json")
    facts = json.loads(manifest.read_text()) | {"sha256": sha256_of(path)}
    manifest.write_text(json.dumps(facts))
    assert not build(sources, folder).fresh
    found = open_cached(sources, folder)
    assert found.build.fresh and works(found)
    assert [text for text in messages() if "building it anew" in text]
    assert not open_cached(sources, folder).build.fresh


@plain
def test_a_library_that_can_never_be_loaded_is_built_once(
    sources: Path, folder: Path, compiler: Script
) -> None:
    """Guards against building for ever."""
    calls = compiler(
        'case "$*" in *-shared*) echo x >> $CALLS; for last; do :; done; echo garbage > "$last"; exit;; esac'
    )
    with pytest.raises(LoadError, match="cannot be loaded") as error:
        open_cached(sources, folder)
    assert str(folder) in one_line(error)
    assert calls.read_text() == "x\n"


# where the cache cannot be used


@plain
@pytest.mark.parametrize("fault", ["no folder", "open to all", "no room", "no home"])
def test_without_a_cache_the_library_is_built_for_this_process(
    sources: Path,
    folder: Path,
    private: Path,
    compiler: Script,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    """Guards against losing the backend to a quota or a read-only home, and against leftovers in /tmp."""
    full = folder / "full"
    compiler(f'case "$*" in *" -c "*" {folder}/"*) test -e {full} && exec $REAL "$@" -o /dev/full;; esac')
    if fault == "no folder":
        folder.parent.write_text("")
    else:
        folder.mkdir(parents=True)
    if fault == "open to all":
        folder.chmod(0o777)
    elif fault == "no room":
        full.touch()
    elif fault == "no home":
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = open_library(sources, None if fault == "no home" else folder)
    assert works(found)
    assert found.uncached
    assert list(private.iterdir()) == []
    (warning,) = warnings_in(caplog)
    assert warning == f"{found.uncached}; building the CPU kernels for this process alone"
    assert "\n" not in warning


@plain
@pytest.mark.usefixtures("private")
def test_what_everyone_could_have_planted_is_not_loaded(sources: Path, folder: Path, tmp_path: Path) -> None:
    """Guards against running foreign code from an open folder, even where it looks like ours."""
    mark = tmp_path / "planted code ran"
    made = build(sources, folder)
    planted = tmp_path / "planted"
    planted.mkdir()
    for path in sources.iterdir():
        (planted / path.name).write_text(path.read_text())
    with (planted / "portable.cpp").open("a") as file:
        file.write("#include <cstdio>\n__attribute__((constructor)) ")
        file.write(f'void run() {{ fopen("{mark}", "w"); }}\n')
    evil = build(planted, tmp_path / "elsewhere" / "cpu").path.parent
    for name in ("kernels.so", "manifest.json"):
        (made.path.parent / name).write_bytes((evil / name).read_bytes())
    made.path.parent.chmod(0o777)
    assert works(open_library(sources, folder))
    assert not mark.exists()
    # the same code does run from a folder that only we can write
    made.path.parent.chmod(0o755)
    open_library(sources, folder)
    assert mark.exists()


@plain
def test_without_any_folder_the_reason_says_so(
    sources: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a traceback where neither cache nor temporary folder can be written."""
    for path in (folder.parent, tmp_path / "temporary"):
        path.write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(BuildError, match="no temporary folder can be made either"):
        open_library(sources, folder)


@plain
def test_a_compiler_error_without_a_cache_keeps_its_log(sources: Path, folder: Path, private: Path) -> None:
    """Guards against a reason that names a log which is gone."""
    folder.parent.write_text("")
    (sources / "portable.cpp").write_text("nonsense;\n")
    with pytest.raises(BuildError, match="failed on portable.cpp") as error:
        open_library(sources, folder)
    log = Path(one_line(error).split("the whole log: ")[1])
    assert private in log.parents
    assert "nonsense" in log.read_text()


# torch


@plain
def test_a_torch_without_its_pool_in_c_is_too_old(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an AttributeError from an older torch."""
    other = build(sources, folder).path
    monkeypatch.setattr(library_module, "torch_library", lambda: other)
    with pytest.raises(BuildError, match=r"torch \S+ is too old: it has no torch_parallel_for") as error:
        open_cached(sources, folder)
    one_line(error)


@plain
def test_a_torch_whose_library_is_elsewhere_is_found_by_name(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against packagers who keep torch's libraries in another folder."""
    moved = Path("/nowhere") / torch_library().name
    assert [pointer.value for pointer in thread_functions(moved)] == [
        pointer.value for pointer in thread_functions(torch_library())
    ]
    monkeypatch.setattr(library_module, "torch_library", lambda: Path("/nowhere/libnothing.so"))
    with pytest.raises(BuildError, match="torch's library cannot be opened: .*libnothing"):
        open_cached(sources, folder)


# what the rest of the package asks


def test_the_answer_is_remembered(as_product: Path, compiler: Script) -> None:
    """Guards against a failing build, seconds long, in every call."""
    good = (as_product / "shared.cpp").read_text()
    calls = compiler('echo "$@" >> $CALLS')
    (as_product / "shared.cpp").write_text("nonsense;\n")
    reason = unavailable_reason()
    assert reason is not None and "failed on shared.cpp" in reason and "\n" not in reason
    count = calls.read_text()
    (as_product / "shared.cpp").write_text(good)
    assert unavailable_reason() == reason
    with pytest.raises(BuildError) as error:
        library()
    assert one_line(error) == reason
    assert calls.read_text() == count


@pytest.mark.usefixtures("as_product")
def test_available_means_built_and_loaded(folder: Path) -> None:
    """Guards against a backend that says it can run and then cannot."""
    assert not folder.exists()
    assert unavailable_reason() is None
    assert works(library())
    assert library() is library()
    assert library().build.path.parent.parent == folder


@pytest.mark.usefixtures("as_product")
def test_a_dtype_gets_its_best_instruction_set_and_no_other_is_built(
    monkeypatch: pytest.MonkeyPatch, messages: Messages
) -> None:
    """Guards against waiting for two instruction sets that nobody is going to use."""
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: EVERYTHING)
    assert library(torch.bfloat16).instruction_sets == ("amx",)
    assert library(torch.float32).instruction_sets == ("avx512",)
    assert library(torch.bfloat16) is library(torch.bfloat16)
    assert works(library(torch.bfloat16)) and works(library(torch.float32))
    builds = [text for text in messages() if text.startswith("built in")]
    assert [text.split(": ")[1] for text in builds] == ["amx", "avx512"]


@pytest.mark.usefixtures("as_product")
@pytest.mark.parametrize("before", ["loaded", "in the cache", "forced"])
def test_the_library_with_all_sets_serves_every_dtype(
    sources: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Guards against a second library beside the first, which would not hear of a selected set."""
    if before == "loaded":
        library()
    elif before == "in the cache":
        build(sources, folder)
    else:
        monkeypatch.setenv("TRISPARSE_CPU_INSTRUCTIONS", "portable")
    assert library(torch.bfloat16) is library(torch.float32) is library()


@pytest.mark.usefixtures("as_product")
def test_a_best_set_that_cannot_be_had_gives_way_to_the_next(
    compiler: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against losing the backend in bfloat16 to an assembler that is too old for AMX."""
    monkeypatch.setattr("trisparse.cpu.recipe.this_processor", lambda: EVERYTHING)
    compiler('case "$*" in *-mavx512bf16*) exit 1;; esac')
    assert library(torch.bfloat16).instruction_sets == ("avx512", "portable")
    assert unavailable_reason(torch.bfloat16) is None


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError("unknown")])
def test_the_reason_never_raises(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Guards against `available_backends()` failing over a fault that nobody foresaw."""

    def fail(_sources: Path, **_others: object) -> None:
        raise error

    monkeypatch.setattr(library_module, "open_library", fail)
    assert str(error) in (unavailable_reason() or "")


def run_child(code: str, *words: str, **variables: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_builds_nothing(tmp_path: Path) -> None:
    """Guards against a compiler that starts at import."""
    code = (
        "import sys, trisparse\n"
        "for name in trisparse.__all__: getattr(trisparse, name)\n"
        "module = sys.modules.get('trisparse.cpu.library')\n"
        "answers = [module._whole, module._part] if module else []\n"
        "print(sum(answer.cache_info().misses for answer in answers))"
    )
    out = run_child(code, TRISPARSE_CACHE=str(tmp_path / "cache"))
    assert out.strip() == "0"
    assert not (tmp_path / "cache").exists()


def test_a_forked_process_can_use_the_library(sources: Path, folder: Path) -> None:
    """Guards against locks or threads of ours that a data loader's worker inherits in a bad state."""
    code = """
import os, sys
from pathlib import Path
import torch
from trisparse.cpu.library import open_cached
torch.set_num_threads(1)
found = open_cached(Path(sys.argv[1]), Path(sys.argv[2]))
assert found.functions.sum_below(100) == 4950
child = os.fork()
if child == 0:
    again = open_cached(Path(sys.argv[1]), Path(sys.argv[2]))
    again.select("portable")
    os._exit(0 if again.functions.sum_below(100) == 4950 and not again.build.fresh else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_child(code, str(sources), str(folder)).strip() == "0"
