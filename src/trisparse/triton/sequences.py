"""Where packed documents lie, as tables on the device: the kernels read them, the host never waits for them.

A tile never crosses a document, so how many tiles there are depends on the bounds; the host only knows a
limit, `ceil(length / block) + N`, and starts that many programs. The table's last rows are then empty.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trisparse.config import SparseConfig

# columns of a tile table, in the order in which `primitives.tile_place` reads them
TILE_COLUMNS = 6


@dataclass(frozen=True, kw_only=True)
class PackedSequences:
    """The documents of a packed sequence, int32 [N] each. A stop is the first one that is no longer inside.

    Attributes:
        token_first, token_stop: rows of the T dimension of raw keys and values.
        block_first, block_stop: rows of the C dimension of compressed keys and values.
        row_first, row_stop: rows of the query, which may hold only some of the documents' tokens.
        num_tokens, num_blocks, num_rows: T, C and Tq.
    """

    token_first: Tensor
    token_stop: Tensor
    block_first: Tensor
    block_stop: Tensor
    row_first: Tensor
    row_stop: Tensor
    num_tokens: int
    num_blocks: int
    num_rows: int

    def row_tiles(self, block: int, *, longest_first: bool = False) -> Tensor:
        """Tiles of at most `block` query rows: int32 [tiles, 6] = (first, stop, token, block, row, row stop).

        A tile is the query rows from `first` on that lie before `stop`; the other columns are `token_first`,
        `block_first`, `row_first` and `row_stop` of its document. With `longest_first`, tiles at a late
        position, which see most keys, come first.
        """
        table = self._tiles(self.row_first, self.row_stop, self.num_rows, block)
        if longest_first:
            # the position in the document, less a constant; equal tiles keep their order
            order = (table[:, 0] - table[:, 2]).argsort(descending=True, stable=True)
            table = table[order]
        return table

    def token_tiles(self, block: int) -> Tensor:
        """Tiles of at most `block` tokens: as `row_tiles`, `first` and `stop` counted in tokens."""
        return self._tiles(self.token_first, self.token_stop, self.num_tokens, block)

    def block_tiles(self, block: int) -> Tensor:
        """Tiles of at most `block` compressed blocks: as `row_tiles`, `first` and `stop` counted in those."""
        return self._tiles(self.block_first, self.block_stop, self.num_blocks, block)

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """`token_first`, `token_stop`, `block_first` of each query row's document, int32 [Tq] each."""
        index = torch.arange(self.num_rows, device=self.row_stop.device, dtype=torch.int32)
        document = self._document_of(index, self.row_stop)
        return self.token_first[document], self.token_stop[document], self.block_first[document]

    def _document_of(self, index: Tensor, stops: Tensor) -> Tensor:
        """The first document that stops behind each index; the last one for an index behind them all."""
        return torch.searchsorted(stops, index, right=True).clamp_(max=stops.shape[0] - 1)

    def _tiles(self, first: Tensor, stop: Tensor, length: int, block: int) -> Tensor:
        counts = (stop - first + (block - 1)).div(block, rounding_mode="floor")
        ends = counts.cumsum(0, dtype=torch.int32)
        capacity = -(-length // block) + first.shape[0]
        index = torch.arange(capacity, device=first.device, dtype=torch.int32)
        document = self._document_of(index, ends)
        tile_first = first[document] + (index - (ends - counts)[document]) * block
        used = index < ends[-1]
        columns = (
            torch.where(used, tile_first, 0),
            torch.where(used, stop[document], 0),
            self.token_first[document],
            self.block_first[document],
            self.row_first[document],
            self.row_stop[document],
        )
        return torch.stack(columns, dim=1)


def packed_sequences(
    cu_seqlens: Tensor | None,
    config: SparseConfig,
    *,
    num_rows: int,
    query_start: int,
    num_tokens: int | None = None,
    num_blocks: int | None = None,
) -> PackedSequences | None:
    """The documents between `cu_seqlens` int32 [N + 1], or None without them.

    Bounds that fall or leave the sequence give wrong tables, but none that leads out of a tensor. A length
    that a caller has no tensor for (T or C) may be None.
    """
    if cu_seqlens is None:
        return None
    limit = 2**31 - 1 if num_tokens is None else num_tokens
    bounds = cu_seqlens.clamp(min=0, max=limit).cummax(0).values
    first, stop = bounds[:-1].contiguous(), bounds[1:].contiguous()
    lengths = stop - first
    blocks = (lengths - config.compress_block).div(config.compress_stride, rounding_mode="floor") + 1
    block_limit = 2**31 - 1 if num_blocks is None else num_blocks
    block_stop = blocks.clamp_(min=0).cumsum(0, dtype=torch.int32)
    return PackedSequences(
        token_first=first,
        token_stop=stop,
        block_first=(block_stop - blocks).clamp_(max=block_limit),
        block_stop=block_stop.clamp(max=block_limit),
        row_first=(first - query_start).clamp_(min=0, max=num_rows),
        row_stop=(stop - query_start).clamp_(min=0, max=num_rows),
        num_tokens=num_tokens or 0,
        num_blocks=num_blocks or 0,
        num_rows=num_rows,
    )
