"""Runs of query rows that are attended one after the other, so that what lies between kernels stays small.

A row's result is its own: whether its neighbours are attended in the same launch changes none of its bits.
"""

from typing import NamedTuple

from torch import Tensor

# what a run may take between its kernels: outputs of the branches, and in a backward sums of d query
SCRATCH_BYTES = 2**28
# no tile has more tokens, so that a run consists of the tiles that the whole call would have
_TOKENS = 128


class RowChunk(NamedTuple):
    """Some rows of a [B, Tq, ...] tensor: of several batch rows all, or some of one.

    Either way they lie together in a contiguous tensor.
    """

    batch: slice
    rows: slice

    def of(self, tensor: Tensor) -> Tensor:
        """The chunk's rows of a [B, Tq, ...] tensor."""
        return tensor[self.batch, self.rows]


def whole(batch: int, num_rows: int) -> list[RowChunk]:
    """All rows at once."""
    return [RowChunk(slice(0, batch), slice(0, num_rows))]


def row_chunks(batch: int, num_rows: int, row_bytes: int) -> list[RowChunk]:
    """Chunks whose rows take at most `SCRATCH_BYTES`, `row_bytes` each; but not fewer than 128 rows."""
    most = max(_TOKENS, SCRATCH_BYTES // row_bytes // _TOKENS * _TOKENS)
    if batch * num_rows <= most:
        return whole(batch, num_rows)
    if num_rows <= most:
        step = most // num_rows
        return [
            RowChunk(slice(first, min(batch, first + step)), slice(0, num_rows))
            for first in range(0, batch, step)
        ]
    return [
        RowChunk(slice(row, row + 1), slice(first, min(num_rows, first + most)))
        for row in range(batch)
        for first in range(0, num_rows, most)
    ]
