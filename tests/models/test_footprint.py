"""What a decoded token reads: exact bytes, by hand."""

from typing import Any

import pytest
import torch

from trisparse.models.footprint import footprint

from .tiny import tiny_config

# two groups of 4 + 4 channels; blocks of 4 by 2, three of 4 selected, a window of 5
PER_TOKEN = 2 * (4 + 4)
SPARSE = 19 + 12 + 5


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, PER_TOKEN * (SPARSE + SPARSE)),
        ({"attention": ["nsa", "full"]}, PER_TOKEN * (SPARSE + 40)),
        ({"attention": ["gated_full", "full"]}, PER_TOKEN * (40 + 40)),
        ({"shared_kv": True}, PER_TOKEN * (SPARSE + SPARSE)),
        ({"value_head_dim": 6, "attention": ["full", "nsa"]}, 2 * (4 + 6) * (40 + SPARSE)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bytes_are_those_of_each_layer(dtype: torch.dtype, settings: dict[str, Any], numbers: int) -> None:
    """Guards against dense layers that are counted as sparse, values as wide as keys, and another dtype."""
    found = footprint(tiny_config(**settings), 40, dtype)
    width = 2 * (4 + settings.get("value_head_dim", 4))
    assert found.tokens_read == SPARSE
    assert found.bytes_read == numbers * dtype.itemsize
    assert found.dense_bytes_read == width * 40 * 2 * dtype.itemsize
