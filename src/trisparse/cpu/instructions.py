"""The instruction sets that kernels are built for, each from one source file with flags of its own."""

from dataclasses import dataclass

from trisparse.cpu.processor import Processor

# names the one instruction set to use, for tests and comparisons
FORCE = "TRISPARSE_CPU_INSTRUCTIONS"


@dataclass(frozen=True)
class InstructionSet:
    """How one instruction set is built.

    `features`: without these the processor cannot run it. `probe`: one instruction that compiler and
    assembler must know beside `flags`; empty if there is nothing to ask. `variant`: tells it from others with
    its name. `engine`: the header with its products. `dtypes`: what it computes in. `vendor`: of whose
    processors it is known to be faster than the next set; empty if of all.
    """

    name: str
    flags: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    probe: str = ""
    variant: str = ""
    engine: str = "engine_float.h"
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    vendor: str = ""

    @property
    def label(self) -> str:
        """What reports call it."""
        return self.variant or self.name

    @property
    def source(self) -> str:
        """Name of the source file that only it has."""
        return f"{self.name}.cpp"

    @property
    def all_flags(self) -> tuple[str, ...]:
        """What its sources are compiled with, beside what all sources are."""
        return (*self.flags, f"-DTRISPARSE_SET={self.name}", f'-DTRISPARSE_ENGINE="{self.engine}"')

    @property
    def macro(self) -> str:
        """Tells the other sources that this set is in the library."""
        return f"-DTRISPARSE_WITH_{self.name.upper()}"


PORTABLE = InstructionSet("portable")
_AVX2 = InstructionSet(
    "portable",
    flags=("-mavx2", "-mfma", "-mf16c"),
    features=("avx2", "fma", "f16c"),
    probe="vfmadd231ps %ymm0, %ymm0, %ymm0",
    variant="avx2",
)
_AVX512 = InstructionSet(
    "avx512",
    flags=("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    features=("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"),
    probe="vfmadd231ps %zmm0, %zmm0, %zmm0",
)
_AVX512_BF16 = InstructionSet(
    "avx512_bf16",
    flags=(*_AVX512.flags, "-mavx512bf16"),
    features=(*_AVX512.features, "avx512_bf16"),
    probe="vdpbf16ps %zmm0, %zmm0, %zmm0",
    engine="engine_bfloat16.h",
    dtypes=("bfloat16",),
    # measured: on Zen 4 a dot product takes the time of a float product, on Sapphire Rapids that of three
    vendor="AuthenticAMD",
)
_AMX = InstructionSet(
    "amx",
    flags=(*_AVX512_BF16.flags, "-mamx-tile", "-mamx-bf16"),
    features=(*_AVX512_BF16.features, "amx_tile", "amx_bf16"),
    probe="tdpbf16ps %tmm2, %tmm1, %tmm0",
    engine="engine_amx.h",
    dtypes=("bfloat16",),
)

# best first; of two with one name, the first that can be had is built
_SETS = {"x86_64": (_AMX, _AVX512_BF16, _AVX512, _AVX2, PORTABLE)}
# files that need the flags of their set, also where the processor is of another kind
SPECIAL_SOURCES = frozenset(one.source for sets in _SETS.values() for one in sets)


def candidates(processor: Processor) -> tuple[InstructionSet, ...]:
    """All sets of the processor's kind, best first, whether this one can run them or not."""
    return _SETS.get(processor.machine, (PORTABLE,))


def why_not(candidate: InstructionSet, processor: Processor) -> str | None:
    """None if `processor` can run `candidate`, else what it lacks."""
    missing = [name for name in candidate.features if name not in processor.features]
    return f"the processor has no {', '.join(missing)}" if missing else None


def why_not_worth(candidate: InstructionSet, processor: Processor) -> str | None:
    """None if `candidate` is known to be faster on `processor` than the next set, else why it is left out."""
    if candidate.vendor in ("", processor.vendor):
        return None
    return f"known to be of use on processors of {candidate.vendor} only; {FORCE}={candidate.name} builds it"


def multiplies_bfloat16(name: str) -> bool:
    """Whether the set `name` is one for bfloat16 alone, with products of its own."""
    return any(one.name == name and one.dtypes == ("bfloat16",) for sets in _SETS.values() for one in sets)
