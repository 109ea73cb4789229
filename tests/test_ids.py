"""The selection keeps its order and ties; the selected branch has a meaning for every id."""

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import device_of, usable_backends

BACKENDS = usable_backends(torch.float32)
INF = float("inf")
NAN = float("nan")
# blocks of four tokens everywhere: a compressed block is a selection block and eq. 9 the identity
TOKENS = 24


def config(num_selected, num_initial=0, num_local=0):
    return SparseConfig(
        compress_block=4,
        compress_stride=4,
        select_block=4,
        num_selected=num_selected,
        num_initial=num_initial,
        num_local=num_local,
        window=4,
    )


def select(logits, sizes, backend, tokens=TOKENS):
    """Ids [T, S] of one head whose compressed logits are `logits` at every position."""
    device = device_of(backend)
    query = torch.ones(1, tokens, 1, 1, device=device)
    key = torch.tensor(logits, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)
    return trisparse.select_blocks(query, key, sizes, scale=1.0, backend=backend)[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("logits", "sizes", "expected"),
    [
        pytest.param([0] * 6, config(2), [0, 1], id="all equal"),
        pytest.param([0] * 6, config(3, 0, 1), [0, 1, 5], id="all equal, own forced"),
        pytest.param([0] * 6, config(3, 1, 1), [0, 1, 5], id="all equal, both forced"),
        pytest.param([-0.0, 0.0, -0.0, 0.0, 0.0, 0.0], config(2), [0, 1], id="signed zeros tie"),
        pytest.param([1, 2, 3, 2, 1, 0], config(2), [1, 2], id="tie goes to the lower"),
        pytest.param([1, 2, 2, 3, 1, 0], config(2), [1, 3], id="tie goes to the lower, below the best"),
        pytest.param(
            [-200, -200, 0, -200, -200, -200], config(3), [0, 1, 2], id="underflown scores tie at 0"
        ),
        pytest.param([5, 4, 3, 2, 1, 0], config(16), [0, 1, 2, 3, 4, 5], id="more slots than blocks"),
        pytest.param([5, 4, 3, 2, 1, 0], config(1, 0, 1), [5], id="own only"),
        pytest.param([0, 0, 0, 0, 0, 9], config(1, 1, 0), [0], id="first only"),
        pytest.param([0, 9, 9, 9, 9, 0], config(2, 1, 1), [0, 5], id="forced only"),
        pytest.param([0, 9, 8, 0, 0, 0], config(5, 1, 3), [0, 1, 3, 4, 5], id="one free slot"),
        pytest.param([-INF] * 6, config(2), [0, 1], id="all logits -inf"),
        pytest.param([-INF, 1, -INF, 2, 3, -INF], config(4), [0, 1, 3, 4], id="-inf scores 0"),
        pytest.param([NAN, 1, 2, 3, 4, 5], config(3), [0, 1, 2], id="NaN key makes a row of NaN: all tie"),
        pytest.param([NAN] * 6, config(3, 1, 1), [0, 1, 5], id="NaN does not unseat forced blocks"),
        pytest.param([1, 2, INF, 3, 4, 5], config(2), [0, 1], id="inf key makes a row of NaN: all tie"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_last_row_selects_in_the_documented_order(backend, logits, sizes, expected):
    """Guards against a top-n that orders ties, zeros, NaN or forced blocks as it likes."""
    expected = expected + [-1] * (sizes.num_selected - len(expected))
    assert select(logits, sizes, backend)[-1] == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_row_has_the_candidates_up_to_its_own_block(backend):
    """Guards against future blocks, and against padding that is not -1 at the end."""
    table = select([0, 0, 0, 0, 0, 9], config(4, 1, 2), backend)
    expected = [[0, -1, -1, -1], [0, 1, -1, -1], [0, 1, 2, -1], [0, 1, 2, 3], [0, 1, 3, 4], [0, 1, 4, 5]]
    assert table == [row for row in expected for _ in range(4)]


@pytest.mark.parametrize("tokens", [1, 3, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sequence_within_one_block(backend, tokens):
    """Guards against an error, or an id that is not 0, where there is one block and perhaps no score."""
    logits = [1.0] * (tokens // 4)
    assert select(logits, config(2), backend, tokens) == [[0, -1]] * tokens


@pytest.mark.parametrize("heads", [1, 3, 64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_equal_blocks_tie_across_tiles(backend, heads):
    """Guards against a top-n that is stable within a tile only, or sums of heads that break ties."""
    tokens = 1200
    device = device_of(backend)
    query = torch.zeros(1, tokens, heads, 2, device=device)
    key = torch.ones(1, tokens // 4, 1, 2, device=device)
    ids = trisparse.select_blocks(query, key, config(5, 1, 2), backend=backend)[0, -1, 0]
    assert ids.tolist() == [0, 1, 2, 298, 299]


@pytest.mark.parametrize("backend", BACKENDS)
def test_unreached_blocks_tie_at_zero(backend):
    """Guards against scores of -inf or leftovers where no compressed probability reaches."""
    sizes = SparseConfig(
        compress_block=8,
        compress_stride=4,
        select_block=8,
        num_selected=3,
        num_initial=0,
        num_local=0,
        window=4,
    )
    device = device_of(backend)
    key = torch.full((1, 11, 1, 1), -1000.0, device=device)
    key[0, 6] = 1000.0
    ids = trisparse.select_blocks(
        torch.ones(1, 48, 1, 1, device=device), key, sizes, scale=1.0, backend=backend
    )
    # compressed block 6 covers tokens 24-31, which is selection block 3 and no other
    assert ids[0, -1, 0].tolist() == [0, 1, 3]


BAD = {
    "smallest int32": -(2**31),
    "negative": -123456,
    "empty slot": -1,
    "past the last block": 6,
    "one further": 7,
    "large": 114514,
    "times 4 wraps to 4": 2**30 + 1,
    "near the largest": 2147480000,
    "largest int32": 2**31 - 1,
}
WIDE = {
    "2**32": 2**32,
    "2**32 + 1": 2**32 + 1,
    "2**62": 2**62,
    "smallest int64": -(2**63),
    "-2**32 + 1": -(2**32) + 1,
}


def attend(ids, backend, dtype=torch.int32):
    """Output and gradients of the selected branch through ids [T, S] of one group."""
    device = device_of(backend)
    generator = torch.Generator().manual_seed(8)
    query, key, value = (
        torch.randn(1, TOKENS, heads, 4, generator=generator).to(device).requires_grad_()
        for heads in (2, 1, 1)
    )
    table = torch.tensor(ids, dtype=dtype, device=device).reshape(1, TOKENS, 1, -1)
    out = trisparse.selected_attention(query, key, value, table, config(2), backend=backend)
    grads = torch.autograd.grad(out.square().sum(), (query, key, value))
    return (out.detach(), *grads)


def own(row):
    return row // 4


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_id_beside_a_good_one_adds_nothing(backend, dtype, bad):
    """Guards against an id that is clamped, wrapped or dereferenced, forward or backward."""
    good = attend([[own(row)] for row in range(TOKENS)], backend)
    mixed = attend([[BAD[bad], own(row)] for row in range(TOKENS)], backend, dtype)
    for got, wanted in zip(mixed, good, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("bad", WIDE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_int64_id_that_would_wrap_adds_nothing(backend, bad):
    """Guards against int64 ids cut down to int32 before they are checked."""
    good = attend([[own(row)] for row in range(TOKENS)], backend)
    mixed = attend([[own(row), WIDE[bad]] for row in range(TOKENS)], backend, torch.int64)
    for got, wanted in zip(mixed, good, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("value", [*BAD.values(), 5], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_bad_ids_gives_zeros(backend, value):
    """Guards against NaN where no row has a block; 5 is in the future of all but the last four rows."""
    results = attend([[value, value]] * TOKENS, backend)
    rows = 20 if value == 5 else TOKENS
    assert torch.equal(results[0][:, :rows], torch.zeros_like(results[0][:, :rows]))
    assert all(x.isfinite().all() for x in results)
    if value != 5:
        assert all(torch.equal(x, torch.zeros_like(x)) for x in results[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_bad_ids_among_good_ones(backend):
    """Guards against an empty row that spoils its tile, or takes the gradient of its neighbour."""
    good = [[0, own(row)] for row in range(TOKENS)]
    results = attend([ids if row % 3 else [-1, 2**31 - 1] for row, ids in enumerate(good)], backend)
    full = attend(good, backend)
    for row in range(TOKENS):
        if row % 3:
            torch.testing.assert_close(results[0][:, row], full[0][:, row])
            torch.testing.assert_close(results[1][:, row], full[1][:, row])
        else:
            assert not results[0][:, row].any()
            assert not results[1][:, row].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_are_a_set(backend):
    """Guards against a repeated block counted twice, and against sums in the order of the ids."""
    base = attend([[0, own(row)] for row in range(TOKENS)], backend)
    swapped = attend([[own(row), 0] for row in range(TOKENS)], backend)
    repeated = attend([[own(row), 0, 0, own(row), 0, -1] for row in range(TOKENS)], backend)
    for one, two, three in zip(base, swapped, repeated, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_slots_give_zeros(backend):
    """Guards against an error or a missing gradient for ids of S = 0."""
    for result in attend([[] for _ in range(TOKENS)], backend):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_are_left_as_they_came(backend):
    """Guards against sorting the caller's ids in place."""
    device = device_of(backend)
    ids = torch.tensor([[[[5, 0, 5, -1]]]], device=device).repeat(1, TOKENS, 1, 1)
    before = ids.clone()
    query = torch.zeros(1, TOKENS, 1, 4, device=device)
    trisparse.selected_attention(query, query, query, ids, config(2), backend=backend)
    assert torch.equal(ids, before)
