"""What a kernel's binary uses on a GPU, read without one: registers, spills, shared memory, instructions.

Triton compiles for a GPU that is not there, and its package brings the tools that take the binary apart.
"""

import ast
import hashlib
import importlib
import inspect as sources
import pkgutil
import re
import subprocess
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import trisparse.triton
from trisparse.triton.variants import (
    AMPERE_SHARED_BYTES,
    CONSUMER_SHARED_BYTES,
    HOPPER_SHARED_BYTES,
    KernelVariant,
)

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TOOL_SECONDS = 120.0

_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Zx0-9_.]*)([^;]*);")
_GCN = re.compile(r"^\s+([a-z]\w+)", re.MULTILINE)
_TENSOR_CORE = re.compile(r"^([HIQO]G?MMA|UTC\w*MMA|v_mfma\w*)")
_DOT = re.compile(r"\btt\.dot .*: tensor<[\dx]+x(\w+)>")
# the same after optimisation, where loops that never run are gone; a product's operands follow
_PLACED_DOT = re.compile(r"(?:tt\.dot|warp_group_dot) .*? : (.*)")
_OPERAND = re.compile(r"<(\d+)x(\d+)x(?:bf16|f16)")
# rows, columns and depth of what a warp, or four of them (HGMMA), multiply at once
_HMMA, _HGMMA = re.compile(r"^HMMA\.(16)(8)(16|8)\."), re.compile(r"^HGMMA\.(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A GPU to compile for, and the shared memory one program can have on it."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int


TARGETS = {
    target.name: target
    for target in (
        Target(name="sm_80", backend="cuda", arch=80, warp_size=32, shared_bytes=AMPERE_SHARED_BYTES),
        Target(name="sm_86", backend="cuda", arch=86, warp_size=32, shared_bytes=CONSUMER_SHARED_BYTES),
        Target(name="sm_90", backend="cuda", arch=90, warp_size=32, shared_bytes=HOPPER_SHARED_BYTES),
        Target(name="sm_100", backend="cuda", arch=100, warp_size=32, shared_bytes=HOPPER_SHARED_BYTES),
        Target(name="gfx942", backend="hip", arch="gfx942", warp_size=64, shared_bytes=64 * 1024),
    )
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one binary uses.

    Attributes:
        registers: of one thread.
        spilled_bytes: of one thread's memory that holds what found no register.
        loop_spills: instructions that reach for it in the innermost loops with tensor-core instructions.
        shared_bytes: of one program.
        tensor_core: how often each tensor-core instruction occurs, by its family, for example {"HGMMA": 16}.
        loads: how often a load from global memory of that many bytes by one thread occurs.
        repeated: products that tensor cores make for each one that is asked for; more than 1 where warps
            compute the same. 0 where that is not known.
        half_dots: `tl.dot` of bf16 or fp16 operands in the source, which only tensor cores do fast.
        reduced_dots: `tl.dot` of fp32 operands that may be rounded to a shorter format.
    """

    registers: int
    spilled_bytes: int
    loop_spills: int
    shared_bytes: int
    tensor_core: dict[str, int]
    loads: dict[int, int]
    repeated: float
    half_dots: int
    reduced_dots: int


# the GPU of each class of shared memory that configurations are made for, least first
_HOMES = ("sm_86", "sm_80", "sm_90")


def home_of(variant: KernelVariant) -> Target:
    """The target with the least shared memory in which a variant's configuration must fit."""
    return next(TARGETS[name] for name in _HOMES if variant.shared_limit <= TARGETS[name].shared_bytes)


# other GPUs that take the configurations of a class of shared memory
_GUESTS = {HOPPER_SHARED_BYTES: ("sm_100",), CONSUMER_SHARED_BYTES: ("gfx942",)}


def targets_of(variant: KernelVariant) -> list[Target]:
    """Every target on which a launch may choose this configuration, its home first."""
    guests = _GUESTS.get(variant.shared_limit, ())
    return [home_of(variant), *(TARGETS[name] for name in guests)]


def fingerprint(variant: KernelVariant) -> str:
    """Changes with the code of the kernel, of what it calls, and with its configuration; not its comments."""
    facts = (
        sorted(variant.signature.items()),
        sorted(variant.constants.items()),
        sorted(variant.aligned_names),
        variant.num_warps,
        variant.num_stages,
        sorted(_code(variant.function)),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


@cache
def _code(function: Any) -> frozenset[str]:
    """The code of a kernel and of all that it calls, and the constants that they name."""
    tree = ast.parse(textwrap.dedent(sources.getsource(function.fn)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    found = {ast.unparse(tree)}
    for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
        value = function.fn.__globals__.get(name)
        if isinstance(value, triton.JITFunction):
            found |= _code(value) if value is not function else set()
        elif isinstance(value, triton.language.constexpr):
            found.add(f"{name} = {value.value!r}")
    return frozenset(found)


def kernel_modules() -> dict[str, Any]:
    """The modules of this room that hold kernels, by name: those that list variants."""
    names = sorted(module.name for module in pkgutil.iter_modules(trisparse.triton.__path__))
    modules = {name: importlib.import_module(f"trisparse.triton.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "variants")}


def all_variants() -> Iterator[tuple[str, KernelVariant]]:
    """Every variant with the name of its module.

    Raises:
        ValueError: two variants share a name.
    """
    seen: set[str] = set()
    for module_name, module in kernel_modules().items():
        for variant in module.variants():
            if variant.name in seen:
                raise ValueError(f"variants: expected unique names, got {variant.name!r} twice")
            seen.add(variant.name)
            yield module_name, variant


def inspect(variant: KernelVariant, target: Target) -> Resources:
    """Compile `variant` for `target` and take the binary apart. Needs no GPU.

    Raises:
        RuntimeError: the kernels were imported for the interpreter, or a tool failed.
        triton.CompilationError: the kernel does not compile.
    """
    compiled = _compile(variant, target)
    if target.backend == "cuda":
        registers, spilled, sass = _read_nvidia(compiled.asm)
        opcodes, loop_spills = Counter(each.opcode for each in sass), _loop_spills(sass)
    else:
        registers, spilled, opcodes = _read_amd(compiled.asm)
        loop_spills = 0
    dots = _DOT.finditer(compiled.asm["ttir"])
    kinds = Counter((dot[1], "inputPrecision" in dot[0]) for dot in dots)
    return Resources(
        registers=registers,
        spilled_bytes=spilled,
        loop_spills=loop_spills,
        shared_bytes=compiled.metadata.shared,
        tensor_core=_tensor_core(opcodes),
        loads=_load_widths(opcodes),
        repeated=round(_multiplications(opcodes, variant.num_warps) / max(1, _asked(compiled.asm)), 2),
        half_dots=sum(count for (kind, _), count in kinds.items() if kind in ("bf16", "f16")),
        reduced_dots=kinds["f32", True],
    )


def _compile(variant: KernelVariant, target: Target) -> Any:
    function = variant.function
    if not isinstance(function, triton.JITFunction):
        raise RuntimeError(f"{variant.name}: expected a compiled kernel; unset TRITON_INTERPRET")
    aligned = set(variant.aligned_names)
    places = [(index,) for index, name in enumerate(function.arg_names) if name in aligned]
    source = ASTSource(
        fn=function,
        signature={name: variant.signature[name] for name in function.arg_names},
        constexprs=dict(variant.constants),
        attrs={place: [["tt.divisibility", 16]] for place in places},
    )
    return triton.compile(
        source,
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )


class Instruction(NamedTuple):
    """One of a cubin; `target` is where a branch goes, else -1."""

    address: int
    opcode: str
    target: int


def _read_nvidia(asm: Any) -> tuple[int, int, list[Instruction]]:
    """Registers, bytes of stack and instructions of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("cuobjdump", "-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump: expected REG and STACK, got {usage!r}")
    instructions = []
    for address, opcode, rest in _SASS.findall(sass):
        target = re.search(r"0x([0-9a-f]+)", rest) if opcode.startswith("BRA") else None
        instructions.append(Instruction(int(address, 16), opcode, int(target[1], 16) if target else -1))
    return int(found[1]), int(found[2]), instructions


def _loop_spills(instructions: list[Instruction]) -> int:
    """Loads and stores of spilled registers in the innermost loops that multiply on tensor cores."""

    def inside(kinds: tuple[str, ...], loop: tuple[int, int]) -> int:
        return sum(loop[0] <= x.address <= loop[1] and x.opcode.startswith(kinds) for x in instructions)

    loops = [(x.target, x.address) for x in instructions if 0 <= x.target < x.address]
    hot = [loop for loop in loops if inside(("HMMA", "HGMMA", "UTC"), loop)]
    inner = [x for x in hot if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in hot)]
    return sum(inside(("LDL", "STL"), loop) for loop in inner)


def _multiplications(opcodes: Counter[str], num_warps: int) -> int:
    """Multiplications of half-precision numbers that the tensor cores of one program make, loops once."""
    total = 0
    for opcode, count in opcodes.items():
        for pattern, warps in ((_HMMA, 1), (_HGMMA, 4)):
            if found := pattern.match(opcode):
                total += count * int(found[1]) * int(found[2]) * int(found[3]) * num_warps // warps
    return total


def _asked(asm: Any) -> int:
    """The same as the products in the source need them."""
    total = 0
    for operands in _PLACED_DOT.findall(asm["ttgir"]):
        if len(sizes := _OPERAND.findall(operands)) >= 2:
            (rows, depth), (_, columns) = sizes[:2]
            total += int(rows) * int(depth) * int(columns)
    return total


def _read_amd(asm: Any) -> tuple[int, int, Counter[str]]:
    """Registers, bytes of scratch and instructions of assembly text."""
    text = asm["amdgcn"]
    registers, scratch = (
        max(int(number) for number in re.findall(rf"\.{name}:\s+(\d+)", text))
        for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return registers, scratch, Counter(_GCN.findall(text))


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(_TOOLS / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TOOL_SECONDS,
        env={"PATH": str(_TOOLS)},  # cuobjdump starts nvdisasm
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _tensor_core(opcodes: Counter[str]) -> dict[str, int]:
    families: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        if found := _TENSOR_CORE.match(opcode):
            families["MFMA" if found[1].startswith("v_mfma") else found[1]] += count
    return dict(sorted(families.items()))


def _load_widths(opcodes: Counter[str]) -> dict[int, int]:
    widths: Counter[int] = Counter()
    for opcode, count in opcodes.items():
        if opcode.partition(".")[0] in ("LDG", "LDGSTS"):
            widths[_nvidia_width(opcode)] += count
        elif opcode.startswith(("global_load_", "buffer_load_")):
            widths[_amd_width(opcode)] += count
    return dict(sorted(widths.items(), reverse=True))


def _nvidia_width(opcode: str) -> int:
    parts = set(opcode.split("."))
    named = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((width for name, width in named.items() if name in parts), 4)


def _amd_width(opcode: str) -> int:
    named = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "byte": 1}
    return next((width for name, width in named.items() if name in opcode), 4)
