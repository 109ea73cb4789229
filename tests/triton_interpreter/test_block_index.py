"""The selection turned around, against loops over Python lists."""

import pytest
import torch
from comparison import DEVICE

from trisparse import SparseConfig
from trisparse.triton.block_index import invert, usable_ids, used_slots
from trisparse.triton.launch import Place
from trisparse.triton.sequences import packed_sequences

BLOCK = 4
CONFIG = SparseConfig(
    compress_block=4, compress_stride=2, select_block=BLOCK, num_selected=3, num_initial=0, num_local=0
)
BOUNDS = [(0, 9), (0, 0, 9, 9), (0, 5, 5, 14), (0, 1, 2, 3), (0, 4, 12, 13, 13), (0, 0)]


def place_of(num_rows, bounds=None, query_start=0):
    """A place of `num_rows` query rows, packed between `bounds` if there are any."""
    packed = None
    if bounds is not None:
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=DEVICE)
        sizes = {"num_rows": num_rows, "num_tokens": bounds[-1]}
        packed = packed_sequences(cu_seqlens, CONFIG, query_start=query_start, **sizes)
    return Place(config=CONFIG, scale=1.0, query_start=query_start, packed=packed)


def drawn_ids(batch, num_rows, groups, slots, most):
    generator = torch.Generator().manual_seed(5)
    shape = (batch, num_rows, groups, slots)
    return torch.randint(-1, most + 1, shape, generator=generator, dtype=torch.int32).to(DEVICE)


def lists_of(index, pairs):
    """For each pair its blocks' rows, as lists."""
    edges, rows = index.starts.tolist(), index.rows.tolist()
    lists = [rows[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    return [lists[pair * index.num_blocks : (pair + 1) * index.num_blocks] for pair in range(pairs)]


@pytest.mark.parametrize("query_start", [0, 6])
@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (2, 3)])
def test_lists_are_those_of_a_loop(batch, groups, query_start):
    """Guards against rows that are lost, met twice, out of order, or in another group's list."""
    num_rows, num_tokens = 13, 19
    place = place_of(num_rows, query_start=query_start)
    ids = usable_ids(drawn_ids(batch, num_rows, groups, 3, 5), place)
    index = invert(ids, place, num_tokens)
    assert index.rows.dtype == torch.int32
    assert index.starts.dtype == torch.int64
    assert index.num_blocks == 5
    expected = [
        [
            [row for row in range(num_rows) if block in ids[number, row, group].tolist()]
            for block in range(index.num_blocks)
        ]
        for number in range(batch)
        for group in range(groups)
    ]
    assert sum(len(rows) for pair in expected for rows in pair) > 0
    assert lists_of(index, batch * groups) == expected


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_packed_lists_are_those_of_the_documents(bounds):
    """Guards against blocks of one document counted to its neighbour, also past empty documents."""
    length = bounds[-1]
    place = place_of(length, bounds)
    ids = usable_ids(drawn_ids(1, length, 1, 3, 2), place)
    index = invert(ids, place, length)
    expected = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        for block in range(CONFIG.num_select_blocks(stop - start)):
            expected.append([row for row in range(start, stop) if block in ids[0, row, 0].tolist()])
    (lists,) = lists_of(index, 1)
    assert lists[: len(expected)] == expected
    assert not any(lists[len(expected) :])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_values_that_name_no_block_are_dropped(dtype):
    """Guards against an id that wraps when it is narrowed, a repeat that counts twice, and a future block."""
    bad = [-(2**31), -7, 2, 2**31 - 1]
    if dtype == torch.int64:
        bad += [2**32, 2**32 + 1, -(2**63), 2**63 - 1]
    place = place_of(1, query_start=BLOCK)
    ids = torch.tensor([*bad, 1, 0, 1, 0], dtype=dtype, device=DEVICE).view(1, 1, 1, -1)
    usable = usable_ids(ids, place)
    assert usable.dtype == torch.int32
    assert usable.flatten().tolist() == [0, 1] + [-1] * (ids.numel() - 2)


def test_positions_are_counted_from_the_document():
    """Guards against blocks of the future that pass because the row lies late in the packed sequence."""
    place = place_of(6, bounds=(0, 5, 14), query_start=3)
    ids = torch.tensor([0, 1, 2], dtype=torch.int32, device=DEVICE).expand(1, 6, 1, 3)
    expected = [[0, -1, -1], [0, 1, -1], [0, -1, -1], [0, -1, -1], [0, -1, -1], [0, -1, -1]]
    assert usable_ids(ids, place)[0, :, 0].tolist() == expected


def test_no_slots_are_one_empty_slot():
    """Guards against kernels that are started on a list of no width."""
    place = place_of(3)
    none = torch.empty(1, 3, 2, 0, dtype=torch.int32, device=DEVICE)
    assert usable_ids(none, place).tolist() == [[[[-1], [-1]]] * 3]


def test_slots_that_no_row_can_fill_are_cut_off():
    """Guards against tiles that compare thousands of empty slots of a short sequence."""
    ids = torch.tensor([0, 1, -1, -1, -1], dtype=torch.int32, device=DEVICE).expand(1, 6, 1, 5)
    used = used_slots(ids, place_of(6))
    assert used.is_contiguous()
    assert used[0, :, 0].tolist() == [[0, 1]] * 6
