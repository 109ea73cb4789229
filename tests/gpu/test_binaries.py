"""How many binaries there are: one for a shape, not one for a length, a batch or a position."""

import pytest
import torch

from .calls import draw, everything, grad_like, make_case
from .device import needs_gpu

pytestmark = needs_gpu


def run(batch, tokens, query_start=0):
    case = make_case("binaries", (8, 2), (128, 128), tokens, batch=batch, query_start=query_start)
    inputs = draw(case, torch.bfloat16)
    everything(inputs, grad_like(inputs))


def test_new_lengths_need_no_new_binaries(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a length, batch or position compiled into a kernel: seconds lost on every new one."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # numbers that are 1, or divisible by 16, may rightly have binaries of their own, and so may sequences
    # whose blocks are all selected, and lists of rows that are split
    for batch, tokens, start in (
        (1, 512, 0),
        (1, 1536, 0),
        (2, 1501, 1),
        (2, 3000, 0),
        (2, 4096, 2048),
        (2, 500, 0),
        (3, 777, 3),
        (16, 256, 16),
        (1, 1, 0),
        (2, 300, 299),
    ):
        run(batch, tokens, start)
    before = len(list(tmp_path.rglob("*.cubin")))
    for batch, tokens, start in (
        (4, 512, 0),
        (1, 611, 7),
        (5, 1000, 0),
        (32, 80, 32),
        (2, 2048, 1024),
        (7, 90, 89),
    ):
        run(batch, tokens, start)
    assert len(list(tmp_path.rglob("*.cubin"))) == before
