"""The cost model against numbers worked out by hand, and against those that others publish."""

import re
from pathlib import Path

import pytest

from trisparse import SparseConfig
from trisparse.triton.cost import (
    GPUS,
    Shape,
    backward_costs,
    compressed_pairs,
    dense_pairs,
    floor,
    forward_costs,
    selected_pairs,
    window_pairs,
)
from trisparse.triton.resources import kernel_modules

PAPER = SparseConfig()
LONG = 65536
TINY = SparseConfig(
    compress_block=4,
    compress_stride=2,
    select_block=4,
    num_selected=2,
    num_initial=1,
    num_local=1,
    window=3,
)


def costs(**sizes):
    shape = Shape(**sizes)
    return {cost.kernel: cost for cost in (*forward_costs(shape), *backward_costs(shape))}


def test_pairs_of_a_tiny_sequence():
    """Guards against a count that is off by one: ten tokens, every row counted with a pencil."""
    # tokens 0..9 see 1, 2, 3, 3, ... of the last three tokens
    assert window_pairs(10, TINY) == 1 + 2 + 3 * 8
    # blocks end at tokens 3, 5, 7, 9
    assert compressed_pairs(10, TINY) == (10 - 3) + (10 - 5) + (10 - 7) + (10 - 9)
    # the own block up to the token itself, and one whole earlier block from token 4 on
    assert selected_pairs(10, TINY) == (1 + 2 + 3 + 4) + (5 + 6 + 7 + 8) + (5 + 6)
    assert dense_pairs(10) == 55


def test_pairs_of_the_papers_longest_sequence():
    """Guards against a term forgotten at the start of the sequence; closed forms, by hand."""
    assert window_pairs(LONG, PAPER) == 512 * 513 // 2 + (LONG - 512) * 512
    assert compressed_pairs(LONG, PAPER) == 4095 * (LONG - 31) - 16 * 4094 * 4095 // 2
    # 16 blocks reach back to the first token; after them 15 whole blocks and the own one, half of it
    assert selected_pairs(LONG, PAPER) == 1024 * 1025 // 2 + 1008 * (64 * 15 * 64 + 64 * 65 // 2)


@pytest.mark.parametrize(
    ("tokens", "attended", "ratio"), [(8192, 1711, 2.39), (32768, 2539, 6.45), (65536, 3573, 9.17)]
)
def test_attended_tokens_are_the_papers(tokens, attended, ratio):
    """Guards against another reading of the branches: average tokens a query attends, and dense over NSA.

    The figures count the own block whole, so they are up to 32 tokens larger.
    """
    pairs = [count(tokens, PAPER) for count in (compressed_pairs, selected_pairs, window_pairs)]
    average = sum(pairs) / tokens
    assert attended - 33 < average < attended
    assert dense_pairs(tokens) / sum(pairs) == pytest.approx(ratio, rel=0.02)


def test_flops_are_those_that_others_count():
    """Guards against a factor of two: TFLOP at 64k, 64/4 heads, 128/128, as others count them."""
    found = costs(tokens=LONG)
    published = {"compressed_forward": 4.4, "topn": 2.2, "selected_forward": 2.2, "window_forward": 1.1}
    for kernel, teraflop in published.items():
        assert found[kernel].flops / 1e12 == pytest.approx(teraflop, rel=0.05)
    assert sum(found[kernel].flops for kernel in published) / 1e12 == pytest.approx(9.9, rel=0.02)


def test_selected_forward_by_hand():
    """Guards against bytes counted per head instead of per group, or of the wrong dtype."""
    cost = costs(tokens=LONG)["selected_forward"]
    pairs = selected_pairs(LONG, PAPER)
    assert cost.flops == pairs * 64 * 2 * 256
    assert cost.exponentials == pairs * 64
    query = out = LONG * 64 * 128 * 2
    raw = LONG * 4 * 256 * 2
    ids, lse = LONG * 4 * 16 * 4, LONG * 64 * 4
    assert cost.hbm_bytes == query + raw + ids + out + lse
    # each group reads its keys and values for each token anew: 137 GB, whole blocks counted
    assert cost.l2_bytes - query - out - ids - lse == pairs * 4 * 256 * 2
    assert cost.l2_bytes == pytest.approx(137e9, rel=0.05)


def test_query_gradients_share_one_fp32_sum():
    """Guards against a sum counted once where it is read and written again by the next branch."""
    found = costs(tokens=1024)
    kept = 1024 * 64 * 128 * 4
    raw, ids = 1024 * 4 * 256 * 2, 1024 * 4 * 16 * 4
    rows = 1024 * 64 * (128 * 2 + 128 * 2 + 3 * 4)
    assert found["compressed_query_gradient"].hbm_bytes == 63 * 4 * 256 * 2 + rows + kept
    assert found["selected_query_gradient"].hbm_bytes == raw + ids + rows + 2 * kept
    assert found["window_query_gradient"].hbm_bytes == raw + rows + kept + 1024 * 64 * 128 * 2


def test_value_dim_counts_apart_from_head_dim():
    """Guards against D used for E: at 192/128 the scores grow and the values do not."""
    found, square = costs(tokens=4096, head_dim=192), costs(tokens=4096)
    assert found["topn"].flops == square["topn"].flops * 192 // 128
    assert found["window_forward"].flops == square["window_forward"].flops * (192 + 128) // 256
    query, key = found["window_query_gradient"], found["window_key_gradient"]
    assert query.flops == window_pairs(4096, PAPER) * 64 * 2 * (192 + 128 + 192)
    assert key.flops == window_pairs(4096, PAPER) * 64 * 2 * (192 + 128 + 192 + 128)


def test_floor_takes_the_slowest_resource():
    """Guards against times that are added, or a bound that is not the one named."""
    found = costs(tokens=LONG)
    selected = floor(found["selected_forward"], GPUS["H100"])
    assert selected.bound == "tensor cores"
    assert selected.seconds == pytest.approx(2.138e-3, rel=0.01)
    # with the L2 peak published, the same kernel is bound by it
    assert floor(found["selected_forward"], GPUS["A100"]).bound == "L2"
    combine = floor(found["combine_forward"], GPUS["H100"])
    assert combine.bound == "HBM"
    assert combine.seconds == pytest.approx((4 * LONG * 64 * 128 * 2 + LONG * 64 * 3 * 4) / 3.35e12)


def test_peaks_agree_with_the_clocks_they_are_made_of():
    """Guards against a peak with sparsity, or of another card: multiprocessors x flops a clock x clock."""
    assert GPUS["A100"].flops == pytest.approx(108 * 2048 * 1.41e9, rel=1e-3)
    assert GPUS["H100"].flops == pytest.approx(132 * 4096 * 1.83e9, rel=1e-3)
    assert GPUS["H200"].flops == GPUS["H100"].flops


def test_batch_multiplies_everything():
    """Guards against a tensor whose batch was forgotten."""
    one, three = costs(tokens=1024), costs(tokens=1024, batch=3)
    for kernel, cost in one.items():
        assert three[kernel].flops == 3 * cost.flops
        assert three[kernel].hbm_bytes == 3 * cost.hbm_bytes
        assert three[kernel].l2_bytes == pytest.approx(3 * cost.l2_bytes, abs=3)


def test_short_sequence_has_no_compressed_work():
    """Guards against a negative number of blocks below the first complete one."""
    found = costs(tokens=31)
    assert found["compressed_forward"].flops == 0
    assert found["topn"].flops == 0


def test_documented_floors_are_those_of_the_model():
    """Guards against a table in the documentation that nobody printed again after a change."""
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    form = r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\w ]+) \|$"
    documented = {name: tuple(rest) for name, *rest in re.findall(form, text, re.MULTILINE)}
    expected = {}
    for kernel, cost in costs(tokens=LONG, head_dim=192).items():
        least = floor(cost, GPUS["H100"])
        numbers = (cost.flops / 1e12, cost.hbm_bytes / 1e9, cost.l2_bytes / 1e9, 1e3 * least.seconds)
        expected[kernel] = (*(f"{number:.3f}" for number in numbers), least.bound)
    assert documented == expected


def test_every_kernel_module_is_explained():
    """Guards against a kernel that a newcomer finds no word about."""
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    missing = [
        name for name in kernel_modules() if not any(word in text for word in (f"{name}.py", f" {name} "))
    ]
    assert missing == []
