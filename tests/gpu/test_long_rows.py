"""Lengths that no reference can compute whole: rows by chance, and the first and last block, in fp64."""

import pytest
import torch

from trisparse.testing.sampled_rows import sample_rows

from .calls import check, draw, make_case
from .device import one_at_a_time, pick, require_memory

SHAPES = {torch.bfloat16: ((64, 4), (192, 128)), torch.float16: ((32, 8), (128, 128))}
LENGTHS = pick((8192, 32768, 65536, 131072), (300,))


@one_at_a_time
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("dtype", SHAPES, ids=str)
def test_sampled_rows_agree_with_the_reference(dtype, tokens):
    """Guards against errors that grow with the length: offsets, long lists of queries, lost rescaling."""
    heads, dims = pick(SHAPES[dtype], ((4, 2), (24, 16)))
    # the call keeps about twelve tensors of the query's size, the reference a copy of keys in fp64
    query_bytes = tokens * heads[0] * dims[0] * 2
    require_memory(14 * query_bytes + 12 * tokens * heads[1] * sum(dims) * 8)
    inputs = draw(make_case("long", heads, dims, tokens), dtype)
    middle = [row for row in sample_rows(tokens, pick(64, 8)) if 64 <= row.start < tokens - 16]
    check(inputs, [slice(0, 64), *middle, slice(tokens - 16, tokens)])
