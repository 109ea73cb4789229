"""Shapes that the small cases leave out: the paper's heads, long rows, odd dims; every row and gradient.

With the paper's blocks, up to 1024 tokens are all selected and take the window's kernels: longer ones here.
"""

import pytest

from trisparse import SparseConfig

from .calls import check, draw, make_case
from .device import DTYPES, pick

ODD_BLOCKS = SparseConfig(compress_block=24, compress_stride=12, select_block=60, num_selected=5, window=100)
EQUAL_BLOCKS = SparseConfig(compress_block=64, compress_stride=64, select_block=64, num_selected=4, window=65)
WIDE_BLOCKS = SparseConfig(
    compress_block=32, compress_stride=16, select_block=128, num_selected=4, window=129
)
MANY_SLOTS = SparseConfig(num_selected=48, num_initial=3, num_local=5, window=31)
NOTHING_FORCED = SparseConfig(num_selected=2, num_initial=0, num_local=0, window=1)

CASES = {
    case.name: case
    for case in (
        make_case("paper", (64, 4), (192, 128), 1153),
        make_case("square", (64, 4), (128, 128), 1216),
        make_case("eight groups", (32, 8), (128, 128), 1100),
        make_case("two groups", (32, 2), (128, 128), 1025),
        make_case("one head a group", (8, 8), (64, 64), 1300),
        make_case("one group", (16, 1), (192, 128), 2048),
        make_case("long", (4, 2), (128, 128), 4097),
        make_case("three heads a group", (6, 2), (60, 100), 1177, batch=2),
        make_case("all selected", (16, 2), (192, 128), 1023),
        make_case("five heads a group", (10, 2), (80, 96), 400, batch=3),
        make_case("narrow", (1, 1), (16, 16), 1025, batch=2),
        make_case("wide", (2, 1), (256, 256), 300),
        make_case("odd blocks", (8, 2), (128, 128), 701, config=ODD_BLOCKS),
        make_case("equal blocks", (16, 1), (128, 64), 1000, config=EQUAL_BLOCKS),
        make_case("wide blocks", (16, 2), (64, 128), 1000, config=WIDE_BLOCKS),
        make_case("many slots", (16, 1), (64, 64), 4000, config=MANY_SLOTS),
        make_case("nothing forced", (4, 1), (128, 128), 600, config=NOTHING_FORCED),
    )
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_all_rows_and_gradients_agree_with_the_reference(name, dtype):
    """Guards against a wrong tile edge, split head dim, padded group or block size on a real GPU."""
    case = CASES[name]
    tokens = pick(case.tokens, min(case.tokens, 200))
    case = make_case(
        name,
        (case.heads, case.groups),
        (case.head_dim, case.value_dim),
        tokens,
        batch=case.batch,
        config=case.config,
    )
    check(draw(case, dtype), [slice(0, tokens)])
