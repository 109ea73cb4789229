"""What is read from a binary is what was put into it."""

import pytest
import toys

from trisparse.triton.resources import TARGETS, inspect
from trisparse.triton.variants import KernelVariant


@pytest.mark.parametrize(
    ("target", "family"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA"), ("gfx942", "MFMA")]
)
def test_good_kernel_reads_as_good(target: str, family: str) -> None:
    """Guards against a reader that knows the instructions of one generation only."""
    found = inspect(toys.GOOD, TARGETS[target])
    assert set(found.tensor_core) == {family}
    assert 0 < found.registers < 255
    assert (found.spilled_bytes, found.loop_spills) == (0, 0)
    assert found.repeated == (1.0 if family in ("HMMA", "HGMMA") else 0.0)
    assert found.loads[16] > 0
    assert min(found.loads) >= 4
    assert 0 < found.shared_bytes <= TARGETS[target].shared_bytes
    assert (found.half_dots, found.reduced_dots) == (1, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_spills_are_seen(target: str) -> None:
    """Guards against a spill count that is always zero."""
    assert inspect(toys.SPILLING, TARGETS[target]).spilled_bytes > 0


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_products_that_warps_repeat_are_seen(target: str) -> None:
    """Guards against a count that is always one: so small a product is work for two of eight warps."""
    assert inspect(toys.REPEATED, TARGETS[target]).repeated == 4.0


@pytest.mark.parametrize("target", TARGETS)
def test_narrow_loads_are_seen(target: str) -> None:
    """Guards against loads of two bytes that read as wide ones."""
    found = inspect(toys.NARROW, TARGETS[target])
    assert 16 not in found.loads
    assert found.loads[2] > 0


def test_shared_memory_is_seen() -> None:
    """Guards against a size that is not the binary's: two operands of 256 x 256 bf16."""
    assert inspect(toys.WIDE_SHARED, TARGETS["sm_90"]).shared_bytes >= 2 * 256 * 256 * 2


def test_precision_of_fp32_products_is_seen() -> None:
    """Guards against fp32 inputs that are rounded to TF32 unasked."""
    plain, reduced = (inspect(variant, TARGETS["sm_80"]) for variant in (toys.FP32, toys.TF32))
    assert (plain.half_dots, plain.reduced_dots, plain.tensor_core) == (0, 0, {})
    assert (reduced.half_dots, reduced.reduced_dots) == (0, 1)


def test_variant_that_does_not_fit_its_kernel_is_refused() -> None:
    """Guards against a signature left behind when a kernel gained or lost an argument."""
    signature = dict(toys.GOOD.signature)
    del signature["steps"]
    with pytest.raises(ValueError, match="signature: short lacks .'steps'."):
        KernelVariant(name="short", function=toys.product, signature=signature, constants=toys.GOOD.constants)
    with pytest.raises(ValueError, match="constants: bare differs .* in .*'COLUMNS'"):
        KernelVariant(name="bare", function=toys.product, signature=toys.GOOD.signature, constants={})
