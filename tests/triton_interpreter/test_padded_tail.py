"""Rows that no document holds: on a GPU nobody looks whether the bounds reach to the end.

New memory is full of NaN in all tests (tests/conftest.py).
"""

import pytest
import torch

from trisparse import SparseConfig
from trisparse import triton as room

CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_local=1, window=9
)
TOKENS, END = 40, 32
BOUNDS = torch.tensor([0, 20, END], dtype=torch.int32)


def tensors():
    generator = torch.Generator().manual_seed(0)

    def pair(tokens):
        return [torch.randn(1, tokens, 1, 16, generator=generator) for _ in range(2)]

    blocks = sum(CONFIG.num_compressed(length) for length in (20, END - 20))
    query = torch.randn(1, TOKENS, 2, 16, generator=generator)
    gates = torch.rand(1, TOKENS, 2, 3, generator=generator)
    return query, (*pair(blocks), *pair(TOKENS), *pair(TOKENS)), gates


@pytest.mark.parametrize("save", [True, False])
def test_whole_op_gives_zeros(save):
    """Guards against memory of somebody else in results and gradients of a padded tail."""
    query, pairs, gates = tensors()
    place = CONFIG, 0.25, BOUNDS, 0
    out, branches, lse, ids = room.sparse_forward(query, *pairs, gates, save, *place)
    assert not out[:, END:].any()
    assert out[:, :END].isfinite().all()
    grad = torch.ones_like(out)
    if save:
        grads = room.sparse_backward(grad, query, *pairs, gates, branches, lse, ids, *place)
    else:
        grads = room.sparse_recompute_backward(grad, query, *pairs, gates, ids, *place)
    assert all(each.isfinite().all() for each in grads)
    for each in (grads[0], grads[-1]):
        assert not each[:, END:].any()
        assert each[:, :END].any()


@pytest.mark.parametrize("branch", ["compressed", "selected", "window"])
def test_parts_give_zeros(branch):
    """Guards each branch alone, its log-sum-exp included."""
    query, pairs, _ = tensors()
    place = CONFIG, 0.25, BOUNDS, 0
    key, value = pairs[2 * ("compressed", "selected", "window").index(branch) :][:2]
    ids = (room.select_blocks(query, pairs[0], *place),) if branch == "selected" else ()
    out, lse = getattr(room, f"{branch}_forward")(query, key, value, *ids, *place)
    assert not out[:, END:].any()
    assert (lse[:, END:] == -torch.inf).all()
    backward = getattr(room, f"{branch}_backward")
    grads = backward(torch.ones_like(out), query, key, value, *ids, out, lse, *place)
    assert all(each.isfinite().all() for each in grads)
    assert not grads[0][:, END:].any()
