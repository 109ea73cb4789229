"""A selection block larger than the sequence holds all of it, however large it is."""

from dataclasses import replace

import pytest
import torch

import trisparse
from trisparse import SparseConfig
from trisparse.testing.inputs import Case, make_inputs

TOKENS = 150
CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=160, num_selected=4, num_local=1, window=30
)


def results(config):
    case = Case(
        name="huge", batch=2, tokens=TOKENS, heads=4, groups=2, head_dim=16, value_dim=8, config=config
    )
    inputs = make_inputs(case, torch.float32, 0).leaves()
    out = trisparse.sparse_attention(*inputs.all_arguments, backend="torch", **inputs.where)
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], config, backend="torch")
    return [out, ids, *torch.autograd.grad(out.sum(), inputs.tensors)]


@pytest.mark.parametrize("power", [20, 40, 62])
def test_any_size_beyond_the_tokens_gives_the_same_bits(power):
    """Guards against time and memory that grow with a size of which there is nothing."""
    found, wanted = results(replace(CONFIG, select_block=2**power)), results(CONFIG)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
