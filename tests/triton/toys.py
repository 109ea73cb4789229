"""Small kernels with a known fault, or none, to show that what reads binaries sees it."""

import triton
import triton.language as tl

from trisparse.triton.variants import KernelVariant


@triton.jit
def product(
    left,
    right,
    out,
    stride_row,
    steps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [ROWS, COLUMNS] = left [ROWS, steps * DEPTH] times right [COLUMNS, steps * DEPTH], transposed."""
    row, column, depth = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        place = step * DEPTH + depth[None, :]
        first = tl.load(left + row[:, None] * stride_row + place)
        second = tl.load(right + column[:, None] * stride_row + place)
        total = tl.dot(first, tl.trans(second), total, input_precision=PRECISION)
    tl.store(out + row[:, None] * COLUMNS + column[None, :], total)


def product_variant(
    name: str,
    *,
    dtype: str = "bf16",
    rows: int = 64,
    columns: int = 64,
    depth: int = 64,
    precision: str = "ieee",
    num_warps: int = 4,
    aligned: list[str] | None = None,
) -> KernelVariant:
    return KernelVariant(
        name=name,
        function=product,
        signature={
            "left": f"*{dtype}",
            "right": f"*{dtype}",
            "out": "*fp32",
            "stride_row": "i64",
            "steps": "i32",
            **dict.fromkeys(("ROWS", "COLUMNS", "DEPTH", "PRECISION"), "constexpr"),
        },
        constants={"ROWS": rows, "COLUMNS": columns, "DEPTH": depth, "PRECISION": precision},
        num_warps=num_warps,
        aligned=aligned,
    )


GOOD = product_variant("good")
# 16 x 16 sums are work for two warps
REPEATED = product_variant("repeated", rows=16, columns=16, num_warps=8)
# 128 x 128 fp32 sums in one warp: 512 registers a thread, of at most 255
SPILLING = product_variant("spilling", rows=128, columns=128, num_warps=1)
# nothing is known to be divisible by 16: two bytes at a time
NARROW = product_variant("narrow", aligned=[])
WIDE_SHARED = product_variant("wide shared", rows=256, columns=256, depth=256, num_warps=8)
FP32 = product_variant("fp32", dtype="fp32")
TF32 = product_variant("tf32", dtype="fp32", precision="tf32")
