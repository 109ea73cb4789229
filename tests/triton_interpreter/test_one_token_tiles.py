"""The contender of the GPU benchmark whose tiles have one token: the same results, by other tiles."""

import importlib
from functools import partial
from pathlib import Path

import pytest
import torch
from comparison import draw
from test_selected import case_of, reference_ids

import trisparse
from trisparse import SparseConfig
from trisparse.testing.sampled_rows import sample_rows

TOOLS = Path(__file__).parents[2] / "tools"
# of six blocks, a row of the last one chooses three
TOKENS, CONFIG = 24, SparseConfig(compress_block=4, compress_stride=2, select_block=4, num_selected=3)


@pytest.fixture
def token_tiles(monkeypatch):
    """The module of the benchmark, which is no package."""
    for folder in ("lent_gpu", "bench_gpu"):
        monkeypatch.syspath_prepend(TOOLS / folder)
    return importlib.import_module("token_tiles")


@pytest.fixture
def tiles(monkeypatch):
    """The tile of every launch of the kernel, in order."""
    # the room exports a function of this name
    module = importlib.import_module("trisparse.triton.selected_forward")
    seen, launch = [], module.forward_launch

    def record(*arguments):
        seen.append(arguments[7])
        return launch(*arguments)

    monkeypatch.setattr(module, "forward_launch", record)
    return seen


@pytest.mark.parametrize("heads_per_group", [1, 3, 4])
def test_a_tile_of_one_token_gives_the_same(token_tiles, tiles, heads_per_group):
    """Guards against a contender that computes something else, or by the tiles it is compared with."""
    inputs = draw(case_of(heads_per_group, (24, 16), CONFIG, TOKENS))
    ids, leaves = reference_ids(inputs), (inputs.query, *inputs.selected)
    attend = partial(token_tiles.attend, leaves, ids=ids, config=inputs.config)
    several, one = attend(one_token=False), attend(one_token=True)
    torch.testing.assert_close(one, several)
    assert torch.equal(several, trisparse.selected_attention(*leaves, ids, inputs.config, backend="triton"))
    assert tiles[0].tokens > 1
    assert (tiles[1].tokens, tiles[1].heads, tiles[1].rows) == (1, heads_per_group, 16)


def test_the_contender_is_checked(token_tiles):
    """Guards against a time for a wrong result, in a sampled row or in any other."""
    inputs = draw(case_of(4, (24, 16), CONFIG, TOKENS), torch.float16)
    ids, leaves = reference_ids(inputs), (inputs.query, *inputs.selected)
    rows = sample_rows(TOKENS, 4)
    ratio = partial(token_tiles.worst_ratio, leaves=leaves, ids=ids, config=inputs.config, rows=rows)
    out = token_tiles.attend(leaves, ids=ids, config=inputs.config, one_token=True)
    assert ratio(out) <= 1.0
    for row in (rows[1].start, next(row for row in range(TOKENS) if slice(row, row + 1) not in rows)):
        wrong = out.clone()
        wrong[:, row] += 0.1
        assert ratio(wrong) > 1.0
