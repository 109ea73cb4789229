"""A call of the whole op: its tensors, where it stands, and the same for some of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.compressed_forward import attend_compressed
from trisparse.triton.launch import Place, call_place
from trisparse.triton.row_chunks import RowChunk, row_chunks, whole
from trisparse.triton.selected_forward import attend_selected
from trisparse.triton.topn import select_blocks_from_lse
from trisparse.triton.window_forward import attend_window

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class SparseCall:
    """Tensors of `trisparse.sparse_attention`; one place for all branches, so that tables are made once."""

    query: Tensor
    compressed: Pair
    selected: Pair
    window: Pair
    gates: Tensor
    place: Place

    @property
    def everything(self) -> Place | None:
        """The selected branch as a window, where every row selects all blocks before it; else None.

        In sequences that short a list of blocks per row only gets in the way: neighbouring rows share all
        keys. Packed ones keep their lists, for a document's bits must not depend on how long its neighbours
        are.
        """
        config, num_tokens = self.place.config, self.selected[0].shape[1]
        if self.place.packed is not None or config.num_select_blocks(num_tokens) > config.num_selected:
            return None
        return replace(self.place, config=replace(config, window=max(1, num_tokens)))

    def part(self, chunk: RowChunk) -> "SparseCall":
        """The call of some rows, which see the same keys."""
        compressed, selected, window = (
            (key[chunk.batch], value[chunk.batch])
            for key, value in (self.compressed, self.selected, self.window)
        )
        return SparseCall(
            query=chunk.of(self.query),
            compressed=compressed,
            selected=selected,
            window=window,
            gates=chunk.of(self.gates),
            place=replace(self.place, query_start=self.place.query_start + chunk.rows.start),
        )

    @property
    def branch_bytes(self) -> int:
        """The outputs of all branches for one query row."""
        return 3 * self.query.shape[2] * self.selected[1].shape[3] * self.query.element_size()

    def chunks(self, row_bytes: int) -> list[RowChunk]:
        """Runs of rows that need little memory, if each needs `row_bytes`; packed sequences are one run."""
        batch, num_rows = self.query.shape[:2]
        if self.place.packed is not None:
            return whole(batch, num_rows)
        return row_chunks(batch, num_rows, row_bytes)

    def new_branches(self) -> Tensor:
        """Memory for outputs [3, B, Tq, H, E]."""
        return self.place.new_rows(self.query, 3, *self.query.shape[:3], self.selected[1].shape[3])

    def new_row_numbers(self) -> Tensor:
        """Memory for a number of each branch, row and head, fp32 [3, B, Tq, H]."""
        return self.place.new_rows(self.query, 3, *self.query.shape[:3], dtype=torch.float32)

    def attend(self, ids: Tensor | None, branches: Tensor, lse: Sequence[Tensor]) -> Tensor:
        """Fill `branches` and their log-sum-exps, three of [B, Tq, H], all contiguous.

        Without `ids` blocks are selected; returns the ids.
        """
        attend_compressed(self.query, *self.compressed, branches[0], lse[0], self.place)
        if ids is None:
            ids = select_blocks_from_lse(self.query, self.compressed[0], lse[0], self.place)
        everything = self.everything
        if everything is None:
            attend_selected(self.query, *self.selected, ids, branches[1], lse[1], self.place)
        else:
            attend_window(self.query, *self.selected, branches[1], lse[1], everything)
        attend_window(self.query, *self.window, branches[2], lse[2], self.place)
        return ids


def sparse_call(
    query: Tensor,
    compressed: Pair,
    selected: Pair,
    window: Pair,
    gates: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> SparseCall:
    """The call of an operator's arguments."""
    place = call_place(
        config,
        scale,
        cu_seqlens,
        num_rows=query.shape[1],
        query_start=query_start,
        num_tokens=selected[0].shape[1],
        num_blocks=compressed[0].shape[1],
    )
    return SparseCall(
        query=query,
        compressed=compressed,
        selected=selected,
        window=window,
        gates=gates,
        place=place,
    )
