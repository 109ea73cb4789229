"""Rules of the kernels that no test on small tensors can show broken, read off their source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trisparse.triton

FILES = sorted(Path(trisparse.triton.__path__[0]).glob("*.py"))

# of a function, its argument list included: a kernel that one reads at one go
MOST_LINES = 120


def kernels(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Functions under `@triton.jit`, with or without arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            "triton.jit" in ast.unparse(x) for x in node.decorator_list
        ):
            yield node


def calls(kernel: ast.AST, name: str) -> Iterator[ast.Call]:
    """Calls of `tl.name` in a kernel."""
    for node in ast.walk(kernel):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"tl.{name}":
            yield node


def keywords(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def narrow_program_ids(kernel: ast.FunctionDef) -> Iterator[str]:
    widened = {
        node.func.value
        for node in ast.walk(kernel)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "to"
        and [ast.unparse(argument) for argument in node.args] == ["tl.int64"]
    }
    for call in calls(kernel, "program_id"):
        if call not in widened:
            yield f"line {call.lineno}: {ast.unparse(call)} is not int64 before it is multiplied"


def unguarded_memory(kernel: ast.FunctionDef) -> Iterator[str]:
    for call in calls(kernel, "load"):
        if "mask" in keywords(call) and "other" not in keywords(call):
            yield f"line {call.lineno}: a masked load without `other` returns anything"
    for call in calls(kernel, "store"):
        if "mask" not in keywords(call):
            yield f"line {call.lineno}: a store without a mask"


def unsteady_or_gone(kernel: ast.FunctionDef) -> Iterator[str]:
    for name in ("make_block_ptr", "advance"):
        for call in calls(kernel, name):
            yield f"line {call.lineno}: tl.{name} is gone in later versions of Triton"
    for node in ast.walk(kernel):
        if isinstance(node, ast.Attribute) and node.attr.startswith("atomic_"):
            yield f"line {node.lineno}: tl.{node.attr} adds in the order in which programs happen to run"


def rounded_products(kernel: ast.FunctionDef) -> Iterator[str]:
    for call in calls(kernel, "dot"):
        if "input_precision" not in keywords(call):
            yield f"line {call.lineno}: tl.dot rounds fp32 operands to TF32 unless told not to"


def too_long(kernel: ast.FunctionDef) -> Iterator[str]:
    lines = (kernel.end_lineno or 0) - kernel.lineno + 1
    if lines > MOST_LINES:
        yield f"line {kernel.lineno}: {kernel.name} has {lines} lines, more than {MOST_LINES}"


RULES = (narrow_program_ids, unguarded_memory, unsteady_or_gone, rounded_products, too_long)
BROKEN = {
    narrow_program_ids: "row = tl.program_id(0) * stride",
    unguarded_memory: "tl.store(out + row, tl.load(key + row, mask=row < n))",
    unsteady_or_gone: "tl.atomic_add(out + row, 1.0)",
    rounded_products: "out = tl.dot(left, right)",
    too_long: "n += 1\n    " * MOST_LINES,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_kernels_keep_the_rules(path: Path) -> None:
    """Guards against offsets that wrap at 2**31, memory out of bounds, racing sums, TF32, long code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    broken = [f"{path.name} {text}" for kernel in kernels(tree) for rule in RULES for text in rule(kernel)]
    assert broken == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_sees_what_breaks_it(rule) -> None:
    """Guards against rules that nothing can break."""
    tree = ast.parse(f"@triton.jit(do_not_specialize=['n'])\ndef kernel(out, key, n):\n    {BROKEN[rule]}\n")
    (kernel,) = kernels(tree)
    assert list(rule(kernel))


def test_nothing_tunes_itself() -> None:
    """Guards against a configuration chosen by timing: other bits on the next run, or the next machine."""
    for path in FILES:
        assert "triton.autotune" not in path.read_text(encoding="utf-8"), path
