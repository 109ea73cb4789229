"""The order of the selection in every instruction set and data type, for all rows and for a decoded one."""

import pytest
import test_ids
import torch
from test_ids import INF, NAN, TOKENS, config

import trisparse

from .kernels import instruction_sets, needs_kernels

pytestmark = needs_kernels
SETS = pytest.mark.parametrize("instructions", instruction_sets())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
HEADS = pytest.mark.parametrize("heads", [1, 3, 16])
# logits, sizes and ids of the last row, as every backend is tested with
TABLE = next(
    mark.args[1]
    for mark in test_ids.test_last_row_selects_in_the_documented_order.pytestmark
    if mark.args[0] == ("logits", "sizes", "expected")
)
# more compressed keys than one piece has when a row is decoded: 512
BLOCKS = 600
LAST = BLOCKS - 1


def ids_of(logits, sizes, dtype, query_start=0, heads=1):
    """Ids [rows, S] of one group whose compressed logits are `logits` at every position, 4 tokens a block."""
    tokens = 4 * len(logits)
    query = torch.ones(1, tokens - query_start, heads, 1, dtype=dtype)
    key = torch.tensor(logits, dtype=torch.float32).to(dtype).reshape(1, -1, 1, 1)
    place = {"scale": 1.0, "query_start": query_start, "backend": "cpu"}
    return trisparse.select_blocks(query, key, sizes, **place)[0, :, 0].tolist()


def padded(ids, sizes):
    return ids + [-1] * (sizes.num_selected - len(ids))


def with_peaks(peaks, fill=0.0):
    """Logits of all blocks, `fill` but for those in `peaks`."""
    return [peaks.get(block, fill) for block in range(BLOCKS)]


@pytest.mark.parametrize(("logits", "sizes", "expected"), TABLE)
@HEADS
@DTYPES
@SETS
def test_last_row_selects_in_the_documented_order(
    select, instructions, dtype, heads, logits, sizes, expected
):
    """Guards against a top-n that orders ties, zeros, NaN or forced blocks as it likes."""
    select(instructions)
    expected = padded(expected, sizes)
    assert ids_of(logits, sizes, dtype, heads=heads)[-1] == expected
    assert ids_of(logits, sizes, dtype, query_start=TOKENS - 1, heads=heads) == [expected]


@DTYPES
@SETS
def test_every_row_has_the_candidates_up_to_its_own_block(select, instructions, dtype):
    """Guards against future blocks, forced blocks counted twice, and padding that is not -1 at the end."""
    select(instructions)
    logits, sizes = [0, 0, 0, 0, 0, 9], config(4, 1, 2)
    wanted = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 3, 4], [0, 1, 4, 5]]
    wanted = [padded(ids, sizes) for ids in wanted for _ in range(4)]
    assert ids_of(logits, sizes, dtype) == wanted
    for row in range(1, TOKENS):
        query_start = {"query_start": row, "heads": 3}
        assert ids_of(logits, sizes, dtype, **query_start)[0] == wanted[row]


@pytest.mark.parametrize(
    ("logits", "sizes", "expected"),
    [
        pytest.param(with_peaks({}), config(2), [0, 1], id="all equal"),
        pytest.param(with_peaks({}), config(4, 1, 2), [0, 1, LAST - 1, LAST], id="all equal, both forced"),
        pytest.param([0.0, -0.0] * (BLOCKS // 2), config(3), [0, 1, 2], id="signed zeros tie"),
        # highest in the first tile of both pieces: equal logits are computed as equal scores
        pytest.param(
            with_peaks(dict.fromkeys((3, 512, 520), 3.0)), config(2), [3, 512], id="a tie of two pieces"
        ),
        pytest.param(
            with_peaks({3: 3.0, 512: 3.0, 10: 2.0, 520: 2.0}),
            config(3),
            [3, 10, 512],
            id="the second best of two pieces tie",
        ),
        pytest.param(
            with_peaks({550: 9.0, 20: 8.0}, -INF), config(4), [0, 1, 20, 550], id="unreached blocks tie at 0"
        ),
        pytest.param(with_peaks({}, -INF), config(2), [0, 1], id="all logits -inf"),
        pytest.param(with_peaks({550: NAN}), config(3, 1, 1), [0, 1, LAST], id="NaN in the second piece"),
        pytest.param(with_peaks({5: NAN, 550: 9.0}), config(2), [0, 1], id="NaN in the first piece"),
        pytest.param(with_peaks({550: INF}), config(3, 1, 1), [0, 1, LAST], id="inf in the second piece"),
        pytest.param(with_peaks({7: 9.0}), config(2, 1, 1), [0, LAST], id="forced only"),
        pytest.param(with_peaks({7: 9.0}), config(800, 400, 400), [*range(BLOCKS)], id="forced twice"),
    ],
)
@HEADS
@DTYPES
@SETS
def test_decoded_row_selects_in_the_documented_order(
    select, instructions, dtype, heads, logits, sizes, expected
):
    """Guards against pieces of a row whose blocks tie, or are NaN, within their piece only."""
    select(instructions)
    found = ids_of(logits, sizes, dtype, query_start=4 * BLOCKS - 1, heads=heads)
    assert found == [padded(expected, sizes)]
