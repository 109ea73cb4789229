"""Offsets past 2**31 and grids past 65535: real ones, compared with what a small tensor gives."""

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.testing.sampled_rows import sample_rows

from .calls import check, draw, everything, forward, grad_like, make_case
from .device import BACKEND, DEVICE, GIB, one_at_a_time, pick, require_memory

FAR = pick(2**31, 2**12)
SMALL_BLOCKS = SparseConfig(compress_block=16, compress_stride=8, select_block=16, num_selected=3, window=20)


@one_at_a_time
def test_query_of_more_than_two_to_the_31_elements():
    """Guards against int32 products of a row's number and its stride; the last rows are past 2**31."""
    tokens = FAR // (64 * 128) + 300
    require_memory(30 * GIB)
    inputs = draw(make_case("many", pick((64, 2), (8, 2)), (128, 128), tokens), torch.bfloat16)
    middle = [row for row in sample_rows(tokens, 8) if 16 <= row.start < tokens - 16]
    check(inputs, [slice(0, 16), *middle, slice(tokens - 16, tokens)], gradients=False)


@one_at_a_time
def test_gradients_of_more_than_two_to_the_31_elements():
    """Guards against the same in the backward kernels, whose sums may be fp32 and twice as large."""
    tokens = FAR // (64 * 128) + 300
    require_memory(50 * GIB)
    inputs = draw(make_case("many", pick((64, 1), (8, 1)), (128, 64), tokens), torch.bfloat16)
    check(inputs, [slice(5, 6), slice(tokens // 2, tokens // 2 + 1), slice(tokens - 16, tokens)])


def spread(tensor, stride):
    """A copy whose tokens lie `stride` elements apart, the last of them past 2**31."""
    size = (tensor.shape[1] - 1) * stride + tensor[0, 0].numel()
    storage = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
    batch = (tensor.shape[1] * stride, stride, *tensor.stride()[2:])
    view = storage.as_strided(tensor.shape, batch)
    return view.copy_(tensor)


@one_at_a_time
@pytest.mark.parametrize("which", ["query", "selected", "window", "gates"])
def test_strides_that_reach_past_two_to_the_31(which):
    """Guards against strides multiplied in 32 bits: a view of a huge tensor, like a slice of a fused one."""
    require_memory(12 * GIB)
    # so many blocks that not all are selected
    inputs = draw(make_case("spread", (4, 1), (64, 64), 600, config=SMALL_BLOCKS), torch.bfloat16)
    grad_out = grad_like(inputs)
    wanted = everything(inputs, grad_out)
    # divisible by 16, as the usual stride is: another binary would not be the same test
    stride = pick(2**31 // 500 // 64 * 64, 320)
    changed = {
        "query": (0,),
        "selected": (3, 4),
        "window": (5, 6),
        "gates": (7,),
    }[which]
    tensors = [
        spread(tensor, stride) if place in changed else tensor for place, tensor in enumerate(inputs.tensors)
    ]
    found = everything(inputs.with_tensors(tuple(tensors)), grad_out)
    for place, (got, expected) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(got, expected), place


MANY = pick(70_000, 70)


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": MANY, "tokens": 2, "heads": (2, 1)},
        {"batch": 1, "tokens": MANY, "heads": (2, 1)},
        {"batch": 1, "tokens": 3, "heads": (MANY, MANY)},
        {"batch": 1, "tokens": 3, "heads": (MANY, 1)},
        {"batch": 300, "tokens": 3, "heads": (MANY // 10, MANY // 10)},
    ],
    ids=["batch", "tokens", "groups", "heads of a group", "batch times groups"],
)
def test_more_than_65535_of_each_dimension(sizes):
    """Guards against a grid whose second or third axis cannot be that long; first and last are compared."""
    heads, groups = sizes["heads"]
    case = make_case(
        "many", (heads, groups), (16, 16), sizes["tokens"], batch=sizes["batch"], config=SMALL_BLOCKS
    )
    inputs = draw(case, torch.bfloat16)
    found = everything(inputs, grad_like(inputs))
    assert all(tensor.isfinite().all() for tensor in found)
    out = found[0]
    per_group = heads // groups
    for row, group in ((0, 0), (-1, groups - 1)):
        some = slice(group * per_group, (group + 1) * per_group)
        cut = tuple(
            tensor[row][None][:, :, some if tensor.shape[2] == heads else slice(group, group + 1)]
            for tensor in inputs.tensors
        )
        alone = forward(inputs.with_tensors(cut))
        assert torch.equal(out[row][None][:, :, some], alone)


def test_selection_of_more_than_65535_tokens_reaches_the_last_block():
    """Guards against ids that overflow: the last token's own block is the last."""
    tokens = pick(1_200_000, 1200)
    query = torch.randn(1, 1, 2, 16, dtype=torch.bfloat16, device=DEVICE)
    config = SparseConfig()
    key = torch.randn(1, config.num_compressed(tokens), 1, 16, dtype=torch.bfloat16, device=DEVICE)
    ids = trisparse.select_blocks(query, key, config, query_start=tokens - 1, backend=BACKEND)
    assert ids[0, 0, 0].tolist() == sorted(set(ids[0, 0, 0].tolist()))
    assert ids[0, 0, 0, 0] == 0
    assert ids[0, 0, 0, -2:].tolist() == [(tokens - 1) // 64 - 1, (tokens - 1) // 64]
