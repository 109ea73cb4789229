"""The acceptance rule must reject what it exists to reject: outputs spoiled by usual mistakes, in bf16."""

import pytest
import torch

from trisparse import SparseConfig
from trisparse.reference.attend import attend
from trisparse.reference.blocks import visible_window
from trisparse.reference.sparse_attention import (
    compressed_attention,
    select_blocks,
    selected_attention,
    window_attention,
)
from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks
from trisparse.testing.inputs import Case, make_inputs

CONFIG = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=3,
    num_initial=1,
    num_local=1,
    window=12,
)
CASE = Case(name="budget", batch=1, tokens=96, heads=4, groups=2, head_dim=16, value_dim=16, config=CONFIG)
SCALE = 0.25


def draw():
    """bf16 inputs whose scores are spread out, as those of a trained model are."""
    inputs = make_inputs(CASE, torch.bfloat16, 3)
    return inputs.with_tensors((inputs.query * 4, *inputs.tensors[1:]))


def window(inputs, scale=SCALE, config=CONFIG):
    return window_attention(inputs.query, *inputs.window, config, scale)


def seen_through(inputs, visible, scale=SCALE):
    """Window attention with another mask [Tq, T]."""
    out, _ = attend(inputs.query, *inputs.window, visible[None, None], scale)
    return out.to(inputs.query.dtype)


def window_mask(inputs):
    length = inputs.query.shape[1]
    return visible_window(torch.arange(length), length, CONFIG)


def causal_off_by_one(inputs):
    mask = window_mask(inputs)
    shifted = mask.clone()
    shifted[:-1] |= mask[1:]
    return seen_through(inputs, shifted)


def one_head_swapped(inputs):
    return window(inputs)[:, :, [1, 0, 2, 3]]


def one_nan(inputs):
    out = window(inputs)
    out[0, 50, 2, 7] = float("nan")
    return out


def last_tile_dropped(inputs):
    mask = window_mask(inputs)
    mask[:, 92:] = False
    return seen_through(inputs, mask)


def window_off_by_one(inputs):
    mask = window_mask(inputs)
    shifted = mask.clone()
    shifted[1:] |= mask[:-1] & (torch.arange(96) <= torch.arange(1, 96)[:, None])
    return seen_through(inputs, shifted)


def scaled_by_a_percent(inputs):
    return (window(inputs).float() * 1.01).bfloat16()


SPOILED = [
    causal_off_by_one,
    one_head_swapped,
    one_nan,
    last_tile_dropped,
    window_off_by_one,
    scaled_by_a_percent,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_spoiled_window_output_is_rejected(spoil):
    """Guards against a budget so wide that a wrong mask, head or scale passes for rounding."""
    inputs = draw()
    gold = window(inputs.to(torch.float64))
    assert_within_budget("unspoiled", window(inputs), window(inputs), gold)
    with pytest.raises(AssertionError, match="spoiled: "):
        assert_within_budget("spoiled", spoil(inputs), window(inputs), gold, seed=3)


def test_softmax_scale_off_by_a_percent_is_rejected():
    """Guards against a wrong scale, which bf16 outputs hide and the fp32 log-sum-exp shows."""
    inputs = draw()
    wide = inputs.to(torch.float64)
    _, gold = compressed_attention(wide.query, *wide.compressed, CONFIG, SCALE)
    _, low = compressed_attention(inputs.query, *inputs.compressed, CONFIG, SCALE)
    _, spoiled = compressed_attention(inputs.query, *inputs.compressed, CONFIG, SCALE * 1.01)
    assert_within_budget("unspoiled", low.clone(), low, gold)
    with pytest.raises(AssertionError, match="spoiled: "):
        assert_within_budget("spoiled", spoiled, low, gold)


def test_one_wrong_block_in_one_row_is_rejected():
    """Guards against a budget that averages one wrong row away."""
    inputs = draw()
    wide = inputs.to(torch.float64)
    ids = select_blocks(wide.query, wide.compressed[0], CONFIG, SCALE)
    low = selected_attention(inputs.query, *inputs.selected, ids, CONFIG, SCALE)
    gold = selected_attention(wide.query, *wide.selected, ids, CONFIG, SCALE)
    assert_within_budget("unspoiled", low.clone(), low, gold)
    spoiled_ids = ids.clone()
    row = spoiled_ids[0, 80, 1]
    unused = next(block for block in range(5) if block not in row.tolist())
    row[1] = unused
    spoiled = selected_attention(inputs.query, *inputs.selected, spoiled_ids, CONFIG, SCALE)
    changed = (spoiled != low).flatten(2).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 80]]
    with pytest.raises(AssertionError, match=r"spoiled: .*at \[0, 80, "):
        assert_within_budget("spoiled", spoiled, low, gold)


def test_doubled_key_gradient_of_one_block_is_rejected():
    """Guards against a gradient budget that lets a block be counted twice."""
    grads = {}
    for name, dtype in (("low", torch.bfloat16), ("gold", torch.float64)):
        inputs = draw().to(dtype).leaves()
        out = window(inputs)
        grads[name] = torch.autograd.grad(out, inputs.window[0], torch.ones_like(out))[0]
    assert_within_budget("unspoiled", grads["low"].clone(), grads["low"], grads["gold"], gradient=True)
    spoiled = grads["low"].clone()
    spoiled[:, 32:48] *= 2
    with pytest.raises(AssertionError, match="spoiled: .*elements"):
        assert_within_budget("spoiled", spoiled, grads["low"], grads["gold"], gradient=True)


def test_failure_names_place_share_and_seed():
    """Guards against a message from which the failure cannot be found again."""
    gold = torch.zeros(2, 3, 4, dtype=torch.float64)
    gold[0, 0, 0] = 1.0
    spoiled = gold.float()
    spoiled[1, 2, 3] = 5.0
    with pytest.raises(AssertionError, match=r"thing: .*\[1, 2, 3\]: got 5.0, expected 0.0; 4.17% .*seed 11"):
        assert_within_budget("thing", spoiled, gold.float(), gold, seed=11)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_value_in_place_of_another_is_rejected(value):
    """Guards against comparing infinities by difference, which is NaN and compares as right."""
    gold = torch.tensor([0.5, float("inf"), float("nan"), float("-inf")], dtype=torch.float64)
    assert_within_budget("same", gold.half(), gold.half(), gold)
    spoiled = gold.half()
    spoiled[0] = value
    with pytest.raises(AssertionError, match="in the wrong places"):
        assert_within_budget("spoiled", spoiled, gold.half(), gold)


def test_other_shape_or_dtype_is_rejected():
    """Guards against a broadcast that compares one row with all."""
    gold = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="shapes"):
        assert_within_budget("x", torch.ones(1, 3), torch.ones(4, 3), gold)
    with pytest.raises(AssertionError, match="dtype"):
        assert_within_budget("x", torch.ones(4, 3, dtype=torch.float16), torch.ones(4, 3), gold)


def test_bias_below_the_largest_error_is_rejected():
    """Guards against a rule without the mean: every element off by half of the worst rounding."""
    generator = torch.Generator().manual_seed(0)
    gold = torch.randn(4096, dtype=torch.float64, generator=generator)
    low = gold.bfloat16()
    with pytest.raises(AssertionError, match="mean error"):
        assert_within_budget("biased", (gold + 0.02).bfloat16(), low, gold)


def test_fp32_and_fp64_errors_of_a_thousandth_are_rejected():
    """Guards against factors for rounding that also let a wrong term through."""
    gold = torch.linspace(0.1, 1.0, 100, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(AssertionError):
            assert_within_budget("x", (gold * 1.001).to(dtype), gold.to(dtype), gold)


RANKS = torch.tensor([[[[float("inf"), 2.0, 2.0 + 2**-22, 1.0, float("-inf")]]]], dtype=torch.float64)


def as_ids(*ids):
    return torch.tensor([[[ids]]], dtype=torch.int32)


def test_ids_may_differ_in_a_tie_only():
    """Guards against an exchange rule that forgives a wrong block, a forced one or one of the future."""
    gold = as_ids(0, 2, -1)
    compare_ids(gold, gold, RANKS)
    compare_ids(as_ids(0, 1, -1), gold, RANKS)
    for wrong in (
        as_ids(0, 3, -1),
        as_ids(1, 2, -1),
        as_ids(0, 4, -1),
        as_ids(0, 5, -1),
        as_ids(2, 0, -1),
        as_ids(0, -1, 2),
        as_ids(0, 0, 2),
        as_ids(0, 1, 2),
        as_ids(0, -1, -1),
        as_ids(0, 1),
        as_ids(0, 1, -1).long(),
    ):
        with pytest.raises(AssertionError, match="ids"):
            compare_ids(wrong, gold, RANKS)


def test_ranks_of_the_reference_give_its_ids():
    """Guards against a score table that belongs to other ids than those it judges."""
    inputs = draw().to(torch.float64)
    ids = select_blocks(inputs.query, inputs.compressed[0], CONFIG, SCALE)
    ranks = selection_ranks(inputs.query, inputs.compressed[0], CONFIG, scale=SCALE)
    best = ranks.sort(dim=-1, descending=True, stable=True).indices[..., :3].sort(dim=-1).values
    late = slice(48, None)
    assert torch.equal(best[:, late].int(), ids[:, late])


def test_reference_that_overflows_allows_nothing():
    """Guards against a number that nothing is compared with, which passed whatever it was."""
    gold = torch.tensor([0.5, 0.25], dtype=torch.float64)
    low = torch.full((2,), float("nan"))
    assert_within_budget("right", gold.float(), low, gold)
    with pytest.raises(AssertionError, match="worst error"):
        assert_within_budget("wrong", torch.tensor([0.5, 1e9]), low, gold)
