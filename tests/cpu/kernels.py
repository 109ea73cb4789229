"""What tests of the native kernels share: larger cases, whole calls, and whether there are kernels at all."""

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.cpu.errors import BuildError
from trisparse.cpu.library import library
from trisparse.testing.inputs import Case, Inputs, make_inputs


def _why_not() -> str | None:
    """None if the kernels of all instruction sets are there, else the reason."""
    try:
        library()
    except BuildError as error:
        return str(error)
    return None


_REASON = _why_not()
needs_kernels = pytest.mark.skipif(_REASON is not None, reason=f"no native kernels: {_REASON}")

# windows and selections of several tiles, none of them a whole number of tiles
CONFIG = SparseConfig(num_selected=6, window=300)


def instruction_sets() -> tuple[str, ...]:
    """Those that can run here, best first."""
    return () if _REASON is not None else library().instruction_sets


def draw(dtype: torch.dtype = torch.float32, seed: int = 1, **others) -> Inputs:
    """Inputs of a call that is worth several threads, with heads that do not fill a tile."""
    sizes = {"batch": 2, "tokens": 611, "heads": 12, "groups": 2, "head_dim": 64, "value_dim": 48}
    return make_inputs(Case(**{"name": "kernels", "config": CONFIG, **sizes, **others}), dtype, seed)


def grad_of(inputs: Inputs, seed: int = 3) -> torch.Tensor:
    """A gradient for the output of `inputs`."""
    shape = (*inputs.query.shape[:3], inputs.selected[1].shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(inputs.query)


def with_jump(inputs: Inputs, size: float) -> Inputs:
    """`inputs` with keys that score about -1.5 * size, from the 64th on 0.015 * size."""
    query, *pairs, gates = inputs.tensors

    def key(tensor: torch.Tensor) -> torch.Tensor:
        level = torch.where(torch.arange(tensor.shape[1]) < 64, -1.5 * size, 0.015 * size)
        return ((tensor.abs() + 0.5) * level[None, :, None, None]).to(tensor.dtype)

    keys = [tensor if index % 2 else key(tensor) for index, tensor in enumerate(pairs)]
    return inputs.with_tensors(((query.abs() + 0.5).to(query.dtype), *keys, gates))


def run(inputs: Inputs, grad: torch.Tensor | None = None, **where) -> list[torch.Tensor]:
    """Output and the eight gradients of the whole op."""
    leaves = inputs.leaves()
    out = trisparse.sparse_attention(*leaves.all_arguments, backend="cpu", **inputs.where | where)
    grad = grad_of(inputs) if grad is None else grad
    return [out.detach(), *torch.autograd.grad(out, leaves.tensors, grad)]


def assert_same_bits(actual: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """Equal, and NaN where the other is NaN."""
    for index, (got, exact) in enumerate(zip(actual, wanted, strict=True)):
        assert torch.equal(got.nan_to_num(nan=12345.0), exact.nan_to_num(nan=12345.0)), f"result {index}"
