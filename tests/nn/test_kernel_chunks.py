"""The layer through the native kernels: decoded rows are those of the whole, within the error budget."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from trisparse.nn.attention import NativeSparseAttention
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import usable_backends

from .layers import LAYERS, forced_layer, hidden_of

pytestmark = pytest.mark.skipif("cpu" not in usable_backends(), reason="the CPU kernels cannot run here")
TOKENS = 61


@torch.no_grad()
def in_chunks(layer: NativeSparseAttention, hidden: Tensor, chunk: int) -> Tensor:
    cache, bounds = layer.new_cache(), [0, 20, *range(20 + chunk, TOKENS, chunk), TOKENS]
    return torch.cat([layer(hidden[:, a:b], cache=cache) for a, b in pairwise(bounds)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", ["token", "seven", "compressed block", "more than a selected block"])
@pytest.mark.parametrize("name", LAYERS)
def test_decode_equals_prefill(name: str, chunk: str, dtype: torch.dtype) -> None:
    """Guards the decode kernels where a layer calls them: rings, garbage behind rows, positions, chunks."""
    layer = forced_layer(name, dtype, "cpu")
    config = layer.config
    size = {"token": 1, "seven": 7, "compressed block": config.compress_block}.get(
        chunk, config.select_block + 1
    )
    hidden = hidden_of(2, TOKENS).to(dtype)
    wide, plain = forced_layer(name, dtype, "reference"), forced_layer(name, dtype, "reference")
    with torch.no_grad():
        gold = wide.double()(hidden.double())
        low = plain(hidden)
    assert_within_budget(f"{name} by {size}", in_chunks(layer, hidden, size), low, gold)
