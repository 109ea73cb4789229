"""`trisparse build`, and what `trisparse env` says of the native kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .standin import Call, names

pytestmark = pytest.mark.usefixtures("clean_environment")
compiled = pytest.mark.usefixtures("real_compiler")


@compiled
@pytest.mark.usefixtures("plain_processor")
def test_build_prints_what_it_built_and_where(call: Call, folder: Path) -> None:
    """Guards against an image whose builder cannot see whether the kernels are in it."""
    code, out, err = call("build")
    assert code == 0, err
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["instruction sets"] == "portable"
    assert Path(lines["library"]).is_file() and folder in Path(lines["library"]).parents
    assert float(lines["seconds"]) > 0
    assert lines["compiler"]
    code, out, _ = call("build")
    assert code == 0
    assert out.splitlines()[-1].endswith("(an earlier build)")
    code, out, _ = call("build", "--force")
    assert code == 0
    assert "earlier" not in out
    assert len(names(folder)) == 1


def test_build_says_in_one_line_why_it_failed(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a build step in a script that fails unseen or with a traceback."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, out, err = call("build")
    assert code == 1
    assert out == ""
    assert err.startswith("error: CXX: 'no-such-compiler' does not run")
    assert len(err.splitlines()) == 1
    assert not folder.exists()


@compiled
def test_build_fails_where_nothing_would_be_kept(call: Call, folder: Path) -> None:
    """Guards against success without a library: a private copy ends with the verb."""
    folder.parent.write_text("")
    code, _, err = call("build")
    assert code == 1
    assert "cannot be written" in err


@compiled
def test_env_names_library_compiler_and_instruction_sets(call: Call, folder: Path) -> None:
    """Guards against a bug report that leaves open which code ran."""
    code, out, _ = call("env", "--json")
    facts = json.loads(out)["cpu_kernels"]
    assert code == 0
    assert str(folder) in facts["library"]
    assert "(in use: " in facts["instruction_sets"]
    assert facts["compiler"].startswith("/")


def test_env_gives_the_reason_where_there_is_no_library(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a bug report that leaves open why the kernels did not run."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, out, _ = call("env")
    assert code == 0
    assert "  library: none: CXX: 'no-such-compiler' does not run" in out
    assert "  compiler: none: CXX" in out


@compiled
def test_env_says_why_nothing_was_kept(call: Call, folder: Path) -> None:
    """Guards against kernels that are built again in each process, without a word of why."""
    folder.parent.write_text("")
    code, out, _ = call("env")
    assert code == 0
    assert f"  library: built for this process alone: the cache folder {folder} cannot be written: " in out


def test_help_of_build_needs_no_torch() -> None:
    """Guards against a help text that waits for torch."""
    code = (
        "import sys; sys.argv = ['trisparse', 'build', '--help']\n"
        "from trisparse.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--force" in done.stdout
