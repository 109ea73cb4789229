"""Scores and top-n: the reference's blocks, its ties and its order, whatever the tiles."""

from dataclasses import replace

import pytest
import torch
from comparison import DEVICE, NAN, PACKED, SHORT, draw, in_layout, place, rows_of

import trisparse
from trisparse import SparseConfig
from trisparse import triton as room
from trisparse.testing.budget import compare_ids, selection_ranks
from trisparse.testing.inputs import Case
from trisparse.triton.compressed_forward import compressed_lse, compressed_place
from trisparse.triton.launch import Tile
from trisparse.triton.topn import select_blocks_from_lse

INF = float("inf")
TOKENS = 24
SMALL_TILE = Tile(16, 16, 4, 1)
# names of cases in which something is scored, and a few in which every candidate has a slot
NAMES = [
    "two_tokens",
    "one_token",
    "below_compress_block",
    "one_select_block",
    "below_two_blocks",
    "own_block_only",
    "nothing_forced",
    "many_forced",
    "over_stride",
]


def gold_ids(inputs):
    wide = inputs.to(torch.float64).to("cpu")
    return trisparse.select_blocks(
        wide.query, wide.compressed[0], wide.config, backend="reference", **wide.where
    )


def check(inputs, ids=None):
    """The room's ids, or `ids`, are those of the reference."""
    ids = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs)) if ids is None else ids
    wide = inputs.to(torch.float64).to("cpu")
    ranks = selection_ranks(wide.query, wide.compressed[0], wide.config, query_start=wide.query_start)
    compare_ids(ids, gold_ids(inputs), ranks)


def ids_in_tiles(inputs, tile):
    """Ids with another tile than the pinned one."""
    where = compressed_place(inputs.query, inputs.compressed[0], *place(inputs))
    lse = compressed_lse(inputs.query, inputs.compressed[0], where)
    return select_blocks_from_lse(inputs.query, inputs.compressed[0], lse, where, tile)


def sizes(num_selected, num_initial=0, num_local=0):
    """Blocks of four tokens everywhere: a compressed block is a selection block and eq. 9 the identity."""
    return SparseConfig(
        compress_block=4,
        compress_stride=4,
        select_block=4,
        num_selected=num_selected,
        num_initial=num_initial,
        num_local=num_local,
        window=4,
    )


def select(logits, config, tokens=TOKENS, heads=1):
    """Ids [T, S] of a group whose heads have the compressed logits `logits` at every position."""
    query = torch.ones(1, tokens, heads, 1, device=DEVICE)
    key = torch.tensor(logits, dtype=torch.float32, device=DEVICE).reshape(1, -1, 1, 1)
    return room.select_blocks(query, key, config, 1.0, None, 0)[0, :, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name, dtype):
    """Guards against a wrong overlap, group sum, mask of the future, or order of blocks."""
    check(draw(SHORT[name], dtype))


@pytest.mark.parametrize("name", PACKED)
def test_packed_agrees_with_the_reference(name):
    """Guards against documents that see one another, and blocks counted from the wrong token."""
    inputs = draw(PACKED[name])
    ids = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    assert torch.equal(ids.cpu(), gold_ids(inputs))


@pytest.mark.parametrize(
    ("logits", "config", "expected"),
    [
        pytest.param([0] * 6, sizes(2), [0, 1], id="all equal"),
        pytest.param([0] * 6, sizes(3, 0, 1), [0, 1, 5], id="all equal, own forced"),
        pytest.param([0] * 6, sizes(3, 1, 1), [0, 1, 5], id="all equal, both forced"),
        pytest.param([-0.0, 0.0, -0.0, 0.0, 0.0, 0.0], sizes(2), [0, 1], id="signed zeros tie"),
        pytest.param([1, 2, 3, 2, 1, 0], sizes(2), [1, 2], id="tie goes to the lower"),
        pytest.param([1, 2, 2, 3, 1, 0], sizes(2), [1, 3], id="tie below the best goes to the lower"),
        pytest.param([-200, -200, 0, -200, -200, -200], sizes(3), [0, 1, 2], id="underflown scores tie"),
        pytest.param([5, 4, 3, 2, 1, 0], sizes(9), [0, 1, 2, 3, 4, 5, -1, -1, -1], id="fewer blocks"),
        pytest.param([5, 4, 3, 2, 1, 0], sizes(1, 0, 1), [5], id="own only"),
        pytest.param([0, 0, 0, 0, 0, 9], sizes(1, 1, 0), [0], id="first only"),
        pytest.param([0, 3, 9, 1, 2, 0], sizes(1), [2], id="best only"),
        pytest.param([0, 9, 9, 9, 9, 0], sizes(2, 1, 1), [0, 5], id="forced only"),
        pytest.param([0, 9, 8, 0, 0, 0], sizes(5, 1, 3), [0, 1, 3, 4, 5], id="one free slot"),
        pytest.param([0, 9, 8, 0, 0, 0], sizes(5, 2, 3), [0, 1, 3, 4, 5], id="no free slot"),
        pytest.param([-INF, 1, -INF, 2, 3, -INF], sizes(4), [0, 1, 3, 4], id="-inf scores 0"),
        pytest.param([NAN, 1, 2, 3, 4, 5], sizes(3), [0, 1, 2], id="a row of NaN ties"),
        pytest.param([NAN] * 6, sizes(3, 1, 1), [0, 1, 5], id="NaN does not unseat forced blocks"),
        pytest.param([1, 2, INF, 3, 4, 5], sizes(2), [0, 1], id="inf makes a row of NaN"),
    ],
)
def test_order_of_the_last_row(logits, config, expected):
    """Guards against ties by chance, NaN that ranks high, and forced blocks that are dropped or met twice."""
    assert select(logits, config)[-1] == expected


@pytest.mark.parametrize("row", [0, 3, 4, 9, 22])
def test_nan_ranks_below_every_number(row):
    """Guards against NaN compared as bits: the own block, which no key reaches yet, has the number 0."""
    own = row // 4
    ids = select([NAN] * 6, sizes(1))[row]
    seen = (row + 1) // 4
    assert ids == [own if own >= seen else 0]


@pytest.mark.parametrize("heads", [2, 3, 16])
def test_a_group_sums_its_heads(heads):
    """Guards against a selection by one head, or by padding heads."""
    config = sizes(1)
    query = torch.zeros(1, TOKENS, heads, 2, device=DEVICE)
    query[..., 0] = 0.5 / heads
    query[:, :, -1, :] = torch.tensor([0.0, 9.0], device=DEVICE)
    key = torch.zeros(1, 6, 1, 2, device=DEVICE)
    key[0, 1, 0, 0], key[0, 4, 0, 1] = 1.0, 1.0
    assert room.select_blocks(query, key, config, 1.0, None, 0)[0, -1, 0].tolist() == [4]
    query[:, :, -1, :] = 0.0
    assert room.select_blocks(query, key, config, 1.0, None, 0)[0, -1, 0].tolist() == [1]


@pytest.mark.parametrize(
    "blocks",
    [(4, 4, 4), (8, 4, 8), (4, 2, 6), (3, 3, 6), (6, 2, 6), (8, 1, 8), (5, 5, 5), (12, 4, 12)],
    ids=str,
)
def test_what_a_key_owes_to_the_next_tile(blocks):
    """Guards against overlap lost or doubled at the edge of a tile, for every l/d and l'/d."""
    compress_block, compress_stride, select_block = blocks
    config = SparseConfig(
        compress_block=compress_block,
        compress_stride=compress_stride,
        select_block=select_block,
        num_selected=4,
        num_initial=0,
        num_local=1,
    )
    # more blocks than two tiles have columns, and rows of the last ones alone
    tokens = 35 * select_block
    case = Case(
        name="edge",
        batch=1,
        tokens=tokens,
        heads=2,
        groups=1,
        head_dim=4,
        value_dim=4,
        config=config,
        query_start=tokens - 6,
    )
    inputs = draw(case)
    check(inputs, ids_in_tiles(inputs, SMALL_TILE))


def test_nothing_is_owed_to_the_first_block():
    """Guards against the padding in front of the first key counted as a key: all others have four shares."""
    config = replace(sizes(1), compress_block=8, select_block=8)
    assert select([0] * 5, config)[-1] == [1]


def test_tiles_do_not_matter():
    """Guards against a selection that depends on how blocks and rows fall into tiles."""
    case = replace(
        SHORT["below_two_blocks"], config=replace(SHORT["below_two_blocks"].config, num_selected=5)
    )
    inputs = draw(replace(case, heads=2, head_dim=8))
    ids = [ids_in_tiles(inputs, tile) for tile in (SMALL_TILE, Tile(32, 16, 4, 1), Tile(64, 64, 4, 1))]
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[0], ids[2])


@pytest.mark.parametrize("name", ["nothing forced", "forced", "packed"])
def test_a_long_selection_takes_several_launches(name, monkeypatch):
    """Guards against blocks lost or met twice where one launch begins below the last one's least key."""
    case = SHORT["below_two_blocks"]
    if name == "packed":
        case = PACKED["one_long_many_short"]
    forced = {"num_initial": 1, "num_local": 2} if name == "forced" else {"num_initial": 0, "num_local": 0}
    config = replace(case.config, num_selected=5 if name != "packed" else 4, **forced)
    inputs = draw(replace(case, heads=2 * case.groups, head_dim=8, config=config))
    once = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    monkeypatch.setitem(select_blocks_from_lse.__globals__, "MOST_SLOTS", 2)
    several = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    assert torch.equal(several, once)
    assert (several[..., 2:] >= 0).any()


@pytest.mark.parametrize("rows", [slice(0, 1), slice(16, 64), slice(61, 127)], ids=str)
def test_rows_from_the_middle_are_those_of_the_whole(rows):
    """Guards against positions counted from the first query row, also with keys that no row sees."""
    inputs = draw(replace(SHORT["below_two_blocks"], heads=2))
    whole = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    part = rows_of(inputs, rows)
    ids = room.select_blocks(part.query, part.compressed[0], *place(part))
    assert torch.equal(ids, whole[:, rows])


def test_packed_rows_from_the_middle_are_those_of_the_whole():
    """Guards against documents cut by the query rows."""
    inputs = draw(PACKED["uneven"])
    whole = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    part = rows_of(inputs, slice(20, 50))
    ids = room.select_blocks(part.query, part.compressed[0], *place(part))
    assert torch.equal(ids, whole[:, 20:50])


def test_the_whole_op_selects_the_same():
    """Guards against a selection from another log-sum-exp than the compressed branch's."""
    inputs = draw(SHORT["one_select_block"])
    ids = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    fused = room.compressed_select_forward(inputs.query, *inputs.compressed, *place(inputs))[2]
    assert torch.equal(ids, fused)


@pytest.mark.parametrize("layout", ["slice of a fused projection", "heads before tokens"])
def test_strides_do_not_matter(layout):
    """Guards against tensors read as if they were contiguous."""
    inputs = draw(SHORT["one_select_block"])
    ids = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    moved = in_layout(inputs, layout)
    assert torch.equal(room.select_blocks(moved.query, moved.compressed[0], *place(moved)), ids)


def test_keys_that_no_row_sees_do_not_matter():
    """Guards against NaN in a key of the future that a tile multiplies."""
    inputs = rows_of(draw(replace(SHORT["below_two_blocks"], heads=2)), slice(0, 40))
    ids = room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs))
    key = inputs.compressed[0].clone()
    key[:, inputs.config.num_compressed(40) :] = NAN
    assert torch.equal(room.select_blocks(inputs.query, key, *place(inputs)), ids)
