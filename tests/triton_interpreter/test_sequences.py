"""The device-side tables say of packed documents what `split_documents` says on the host."""

import pytest
import torch

from trisparse import SparseConfig
from trisparse.documents import split_documents
from trisparse.triton.sequences import packed_sequences

CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_initial=0, num_local=1, window=9
)
BOUNDS = [
    (0, 40),
    (0, 0, 33, 33),
    (0, 17, 17, 17, 40),
    (0, 1, 2, 3, 4),
    (0, 7, 15, 24),
    (0, 1, 3, 67, 68, 75),
    (0, 0, 0),
]


def tables(bounds, start=0, stop=None):
    total = bounds[-1]
    lengths = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    num_rows = (total if stop is None else stop) - start
    packed = packed_sequences(
        cu_seqlens,
        CONFIG,
        num_rows=num_rows,
        query_start=start,
        num_tokens=total,
        num_blocks=sum(CONFIG.num_compressed(x) for x in lengths),
    )
    return packed, split_documents(cu_seqlens, num_rows, start, CONFIG)


@pytest.mark.parametrize("window", [(0, None), (3, None), (2, 4)], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_rows_know_their_document(bounds, window):
    """Guards against an empty document that shifts those behind it."""
    start, stop = window
    if bounds[-1] < 4:
        start, stop = 0, None
    packed, documents = tables(bounds, start, stop)
    token_first, token_stop, block_first = (x.tolist() for x in packed.rows)
    rows = 0
    for document in documents:
        for row in range(document.rows.start, document.rows.stop):
            assert token_first[row] == document.tokens.start
            assert token_stop[row] == document.tokens.stop
            assert block_first[row] == document.blocks.start
            rows += 1
    assert rows == packed.num_rows


@pytest.mark.parametrize("longest_first", [False, True])
@pytest.mark.parametrize("size", [1, 4, 16, 128])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_tiles_cover_each_row_once(bounds, size, longest_first):
    """Guards against a tile that crosses a document, is missing, or does not fit into the table."""
    packed, documents = tables(bounds)
    seen = []
    lengths = []
    for first, stop, token, block, row, row_stop in packed.row_tiles(
        size, longest_first=longest_first
    ).tolist():
        rows = range(first, min(first + size, stop))
        seen += rows
        if not rows:
            continue
        (document,) = [x for x in documents if x.rows.start <= first < x.rows.stop]
        assert (token, block) == (document.tokens.start, document.blocks.start)
        assert (stop, row, row_stop) == (document.rows.stop, document.rows.start, document.rows.stop)
        lengths.append(first - token)
    assert sorted(seen) == list(range(bounds[-1]))
    if longest_first:
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_tiles_cover_each_key_once(bounds, size):
    """Guards against tokens or blocks whose gradient nobody computes, or two programs do."""
    packed, documents = tables(bounds, start=min(2, bounds[-1]))
    for tiles, length in ((packed.token_tiles, packed.num_tokens), (packed.block_tiles, packed.num_blocks)):
        table = tiles(size).tolist()
        seen = [key for first, stop, *_ in table for key in range(first, min(first + size, stop))]
        assert sorted(seen) == list(range(length))
    for first, stop, token, _, row, row_stop in packed.token_tiles(size).tolist():
        owners = [x for x in documents if x.tokens.start <= first < x.tokens.stop]
        if first < stop and owners:
            assert token == owners[0].tokens.start
            assert (row, row_stop) == (owners[0].rows.start, owners[0].rows.stop)


@pytest.mark.parametrize("bounds", [(0, 50, 20, 40), (-5, 10, 40), (0, 10, 4000), (2**31 - 1, 0)], ids=str)
def test_bad_bounds_stay_inside(bounds):
    """Guards against an illegal address from bounds that nobody checks, as that would wait for the device."""
    packed = packed_sequences(
        torch.tensor(bounds, dtype=torch.int32),
        CONFIG,
        num_rows=30,
        query_start=10,
        num_tokens=40,
        num_blocks=9,
    )
    assert packed is not None
    for tiles, length in (
        (packed.row_tiles, 30),
        (packed.token_tiles, 40),
        (packed.block_tiles, 9),
    ):
        table = tiles(16)
        first, stop, token, block, row, row_stop = table.unbind(dim=1)
        for column, limit in ((stop, length), (token, 40), (block, 9), (row, 30), (row_stop, 30)):
            assert ((column >= 0) & (column <= limit)).all()
        assert (first >= 0).all()
