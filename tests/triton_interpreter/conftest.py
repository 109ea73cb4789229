"""The kernels run here, in Triton's interpreter or on a GPU: fp32 and fp16, short sequences."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

_HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def runnable_kernels() -> None:
    """Kernels that can run nowhere must not look like a pass."""
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        pytest.fail(
            "tests/triton_interpreter: no GPU, so the kernels need Triton's interpreter; run "
            "TRITON_INTERPRET=1 pytest -n 0 tests/triton_interpreter"
        )


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """Spare Triton's interpreter (3.7) what it does again and again to no effect, most of all time here."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder = interpreter.interpreter_builder
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patched_once(interpreter))
        # sums that are checked for overflow, by asserts that are never made
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        monkeypatch.setattr(interpreter, "_get_np_dtype", by_name(interpreter._get_np_dtype))
        yield


def by_name(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of a type, called once for each name of a type; it makes a table of all types each time."""
    known: dict[str, Any] = {}

    def get(kind: Any) -> Any:
        if kind.name not in known:
            known[kind.name] = function(kind)
        return known[kind.name]

    return get


def patched_once(interpreter: Any) -> Callable[[Any], Any]:
    """A `_patch_lang` that patches a module of triton.language once for a launch, not at each call."""
    patch_for, language = interpreter._patch_lang, interpreter.tl
    patched: set[str] = set()
    launch: Any = None

    def patch(function: Any) -> Any:
        nonlocal launch
        known = function.__globals__.values()
        modules = {one.__name__ for one in (language, language.core) if any(each is one for each in known)}
        if launch is None or not launch._changes:
            # the launch before is over, and what it had patched restored
            launch = patch_for(function)
            patched.clear()
        elif not modules <= patched:
            launch._changes += patch_for(function)._changes
        patched.update(modules)
        return launch

    return patch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A GPU says nothing where numpy, in its place, warns of numbers that a mask then drops."""
    for item in items:
        if _HERE in item.path.parents:
            for what in ("overflow", "invalid value"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning"))
