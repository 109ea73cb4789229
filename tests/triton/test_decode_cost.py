"""The cost model of a decode step against numbers worked out by hand."""

import re
from pathlib import Path

import pytest

from trisparse import SparseConfig
from trisparse.triton.cost import GPUS, Shape, floor
from trisparse.triton.decode_cost import decode_costs, dense_decode_cost

LONG = 65536
PAPER = SparseConfig()


def costs(**sizes):
    return {cost.kernel: cost for cost in decode_costs(Shape(**sizes))}


def test_bytes_of_a_long_context_by_hand():
    """Guards against a branch forgotten, keys counted per head, or pieces in bf16: 64/4 heads, 128/128."""
    found = costs(tokens=LONG)
    query = out = 64 * 128 * 2
    # 256 of 4095 compressed keys, 128 of 1024 selected tokens, 128 of 512 in the window
    pieces = {"decode_compressed": 16, "decode_tokens": 8 + 4}
    piece = 64 * (128 * 4 + 4)
    key, scores, ids = 4 * 128 * 2, 4 * 1024 * 4, 4 * 16 * 4
    # of 1024 blocks, in tiles of 64 with a reference each
    weights, lse = 64 * (1024 + 16) * 4, 16 * 64 * 4
    compressed = found["decode_compressed"]
    assert compressed.hbm_bytes == 4095 * 2 * key + query + 16 * piece + weights
    # four keys begin in each block, and the one in front of it is met once more
    assert compressed.l2_bytes == 4095 * 2 * key + 4095 * key // 4 + 16 * (query + piece) + weights
    assert found["decode_scores"].hbm_bytes == weights + lse + scores
    assert found["decode_scores"].l2_bytes == weights + 16 * lse + scores
    assert found["decode_topn"].hbm_bytes == scores + ids
    assert found["decode_tokens"].hbm_bytes == (1024 + 512) * 2 * key + query + 12 * piece + ids
    assert found["decode_join"].hbm_bytes == sum(pieces.values()) * piece + 64 * 3 * 4 + out


def test_flops_are_those_of_the_tokens_read():
    """Guards against another reading of the branches: the tokens that the configuration counts."""
    found = costs(tokens=LONG, value_dim=64)
    attended = found["decode_compressed"].exponentials + found["decode_tokens"].exponentials
    assert attended == PAPER.tokens_read(LONG) * 64
    assert found["decode_tokens"].flops == 1536 * 64 * 2 * (128 + 64)
    assert found["decode_scores"].flops == 0


def test_short_context_is_read_as_far_as_it_goes():
    """Guards against whole blocks, and a window, that a young row does not have."""
    found = costs(tokens=65, heads=2, groups=1)
    assert found["decode_tokens"].exponentials == 2 * (65 + 65)
    assert found["decode_compressed"].exponentials == 2 * PAPER.num_compressed(65)
    assert costs(tokens=31)["decode_compressed"].flops == 0


def test_batch_multiplies_everything():
    """Guards against a tensor whose batch was forgotten."""
    one, many = costs(tokens=5000), costs(tokens=5000, batch=16)
    for kernel, cost in one.items():
        assert many[kernel].flops == 16 * cost.flops
        assert many[kernel].hbm_bytes == 16 * cost.hbm_bytes
        assert many[kernel].l2_bytes == pytest.approx(16 * cost.l2_bytes, abs=16)


def test_full_attention_reads_everything_once():
    """Guards against a baseline that is made slow by counting too much."""
    cost = dense_decode_cost(Shape(tokens=LONG, batch=2))
    assert cost.hbm_bytes == 2 * (LONG * 4 * 256 * 2 + 2 * 64 * 128 * 2)
    assert floor(cost, GPUS["H100"]).bound == "HBM"


def test_documented_floors_are_those_of_the_model():
    """Guards against a table in the documentation that nobody printed again after a change."""
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    form = r"^\| ([\w ]+) \|" + r" ([\d.]+) \|" * 6 + "$"
    documented = {name: tuple(rest) for name, *rest in re.findall(form, text, re.MULTILINE)}
    shape = Shape(tokens=LONG, head_dim=192)
    expected = {}
    for cost in (*decode_costs(shape), dense_decode_cost(shape)):
        floors = [floor(cost, GPUS[name]) for name in ("A100", "H100", "H200")]
        assert {least.bound for least in floors} == {"HBM"}
        numbers = (cost.flops / 1e9, cost.hbm_bytes / 1e6, cost.l2_bytes / 1e6)
        numbers += tuple(1e6 * least.seconds for least in floors)
        expected[cost.kernel] = tuple(f"{number:.3f}" for number in numbers)
    assert documented == expected
    (ratio,) = re.findall(r"full attention is then ([\d.]+) times", text)
    assert ratio == f"{reach(Shape(tokens=2 * LONG, head_dim=192, batch=16)):.1f}"


def reach(shape):
    """How many times the floors of a step the floor of full attention is, on an H100."""
    step = sum(floor(cost, GPUS["H100"]).seconds for cost in decode_costs(shape))
    return floor(dense_decode_cost(shape), GPUS["H100"]).seconds / step
