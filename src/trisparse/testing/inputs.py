"""Named shapes and seeded inputs for every comparison of one backend with another."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trisparse.backends import available_backends
from trisparse.config import SparseConfig

Pair = tuple[Tensor, Tensor]

_WIDE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
# spec 9
DTYPES = {"reference": _WIDE, "torch": _WIDE, "cpu": _NARROW, "triton": _NARROW}


def usable_backends(dtype: torch.dtype | None = None) -> list[str]:
    """The backends that can run here, the reference first; only those that take `dtype`, if it is given.

    Without "triton" where there is only its interpreter, which takes hours for what kernels do in seconds.
    """
    usable = [name for name, reason in available_backends().items() if reason is None]
    if not torch.cuda.is_available():
        usable = [name for name in usable if name != "triton"]
    return [name for name in usable if dtype is None or dtype in DTYPES[name]]


def kernel_backends(dtype: torch.dtype | None = None) -> list[str]:
    """`usable_backends` without the reference that they are compared with."""
    return [name for name in usable_backends(dtype) if name != "reference"]


def device_of(backend: str) -> str:
    """Where the tensors for `backend` must lie."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape. With `query_start` the query rows begin there and end with the last token.

    Attributes:
        cu_seqlens: bounds of the documents packed into a batch of 1, or None.
    """

    name: str
    batch: int
    tokens: int
    heads: int
    groups: int
    head_dim: int
    value_dim: int
    config: SparseConfig
    query_start: int = 0
    cu_seqlens: tuple[int, ...] | None = None

    @property
    def num_compressed(self) -> int:
        """Compressed blocks, summed over the documents."""
        if self.cu_seqlens is None:
            return self.config.num_compressed(self.tokens)
        bounds = zip(self.cu_seqlens, self.cu_seqlens[1:], strict=False)
        return sum(self.config.num_compressed(stop - start) for start, stop in bounds)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The tensors of one call, as `sparse_attention` names them; `where` holds its other arguments."""

    query: Tensor
    compressed: Pair
    selected: Pair
    window: Pair
    gates: Tensor
    config: SparseConfig
    cu_seqlens: Tensor | None
    query_start: int

    @property
    def where(self) -> dict[str, Any]:
        """The keyword arguments that place the rows."""
        return {"cu_seqlens": self.cu_seqlens, "query_start": self.query_start}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Query, the six keys and values, gates: everything that has a gradient."""
        return (self.query, *self.compressed, *self.selected, *self.window, self.gates)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Inputs":
        """The same call with other tensors, in the order of `tensors`."""
        query, key_cmp, value_cmp, key_slc, value_slc, key_win, value_win, gates = tensors
        return replace(
            self,
            query=query,
            compressed=(key_cmp, value_cmp),
            selected=(key_slc, value_slc),
            window=(key_win, value_win),
            gates=gates,
        )

    def to(self, target: torch.dtype | str) -> "Inputs":
        """The same values in another dtype or on another device."""
        moved = self.with_tensors(tuple(x.detach().to(target) for x in self.tensors))
        if self.cu_seqlens is None or isinstance(target, torch.dtype):
            return moved
        return replace(moved, cu_seqlens=self.cu_seqlens.to(target))

    def leaves(self) -> "Inputs":
        """Fresh copies of the tensors that ask for a gradient."""
        return self.with_tensors(tuple(x.detach().clone().requires_grad_() for x in self.tensors))

    @property
    def all_arguments(self) -> tuple[Any, ...]:
        """The positional arguments of `sparse_attention`."""
        return (self.query, self.compressed, self.selected, self.window, self.gates, self.config)


def make_inputs(case: Case, dtype: torch.dtype, seed: int) -> Inputs:
    """Normal tensors and gates in (0, 1) drawn from `seed`, rounded to `dtype` once, on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def pair(length: int) -> Pair:
        shape = (case.batch, length, case.groups)
        return draw(*shape, case.head_dim), draw(*shape, case.value_dim)

    rows = case.tokens - case.query_start
    bounds = None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens, dtype=torch.int32)
    return Inputs(
        query=draw(case.batch, rows, case.heads, case.head_dim),
        compressed=pair(case.num_compressed),
        selected=pair(case.tokens),
        window=pair(case.tokens),
        gates=draw(case.batch, rows, case.heads, 3).sigmoid(),
        config=case.config,
        cu_seqlens=bounds,
        query_start=case.query_start,
    )


def _case(
    name: str,
    shape: tuple[int, int, int, int, int, int],
    blocks: tuple[int, int, int],
    slots: tuple[int, int, int],
    window: int,
    **others: Any,
) -> Case:
    batch, tokens, heads, groups, head_dim, value_dim = shape
    config = SparseConfig(
        compress_block=blocks[0],
        compress_stride=blocks[1],
        select_block=blocks[2],
        num_selected=slots[0],
        num_initial=slots[1],
        num_local=slots[2],
        window=window,
    )
    return Case(
        name=name,
        batch=batch,
        tokens=tokens,
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        value_dim=value_dim,
        config=config,
        **others,
    )


# every length, head count, head dim, block size, slot count and window of interest, mixed so that values
# that break a tile meet different neighbours: (B, T, H, G, D, E), (l, d, l'), (n, initial, local), w
CASES = (
    _case("one_token", (1, 1, 1, 1, 16, 16), (32, 16, 64), (16, 1, 2), 512),
    _case("two_tokens", (3, 2, 4, 1, 24, 16), (8, 4, 16), (1, 0, 1), 1),
    _case("below_stride", (2, 15, 4, 2, 64, 64), (32, 32, 32), (3, 1, 2), 17),
    _case("one_stride", (1, 16, 6, 2, 60, 100), (16, 8, 64), (16, 1, 2), 512),
    _case("over_stride", (3, 17, 16, 1, 192, 128), (32, 16, 32), (64, 1, 2), 1),
    _case("below_compress_block", (2, 31, 32, 2, 16, 16), (8, 4, 16), (3, 1, 2), 17),
    _case("one_compress_block", (1, 32, 64, 4, 24, 16), (32, 16, 64), (1, 1, 0), 1),
    _case("over_compress_block", (2, 33, 1, 1, 60, 100), (32, 32, 32), (64, 0, 0), 512),
    _case("below_select_block", (3, 63, 4, 1, 192, 128), (16, 8, 64), (3, 0, 3), 17),
    _case("one_select_block", (1, 64, 4, 2, 16, 16), (32, 16, 32), (1, 0, 0), 1),
    _case("over_select_block", (2, 65, 6, 2, 24, 16), (32, 16, 64), (16, 1, 2), 17),
    _case("below_two_blocks", (1, 127, 16, 1, 64, 64), (8, 4, 16), (3, 1, 2), 512),
    _case("over_two_blocks", (3, 129, 32, 2, 60, 100), (32, 32, 32), (3, 1, 1), 1),
    _case("many_heads", (1, 257, 64, 4, 16, 16), (32, 16, 64), (3, 1, 2), 17),
    _case("thousand", (1, 1000, 4, 2, 24, 16), (16, 8, 64), (16, 1, 2), 512),
    _case("below_power_of_two", (1, 1023, 6, 2, 16, 16), (8, 4, 16), (16, 1, 2), 17),
    _case("paper_dims", (2, 257, 4, 1, 192, 128), (32, 16, 32), (16, 2, 1), 2000),
    _case("own_block_only", (2, 129, 1, 1, 64, 64), (16, 8, 64), (1, 0, 1), 512),
    _case("more_slots_than_blocks", (3, 127, 4, 2, 24, 16), (32, 16, 32), (64, 0, 2), 17),
    _case("odd_dims", (1, 65, 64, 4, 60, 100), (8, 4, 16), (16, 1, 2), 512),
    _case("nothing_forced", (2, 64, 16, 1, 24, 16), (32, 32, 32), (3, 0, 0), 1),
    _case("whole_sequence_selected", (1, 63, 32, 2, 192, 128), (32, 16, 64), (64, 1, 2), 17),
    _case("many_forced", (3, 33, 6, 2, 16, 16), (8, 4, 16), (16, 3, 2), 512),
    _case("one_head", (2, 1000, 1, 1, 64, 64), (32, 16, 64), (3, 1, 2), 1),
)

# (l, d, l') is (8, 4, 16): lengths at and around a compressed block, empty documents, one long among short
_PACKED_BOUNDS = {
    "one_document": (0, 40),
    "empty_at_both_ends": (0, 0, 33, 33),
    "empty_in_the_middle": (0, 17, 17, 17, 40),
    "single_tokens": (0, 1, 2, 3, 4),
    "around_a_block": (0, 7, 15, 24),
    "equal": (0, 16, 32, 48),
    "one_long_many_short": (0, 1, 3, 67, 68, 75),
    "all_too_short": (0, 7, 10, 12),
    "uneven": (0, 31, 32, 65),
    "nothing": (0, 0, 0),
}
PACKED_CASES = tuple(
    _case(name, (1, bounds[-1], 4, 2, 16, 24), (8, 4, 16), (3, 1, 1), 9, cu_seqlens=bounds)
    for name, bounds in _PACKED_BOUNDS.items()
)
