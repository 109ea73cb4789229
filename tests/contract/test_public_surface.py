"""What others may rely on: the public names, a light import, and arrows between rooms that point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trisparse

SOURCE = Path(trisparse.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [
    "NativeSparseAttention",
    "SparseCache",
    "SparseConfig",
    "__version__",
    "available_backends",
    "compressed_attention",
    "select_blocks",
    "selected_attention",
    "sparse_attention",
    "window_attention",
]

# room -> the rooms of ours that it may import; a backend's room imports what chunked does
ALLOWED = {
    "version": set(),
    "config": set(),
    "files": set(),
    "documents": {"config"},
    "invariance": {"scoped"},
    "scoped": set(),
    "validate": {"config"},
    "reference": {"config", "documents"},
    "chunked": {"config", "documents"},
    "cpu": {"config", "documents", "files", "invariance"},
    "triton": {"config", "documents", "invariance"},
    "backends": {"chunked", "cpu", "triton"},
    "ops": {"backends", "config"},
    "autograd": {"backends", "config", "ops"},
    "api": {"autograd", "backends", "config", "reference", "validate"},
    "decode": {"api", "backends", "config", "invariance", "ops", "validate"},
    "nn": {"api", "config", "decode", "invariance", "scoped", "validate"},
    "baselines": {"api", "config", "invariance", "nn", "validate"},
    "models": {"backends", "baselines", "config", "invariance", "nn", "validate"},
    "data": {"files"},
    "report": {"files"},
    "train": {"backends", "data", "files", "models"},
    "eval": {"data", "nn"},
    "bench": {
        "api",
        "backends",
        "config",
        "decode",
        "files",
        "models",
        "nn",
        "reference",
        "report",
        "version",
    },
    "demo": {"backends", "bench", "config", "data", "eval", "files", "models", "report", "train"},
}
FREE = {"cli", "testing", "__main__", ""}
EXTRAS = (
    "accelerate",
    "matplotlib",
    "numpy",
    "rich",
    "safetensors",
    "tokenizers",
    "transformers",
    "triton",
    "typer",
    "yaml",
)


def room_of(path):
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_rooms(path):
    """Rooms of ours that a file imports, wherever in it; type-checking imports too."""
    package = ["trisparse", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "trisparse" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "trisparse":
                second = parts[1] if len(parts) > 1 else ""
                is_room = (SOURCE / second).is_dir() or (SOURCE / f"{second}.py").is_file()
                yield node.lineno, second if second and is_room else ""


BOUND = [path for path in FILES if room_of(path) not in FREE]


def test_public_names_are_pinned():
    """Guards against a name that leaks out, or goes missing, unnoticed."""
    assert sorted(trisparse.__all__) == NAMES
    for name in trisparse.__all__:
        assert hasattr(trisparse, name)


@pytest.mark.parametrize("path", BOUND, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_arrows(path):
    """Guards against rooms that come to need one another."""
    room = room_of(path)
    assert room in ALLOWED, f"{room}: a new room needs its arrows written down here"
    for line, target in imported_rooms(path):
        assert target == room or target in ALLOWED[room], f"{path}:{line}: {room} must not import {target!r}"


def test_nothing_but_testing_imports_testing():
    """Guards against test helpers that become part of the product."""
    for path in FILES:
        if room_of(path) == "testing":
            continue
        assert "testing" not in {target for _, target in imported_rooms(path)}, path


def test_arrow_reader_sees_every_form_of_import(tmp_path, monkeypatch):
    """Guards against an arrow test that is blind to relative or late imports."""
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    for room in ("nn", "api", "chunked"):
        (tmp_path / room).mkdir()
    path = tmp_path / "nn" / "thing.py"
    path.write_text(
        "import trisparse.api\nfrom trisparse import chunked, run\n"
        "def late():\n    from ..api import x\n    from . import y\n    import trisparse\n",
        encoding="utf-8",
    )
    found = [target for _, target in sorted(imported_rooms(path))]
    assert found == ["api", "", "chunked", "api", "nn", ""]


@pytest.mark.parametrize("word", ["pickle", "torch.load(", " eval(", "trust_remote_code=True", "yaml.load("])
def test_source_never_runs_what_it_reads(word):
    """Guards against code execution from a file: no pickle, no eval, no code from a model folder."""
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert word not in line, f"{path}:{number}"


def python(code, *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_needs_torch_alone_and_warns_of_nothing():
    """Guards against an optional dependency that became necessary, and against noise on import."""
    blocked = f"""
import sys
# torch looks for numpy and others by itself: let it, then take them away
import torch
for name in [name for name in sys.modules if name.split(".")[0] in {EXTRAS!r}]:
    del sys.modules[name]
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocked())
import warnings
warnings.simplefilter("error")
import trisparse
for name in trisparse.__all__:
    getattr(trisparse, name)
q = torch.zeros(1, 4, 1, 8)
print(trisparse.window_attention(q, q, q, trisparse.SparseConfig()).shape)
"""
    assert "torch.Size([1, 4, 1, 8])" in python(blocked)


def test_import_is_quick():
    """Guards against work at import time: less than half a second beyond torch's own, best of three."""
    # public names are imported when they are first used: use them all
    code = (
        "import torch, time; t = time.process_time(); import trisparse;"
        "[getattr(trisparse, name) for name in trisparse.__all__]; print(time.process_time() - t)"
    )
    assert min(float(python(code)) for _ in range(3)) < 0.5
