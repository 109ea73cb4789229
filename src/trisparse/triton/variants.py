"""One specialisation of a Triton kernel: what has to be known to compile it on a machine without a GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# of one program: a Hopper GPU (H100, H200), an A100, and consumer GPUs from Ampere on
HOPPER_SHARED_BYTES = 227 * 1024
AMPERE_SHARED_BYTES = 163 * 1024
CONSUMER_SHARED_BYTES = 99 * 1024


@dataclass(frozen=True, kw_only=True)
class KernelVariant:
    """A kernel with its argument types and its compile-time values, as one launch would specialise it.

    Attributes:
        name: unique among all variants, for example `window_forward[bf16,d128,e128,m16]`.
        function: the `@triton.jit` function.
        signature: every argument by name: "*bf16", "*fp32", "*i32", "i32", "i64", "fp32" or "constexpr".
        constants: the value of every "constexpr" argument; None for a pointer that is not passed.
        num_warps: warps of one program.
        num_stages: buffers of a software-pipelined loop.
        hot: the kernel takes a share of the run time that matters, so it must not spill registers.
        shared_limit: bytes of shared memory that the configuration may use.
        aligned: arguments that a usual launch finds divisible by 16, which is what lets the compiler load 16
            bytes at once; None for every pointer and every integer whose name contains "stride".

    Raises:
        ValueError: signature, constants and the function's arguments do not fit together.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    hot: bool = True
    shared_limit: int = HOPPER_SHARED_BYTES
    aligned: Sequence[str] | None = None

    def __post_init__(self) -> None:
        names = list(self.function.arg_names)
        missing = [name for name in names if name not in self.signature]
        unknown = [name for name in self.signature if name not in names]
        if missing or unknown:
            raise ValueError(f"signature: {self.name} lacks {missing} and names {unknown}, not arguments")
        constexprs = {name for name, kind in self.signature.items() if kind == "constexpr"}
        if constexprs != set(self.constants):
            different = sorted(constexprs ^ set(self.constants))
            raise ValueError(f"constants: {self.name} differs from the constexpr arguments in {different}")

    @property
    def aligned_names(self) -> list[str]:
        """`aligned`, or what it stands for."""
        if self.aligned is not None:
            return list(self.aligned)
        strides = ("i32", "i64")
        return [
            name
            for name, kind in self.signature.items()
            if kind.startswith("*") or (kind in strides and "stride" in name)
        ]
