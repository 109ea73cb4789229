"""Results are compared by the error budget; a tolerance of a test's own has its reason here."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
COMPARISONS = {"assert_close", "allclose", "assert_allclose", "isclose"}

# what only fp64 meets, where results may differ by the order of sums and by nothing else
FP64 = 1e-8
_LAYERS = "whole layers or models, of which there is no reference in two precisions"
# file -> how many comparisons in it have a larger tolerance, and why the budget does not serve
ALLOWED = {
    "cpu/test_values.py": (
        1,
        "the exact result is one everywhere, so that there is nothing to be as close as",
    ),
    "eval/test_answers.py": (2, _LAYERS),
    "eval/test_forward.py": (1, "a logarithm of probabilities in float32 beside logits in bfloat16"),
    "gpu/test_layer.py": (1, _LAYERS),
    "nn/test_invariance.py": (1, _LAYERS),
    "nn/test_rope.py": (5, "angles against formulas, no attention"),
}


def is_exact(node):
    return isinstance(node, ast.Constant) and 0 <= node.value <= FP64


def tolerances(source):
    """Lines on which tensors are compared with a tolerance above `FP64`, or one that cannot be read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in COMPARISONS:
            continue
        given = [word.value for word in node.keywords if word.arg in ("rtol", "atol", None)]
        # torch.allclose(a, b, rtol, atol), and as a method of a
        given += node.args[2:]
        if not all(map(is_exact, given)):
            yield node.lineno


def test_comparisons_with_a_tolerance_are_those_that_have_a_reason():
    """Guards against a tolerance made so wide that a wrong result passes, in place of the budget."""
    found = {}
    for path in sorted(TESTS.rglob("*.py")):
        lines = [*tolerances(path.read_text(encoding="utf-8"))]
        if lines:
            found[path.relative_to(TESTS).as_posix()] = lines
    wanted = {name: count for name, (count, _) in ALLOWED.items()}
    advice = "compare by trisparse.testing.budget.assert_within_budget, or give a reason in ALLOWED"
    assert {name: len(lines) for name, lines in found.items()} == wanted, f"{advice}: {found}"


def test_reader_sees_every_form_of_tolerance():
    """Guards against a test that finds nothing because it looks for one spelling."""
    with_one = [
        "torch.testing.assert_close(a, b, rtol=1e-3, atol=0)",
        "assert_close(a, b, **CLOSE)",
        "assert torch.allclose(a, b, 1e-3)",
        "assert a.allclose(b, atol=tolerance)",
        "numpy.testing.assert_allclose(a, b, rtol=1e-3)",
        "torch.isclose(a, b, rtol=1e-9, atol=1e-7)",
    ]
    without = [
        "torch.testing.assert_close(a, b)",
        "torch.testing.assert_close(a, b, rtol=0, atol=0.0, equal_nan=True)",
        "torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)",
        "assert_within_budget('a', a, b, c)",
    ]
    assert [*tolerances("\n".join((*without, *with_one)))] == [
        *range(len(without) + 1, len(without) + len(with_one) + 1)
    ]
