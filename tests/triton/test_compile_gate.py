"""Every kernel is compiled for the GPUs it was tuned for, and its binary keeps what the tuning assumed."""

import csv
import inspect as sources
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import toys
import triton

from trisparse.triton.resources import (
    TARGETS,
    Resources,
    Target,
    all_variants,
    fingerprint,
    home_of,
    inspect,
    targets_of,
)
from trisparse.triton.variants import KernelVariant

# GPUs that nothing was tuned for: they take the configurations of a class of shared memory
GUESTS = ("sm_100", "gfx942")


# products that are made for each one that is asked for, as often as no warp repeats what another does
MOST_REPEATED = 1.0


class Spill(NamedTuple):
    """A hot kernel, by a part of its variants' names, that may spill on a target, and why."""

    target: str
    part: str
    most_bytes: int
    reason: str


_OUTSIDE = (
    "before and after its loops; a tile that spills nothing is half as wide, or makes its products twice"
)
SPILLS = (
    Spill("sm_80", "key_gradient[", 256, _OUTSIDE),
    Spill("sm_86", "key_gradient[", 256, _OUTSIDE),
    Spill("sm_90", "key_gradient[", 128, _OUTSIDE),
    Spill("sm_80", "selected_forward[bf16,d128,e128,m4", 8, "before and after its loops"),
    Spill("sm_90", "topn[", 16, "before and after its loop over the heads"),
    Spill("sm_90", "selected_query_gradient[", 8, "before and after its loop"),
    Spill("sm_90", "decode_compressed[bf16,d60,e100", 8, "before and after its loop"),
    Spill("sm_100", "", 256, "tiles of sm_90; sums that pass through tensor memory were never tuned"),
    Spill("gfx942", "key_gradient", 512, "tiles of consumer GPUs, never tuned for 64 lanes and MFMA"),
    Spill("gfx942", "topn", 2048, "tiles of consumer GPUs, never tuned for 64 lanes and MFMA"),
)
# (part of a variant's name, how often its loops reach for what was spilled, why they may)
LOOP_SPILLS: tuple[tuple[str, int, str], ...] = (
    ("selected_key_gradient[fp16,d192,e128,m1,", 6, "no group of one head has dims so wide"),
)
# (part of a variant's name, why warps may make its products alike)
REPEATED: tuple[tuple[str, str], ...] = (
    ("decode_compressed[", "bound by memory: 4 warps make each product once, and spill; 8 do neither"),
)
# (part of a variant's name, why it cannot load 16 bytes at once)
NARROW: tuple[tuple[str, str], ...] = (
    ("d60,e100", "16 divides neither its rows of 120 and 200 bytes nor the strides of its heads"),
)

VARIANTS = [variant for _, variant in all_variants()]
BY_NAME = {variant.name: variant for variant in VARIANTS}
# shapes compiled in every run, with gates where a kernel takes them, or without: dims split in two, odd ones,
# small groups, each class of shared memory, fp32. The table of binaries has all of them.
GATED_SHAPES = ("bf16,d192,e128,m16,large,packed", "bf16,d128,e128,m16,medium", "bf16,d128,e128,m4,small")
PLAIN_SHAPES = ("bf16,d60,e100,m3,large", "fp32,d128,e128,m4,large")


def is_compiled(variant: KernelVariant) -> bool:
    """Whether each run compiles it anew."""
    name, gates = variant.name.removesuffix("]"), ",gated"
    if any(shape in name for shape in PLAIN_SHAPES):
        return not name.endswith(gates)
    has_twin = f"{name}{gates}]" in BY_NAME
    return any(shape in name for shape in GATED_SHAPES) and not has_twin


COMPILED = [variant for variant in VARIANTS if is_compiled(variant)]
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "kernel_resources.csv"


def loop_complaints(variant: KernelVariant, found: Resources) -> Iterator[str]:
    """What is wrong with the loops of a binary for a GPU that its tiles were chosen for."""
    reached = max((most for part, most, _ in LOOP_SPILLS if part in variant.name), default=0)
    if found.loop_spills > reached:
        yield f"reaches for spilled registers {found.loop_spills} times in its loops"
    if found.repeated > MOST_REPEATED and not any(part in variant.name for part, _ in REPEATED):
        yield f"makes its products {found.repeated} times"


def complaints(variant: KernelVariant, target: Target, found: Resources) -> Iterator[str]:
    """What is wrong with a binary."""
    exceptions = [each for each in SPILLS if each.target == target.name and each.part in variant.name]
    allowed = max((each.most_bytes for each in exceptions), default=0)
    if variant.hot and found.spilled_bytes > allowed:
        yield f"spills {found.spilled_bytes} bytes"
    if variant.hot and target.name not in GUESTS:
        yield from loop_complaints(variant, found)
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


def first_of_each_kernel(target: Target) -> list[KernelVariant]:
    usable = [variant for variant in VARIANTS if target in targets_of(variant)]
    return list({variant.function: variant for variant in reversed(usable)}.values())


@pytest.mark.parametrize(
    ("target", "variant"),
    [(name, variant) for name in GUESTS for variant in first_of_each_kernel(TARGETS[name])],
    ids=lambda value: value.name if isinstance(value, KernelVariant) else value,
)
def test_compiles_for_other_gpus(target: str, variant: KernelVariant) -> None:
    """Guards against code that only one generation or maker can compile, or fit into its GPU."""
    assert list(complaints(variant, TARGETS[target], inspect(variant, TARGETS[target]))) == []


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (toys.SPILLING, r"spills \d+ bytes"),
        (toys.SPILLING, r"reaches for spilled registers \d+ times"),
        (toys.REPEATED, r"makes its products 4.0 times"),
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


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], dict[str, str]]:
    """The rows of the committed table by variant and target."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {(row["variant"], row["target"]): row for row in csv.DictReader(file)}


WANTED = {(variant.name, target.name): variant for variant in VARIANTS for target in targets_of(variant)}


def test_every_promised_shape_has_variants_everywhere() -> None:
    """Guards against a table that is complete because little is asked of it."""
    targets = set(TARGETS) - {"sm_86"}
    for kernel in ("window_forward", "selected_key_gradient", "decode_tokens"):
        for dims in ("d128,e128", "d192,e128", "d64,e64"):
            for dtype in ("bf16", "fp16"):
                start = f"{kernel}[{dtype},{dims},m16,"
                assert {target for name, target in WANTED if name.startswith(start)} >= targets, start


def test_table_has_every_variant_and_no_fault(table: dict[tuple[str, str], dict[str, str]]) -> None:
    """Guards against shapes that no run compiles: tools/kernel_resources.py has compiled all of them."""
    assert table.keys() == WANTED.keys(), "run tools/kernel_resources.py"
    faults = {}
    for (name, target), row in table.items():
        assert row["status"] == "ok", f"{name} {target}: {row['status']}"
        found = complaints(WANTED[name, target], TARGETS[target], resources_of(row))
        faults[name, target] = list(found)
    assert {place: texts for place, texts in faults.items() if texts} == {}


def test_table_is_of_these_kernels(table: dict[tuple[str, str], dict[str, str]]) -> None:
    """Guards against rows of kernels, or configurations, as they were; the tool compiles what changed."""
    old = {
        name
        for (name, _), row in table.items()
        if name not in BY_NAME or row["fingerprint"] != fingerprint(BY_NAME[name])
    }
    assert old == set(), "run tools/kernel_resources.py"


def test_every_spill_that_is_allowed_happens(table: dict[tuple[str, str], dict[str, str]]) -> None:
    """Guards against an allowance that outlived its reason, or is much wider than it must be."""
    for each in SPILLS:
        spilled = [
            int(row["spilled_bytes"])
            for (name, target), row in table.items()
            if target == each.target and each.part in name and WANTED[name, target].hot
        ]
        assert each.most_bytes / 4 < max(spilled) <= each.most_bytes, each


def resources_of(row: dict[str, str]) -> Resources:
    """A row of the table as what `inspect` returned."""
    families = (word.partition(":") for word in row["tensor_core"].split())
    loads = {16: "loads_16", 8: "loads_8", 4: "loads_4", 2: "loads_narrow"}
    return Resources(
        registers=int(row["registers"]),
        spilled_bytes=int(row["spilled_bytes"]),
        loop_spills=int(row["loop_spills"]),
        repeated=float(row["repeated"]),
        shared_bytes=int(row["shared_bytes"]),
        tensor_core={family: int(count) for family, _, count in families},
        loads={width: int(row[column]) for width, column in loads.items() if int(row[column])},
        half_dots=int(row["half_dots"]),
        reduced_dots=int(row["reduced_dots"]),
    )


def test_every_other_allowance_is_needed(table: dict[tuple[str, str], dict[str, str]]) -> None:
    """Guards against an allowance for loops or products that outlived its reason."""
    rows = [(name, row) for (name, target), row in table.items() if target not in GUESTS]
    for part, most, _ in LOOP_SPILLS:
        assert max(int(row["loop_spills"]) for name, row in rows if part in name) == most, part
    for part, _ in REPEATED:
        assert any(float(row["repeated"]) > MOST_REPEATED for name, row in rows if part in name), part


def test_every_narrow_kernel_exists() -> None:
    """Guards against an exception that outlived its reason."""
    for part, _ in NARROW:
        assert any(part in variant.name for variant in VARIANTS), part
