"""What the kernels of one shape read: inputs, and what the kernels before them leave, by the pinned tiles."""

from functools import cached_property

import torch
from torch import Tensor

from trisparse.bench.cases import QUERY_SPREAD, Case
from trisparse.triton.block_index import BlockIndex, invert, used_slots
from trisparse.triton.combine import row_sums
from trisparse.triton.compressed_forward import attend_compressed
from trisparse.triton.launch import Place
from trisparse.triton.selected_forward import attend_selected
from trisparse.triton.topn import select_blocks_from_lse
from trisparse.triton.window_forward import attend_window

Pair = tuple[Tensor, Tensor]


class Problem:
    """Tensors of one call. On the device "meta" they have no memory, and nothing runs: to compile by.

    Everything is made when it is first asked for, and kept.
    """

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, torch.device(device)
        self.place = Place(config=case.config, scale=case.head_dim**-0.5, query_start=0, packed=None)
        self._generator = None if self._empty else torch.Generator(self.device).manual_seed(0)

    @property
    def _empty(self) -> bool:
        return self.device.type == "meta"

    def _normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        sizes, dtype = (self.case.batch, *shape), dtype or self.case.dtype
        return torch.randn(sizes, generator=self._generator, device=self.device, dtype=dtype)

    def _pair(self, length: int) -> Pair:
        case = self.case
        return (
            self._normal(length, case.groups, case.head_dim),
            self._normal(length, case.groups, case.value_dim),
        )

    @cached_property
    def query(self) -> Tensor:
        return self._normal(self.case.tokens, self.case.heads, self.case.head_dim) * QUERY_SPREAD

    @cached_property
    def compressed(self) -> Pair:
        return self._pair(self.case.config.num_compressed(self.case.tokens))

    @cached_property
    def selected(self) -> Pair:
        return self._pair(self.case.tokens)

    @cached_property
    def window(self) -> Pair:
        return self._pair(self.case.tokens)

    @cached_property
    def grad_out(self) -> Tensor:
        return self._normal(self.case.tokens, self.case.heads, self.case.value_dim)

    @cached_property
    def gate(self) -> Tensor:
        """[B, T, H], one of three side by side, as the whole op has them."""
        return self._normal(self.case.tokens, self.case.heads, 3).sigmoid()[..., 0]

    @cached_property
    def partial(self) -> Tensor:
        """A sum of d query that a branch adds to."""
        return self._normal(self.case.tokens, self.case.heads, self.case.head_dim, dtype=torch.float32)

    def new_rows(self, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for a number of each row and dim, [B, T, H, dim]."""
        return self.query.new_empty(*self.query.shape[:3], dim, dtype=dtype)

    def new_outputs(self) -> Pair:
        """Memory for out and lse of a branch."""
        out = self.new_rows(self.case.value_dim)
        return out, out.new_empty(out.shape[:3], dtype=torch.float32)

    @cached_property
    def ids(self) -> Tensor:
        if self._empty:
            shape = self.case.batch, self.case.tokens, self.case.groups, self.case.config.num_selected
            return self.query.new_empty(shape, dtype=torch.int32)
        return select_blocks_from_lse(self.query, self.compressed[0], self.compressed_outputs[1], self.place)

    @cached_property
    def compressed_outputs(self) -> Pair:
        out, lse = self.new_outputs()
        if not self._empty:
            attend_compressed(self.query, *self.compressed, out, lse, self.place)
        return out, lse

    @cached_property
    def selected_outputs(self) -> Pair:
        out, lse = self.new_outputs()
        if not self._empty:
            attend_selected(self.query, *self.selected, self.ids, out, lse, self.place)
        return out, lse

    @cached_property
    def window_outputs(self) -> Pair:
        out, lse = self.new_outputs()
        if not self._empty:
            attend_window(self.query, *self.window, out, lse, self.place)
        return out, lse

    def statistics(self, outputs: Pair) -> Pair:
        """lse and delta of a branch, whose gate is `gate`."""
        out, lse = outputs
        delta = torch.empty_like(lse) if self._empty else row_sums(self.grad_out, out) * self.gate.float()
        return lse, delta

    @cached_property
    def slots(self) -> Tensor:
        """The ids as the selected branch's kernels take them."""
        return used_slots(self.ids, self.place)

    @cached_property
    def index(self) -> BlockIndex:
        if not self._empty:
            return invert(self.slots, self.place, self.case.tokens)
        num_blocks = self.case.config.num_select_blocks(self.case.tokens)
        starts = self.case.batch * self.case.groups * num_blocks + 1
        return BlockIndex(
            rows=self.slots.flatten(),
            starts=self.slots.new_empty(starts, dtype=torch.int64),
            num_blocks=num_blocks,
        )
