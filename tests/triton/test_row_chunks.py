"""Runs of rows: all of them once, each small and in one piece."""

import pytest
import torch

from trisparse.triton import row_chunks

MIB = 2**20


@pytest.mark.parametrize(
    ("batch", "num_rows", "row_bytes", "count"),
    [
        (1, 1000, 49152, 1),
        (1, 131072, 49152, 25),
        (2, 131072, 49152, 50),
        (64, 1024, 49152, 13),
        (3, 300, MIB, 6),
        (3, 300, 2**40, 9),
        (0, 1000, 49152, 1),
        (2, 0, 49152, 1),
    ],
)
def test_chunks_cover_all_rows_once(batch, num_rows, row_bytes, count):
    """Guards against rows left out at an end, and chunks larger than what they are for."""
    seen = torch.zeros(batch, num_rows, dtype=torch.int32)
    chunks = row_chunks.row_chunks(batch, num_rows, row_bytes)
    for chunk in chunks:
        rows = chunk.of(seen)
        assert rows.is_contiguous()
        assert rows.numel() * row_bytes <= max(row_chunks.SCRATCH_BYTES, 128 * row_bytes)
        assert chunk.rows.start % 128 == 0
        rows += 1
    assert (seen == 1).all()
    assert len(chunks) == count
