"""Kernels are compiled here, not run: no interpreter, and a cache that nobody else reads."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def missing() -> str | None:
    """Why nothing can be compiled, or None."""
    found = importlib.util.find_spec("triton")
    # this very folder would pass for a package of that name
    if found is None or found.origin is None:
        return "Triton is not installed: tests/triton was left out"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 compiles nothing: tests/triton was left out"
    return None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """One test says why the others were left out."""
    if missing() is None or not collection_path.name.startswith("test_"):
        return None
    return collection_path.name != "test_compiler.py"


@pytest.fixture
def why_left_out() -> str | None:
    return missing()


@pytest.fixture(scope="session", autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A binary from an earlier run must not stand for the source of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield
