"""A long prompt in chunks: what a layer needs beside its cache depends on the chunk, not on the prompt."""

from typing import Any

import pytest
import torch

from trisparse.bench.peak import CAN_TELL, Peak
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.rope import Rope
from trisparse.testing.inputs import usable_backends

CHUNK = 2048
HEADS, HIDDEN = 16, 64
SHORT, LONG = 4096, 16384
# what the longer prompt would add at least, if a layer kept scores of all rows and heads: for compressed keys
# in bf16
SCORES = HEADS * CHUNK * (LONG - SHORT) // 16 * 2
MIB = 2**20

pytestmark = [
    pytest.mark.skipif(not CAN_TELL, reason="this system does not say what the peak was"),
    pytest.mark.skipif("cpu" not in usable_backends(), reason="the CPU kernels cannot run here"),
]


@torch.no_grad()
def extra_bytes(tokens: int, **others: Any) -> int:
    """The peak of a prefill beyond what its cache holds."""
    torch.manual_seed(0)
    layer = NativeSparseAttention(HIDDEN, HEADS, 1, 32, rope=Rope(dim=32), backend="cpu", **others).bfloat16()
    hidden = torch.randn(1, CHUNK, HIDDEN).bfloat16()
    # whatever is made once, at the first call
    layer(hidden[:, :200], cache=layer.new_cache())
    peak, cache = Peak(), layer.new_cache(tokens)
    for _ in range(tokens // CHUNK):
        out = layer(hidden, cache=cache)
    assert cache.lengths == [tokens]
    assert out.isfinite().all()
    return peak.grown() - cache.nbytes()


@pytest.mark.parametrize(
    "others", [{}, {"shared_kv": True, "compressed_rope": "none"}], ids=["paper", "shared"]
)
def test_scratch_of_a_chunk_does_not_grow_with_the_prompt(others: dict[str, Any]) -> None:
    """Guards chunked prefill against [T, T] and [chunk, T] tensors, in torch or inside a kernel."""
    seen = []
    # what else this process takes or gives back meanwhile counts too; a defect would be there each time
    for _ in range(3):
        short, long = (extra_bytes(tokens, **others) for tokens in (SHORT, LONG))
        # a tile of rows may keep its scores
        if long - short < SCORES / 3 and long < 48 * MIB:
            return
        seen.append((short / MIB, long / MIB))
    pytest.fail(f"MiB of a short and a long prompt: {seen}")


def test_peak_is_seen() -> None:
    """Guards a measure that sees nothing."""
    peak = Peak()
    torch.zeros(16 * MIB // 4).add_(1)
    assert peak.grown() > 15 * MIB
