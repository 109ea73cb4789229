"""Every kernel is compiled for the GPUs it was tuned for, and its binary keeps what the tuning assumed."""

import csv
import inspect as sources
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import toys
import triton

from trisparse.triton.resources import TARGETS, Resources, Target, all_variants, home_of, inspect
from trisparse.triton.variants import KernelVariant

# compiled for with one variant of each kernel: nothing is promised about their speed
OTHERS = ("sm_100", "gfx942")

# (part of a variant's name, why its hot kernel may spill that many bytes)
SPILLS: tuple[tuple[str, int, str], ...] = ()
# (part of a variant's name, why it cannot load 16 bytes at once)
NARROW: tuple[tuple[str, str], ...] = (
    ("d60,e100", "16 divides neither its rows of 120 and 200 bytes nor the strides of its heads"),
)

VARIANTS = [variant for _, variant in all_variants()]
# shapes compiled in every run: dims split in two, odd ones, small groups, each class of shared memory, fp32;
# the table of binaries has all of them
SHAPES = (
    "bf16,d192,e128,m16,large,packed",
    "bf16,d128,e128,m16,medium",
    "bf16,d128,e128,m4,small",
    "bf16,d60,e100,m3,large",
    "fp32,d128,e128,m4,large",
)
COMPILED = [variant for variant in VARIANTS if any(shape in variant.name for shape in SHAPES)]
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "kernel_resources.csv"


def complaints(variant: KernelVariant, target: Target, found: Resources) -> Iterator[str]:
    """What is wrong with a binary."""
    allowed = max((size for part, size, _ in SPILLS if part in variant.name), default=0)
    if variant.hot and found.spilled_bytes > allowed:
        yield f"spills {found.spilled_bytes} bytes"
    if found.shared_bytes > min(variant.shared_limit, target.shared_bytes):
        yield f"takes {found.shared_bytes} bytes of shared memory, has {variant.shared_limit}"
    if found.reduced_dots:
        yield "rounds fp32 operands"
    if not found.half_dots:
        return
    if sum(found.tensor_core.values()) < found.half_dots:
        yield f"multiplies {found.half_dots} times, on tensor cores {found.tensor_core}"
    if any(part in variant.name for part, _ in NARROW):
        return
    narrow = {width: count for width, count in found.loads.items() if width < 4}
    if narrow:
        yield f"loads fewer than 4 bytes at once: {narrow}"
    if 16 not in found.loads:
        yield f"never loads 16 bytes at once: {found.loads}"


@pytest.mark.parametrize("variant", COMPILED, ids=lambda variant: variant.name)
def test_binary_keeps_its_promises(variant: KernelVariant) -> None:
    """Guards against spills, too much shared memory, products off the tensor cores, and narrow loads."""
    target = home_of(variant)
    assert list(complaints(variant, target, inspect(variant, target))) == []


def first_of_each_kernel() -> list[KernelVariant]:
    return list({variant.function: variant for variant in reversed(VARIANTS)}.values())


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("variant", first_of_each_kernel(), ids=lambda variant: variant.name)
def test_compiles_for_other_gpus(variant: KernelVariant, target: str) -> None:
    """Guards against code that only one generation or maker can compile."""
    found = inspect(variant, TARGETS[target])
    assert sum(found.tensor_core.values()) >= found.half_dots


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (toys.SPILLING, r"spills \d+ bytes"),
        (toys.WIDE_SHARED, r"takes \d+ bytes of shared memory"),
        (toys.NARROW, r"loads fewer than 4 bytes at once"),
        (toys.TF32, r"rounds fp32 operands"),
    ],
    ids=lambda value: value.name if isinstance(value, KernelVariant) else "",
)
def test_gate_stops_a_bad_kernel(variant: KernelVariant, complaint: str) -> None:
    """Guards against a gate that nothing can fail."""
    target = TARGETS["sm_90"]
    assert list(complaints(toys.GOOD, target, inspect(toys.GOOD, target))) == []
    found = list(complaints(variant, target, inspect(variant, target)))
    assert any(re.match(complaint, text) for text in found), found


def test_every_kernel_has_a_variant() -> None:
    """Guards against a kernel that the gate never sees: one that no other kernel calls must be listed."""
    room = [module for name, module in sys.modules.items() if name.startswith("trisparse.triton.")]
    functions = {
        value
        for module in room
        for value in vars(module).values()
        if isinstance(value, triton.JITFunction) and value.fn.__module__ == module.__name__
    }
    bodies = {function: sources.getsource(function.fn) for function in functions}
    called = {
        function
        for function in functions
        for other, body in bodies.items()
        if other is not function and re.search(rf"\b{function.fn.__name__}\(", body)
    }
    missing = functions - called - {variant.function for variant in VARIANTS}
    assert {function.fn.__name__ for function in missing} == set()


def test_table_has_every_variant_and_no_fault() -> None:
    """Guards against shapes that no run compiles: tools/kernel_resources.py has compiled all of them."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = {(row["variant"], row["target"]): row for row in csv.DictReader(file)}
    wanted = {(variant.name, home_of(variant).name): variant for variant in VARIANTS}
    assert rows.keys() == wanted.keys(), "run tools/kernel_resources.py"
    faults = {}
    for (name, target), row in rows.items():
        assert row["status"] == "ok", f"{name}: {row['status']}"
        faults[name] = list(complaints(wanted[name, target], TARGETS[target], resources_of(row)))
    assert {name: texts for name, texts in faults.items() if texts} == {}


def resources_of(row: dict[str, str]) -> Resources:
    """A row of the table as what `inspect` returned."""
    families = (word.partition(":") for word in row["tensor_core"].split())
    loads = {16: "loads_16", 8: "loads_8", 4: "loads_4", 2: "loads_narrow"}
    return Resources(
        registers=int(row["registers"]),
        spilled_bytes=int(row["spilled_bytes"]),
        shared_bytes=int(row["shared_bytes"]),
        tensor_core={family: int(count) for family, _, count in families},
        loads={width: int(row[column]) for width, column in loads.items() if int(row[column])},
        half_dots=int(row["half_dots"]),
        reduced_dots=int(row["reduced_dots"]),
    )


def test_every_exception_is_used() -> None:
    """Guards against an allowance that outlived its reason."""
    for part in (*(part for part, _, _ in SPILLS), *(part for part, _ in NARROW)):
        assert any(part in variant.name for variant in VARIANTS), part
