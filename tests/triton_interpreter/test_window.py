"""The kernels of the window branch give what the reference gives, in any shape, layout and company."""

from dataclasses import replace

import comparison
import pytest
import torch
from comparison import LAYOUTS, NAN, PACKED, SHORT, WINDOW, check, draw, poisoned, rows_of, run

from trisparse import SparseConfig
from trisparse.testing.inputs import Case

CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_initial=0, num_local=1, window=9
)


def case(**others):
    sizes = {"batch": 1, "tokens": 70, "heads": 4, "groups": 2, "head_dim": 8, "value_dim": 6}
    return Case(**{"name": "window", "config": CONFIG, **sizes, **others})


@pytest.mark.parametrize("name", SHORT)
def test_agrees_with_the_reference(name):
    """Guards against a wrong tile edge, mask, head, group or stride, forward or backward."""
    check(WINDOW, draw(SHORT[name]))


@pytest.mark.parametrize("name", list(SHORT)[::2])
def test_agrees_with_the_reference_in_fp16(name):
    """Guards against sums or weights kept in the inputs' dtype."""
    check(WINDOW, draw(SHORT[name], torch.float16))


@pytest.mark.parametrize("name", PACKED)
def test_packed_agrees_with_the_reference(name):
    """Guards against documents that see one another, and tiles that cross from one to the next."""
    check(WINDOW, draw(PACKED[name]))


@pytest.mark.parametrize("heads_per_group", [1, 2, 3, 4, 16, 80])
def test_any_number_of_heads_in_a_group(heads_per_group):
    """Guards against heads that are padding being added up, and groups of more heads than a tile has rows."""
    check(WINDOW, draw(case(tokens=11, heads=2 * heads_per_group)))


@pytest.mark.parametrize(("head_dim", "value_dim"), [(192, 128), (60, 100), (16, 40), (96, 24), (1, 1)])
def test_any_head_dims(head_dim, value_dim):
    """Guards against a second part of a split dim that is read or written in the wrong place."""
    check(WINDOW, draw(case(tokens=40, head_dim=head_dim, value_dim=value_dim)))


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 69, 70, 71, 2**31 - 1, 2**40])
def test_window_around_the_size_of_a_tile(window):
    """Guards against a window off by one, or tiles between its two edges that are masked or missing."""
    config = replace(CONFIG, window=window)
    check(WINDOW, draw(case(tokens=107, heads=4, groups=1, config=config)))


@pytest.mark.parametrize("rows", [slice(1, 70), slice(33, 34), slice(16, 40), slice(69, 70)], ids=str)
@pytest.mark.parametrize("bounds", [None, (0, 21, 21, 47, 70)], ids=["alone", "packed"])
def test_rows_from_the_middle(rows, bounds):
    """Guards against positions counted from the first query row, or keys that only later rows see."""
    check(WINDOW, rows_of(draw(case(cu_seqlens=bounds)), rows))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(layout):
    """Guards against an assumed stride or alignment; NaN lies between the values that count."""
    inputs = draw(case(batch=2, tokens=40))
    grad_out = comparison.upstream(inputs, WINDOW)
    clean = run(WINDOW, inputs, grad_out)
    moved = comparison.in_layout(inputs, layout)
    comparison.assert_same(run(WINDOW, moved, comparison.relaid(grad_out, layout)), clean)


def test_expanded_gradient_and_keys():
    """Guards against strides of 0, which autograd makes of a sum and grouped layouts of shared keys."""
    inputs = draw(case(tokens=40))
    key, value = (x[:, :, :1].expand(-1, -1, 2, -1) for x in inputs.window)
    expanded = replace(inputs, window=(key, value))
    copied = replace(inputs, window=(key.contiguous(), value.contiguous()))
    one = inputs.query.new_ones(())
    grad_out = one.expand(1, 40, 4, 6)
    comparison.assert_same(run(WINDOW, expanded, grad_out), run(WINDOW, copied, grad_out.contiguous()))


def test_tokens_past_the_last_row_do_not_matter():
    """Guards against a chunk that reads keys written later."""
    inputs = rows_of(draw(case()), slice(0, 40))
    clean = run(WINDOW, inputs)
    comparison.assert_same(run(WINDOW, poisoned(inputs, WINDOW, slice(40, None))), clean)
    assert not clean[3][:, 40:].any()
    assert not clean[4][:, 40:].any()


def test_tokens_before_the_window_of_a_chunk_do_not_matter():
    """Guards against 0 * NaN from a token that no row sees."""
    inputs = rows_of(draw(case()), slice(50, 70))
    clean = run(WINDOW, inputs)
    comparison.assert_same(run(WINDOW, poisoned(inputs, WINDOW, slice(0, 42))), clean)


@pytest.mark.parametrize("bad", range(3))
def test_other_documents_do_not_matter(bad):
    """Guards against NaN that crosses the border between packed documents."""
    bounds = (0, 21, 47, 70)
    inputs = draw(case(cu_seqlens=bounds))
    document = slice(bounds[bad], bounds[bad + 1])
    clean = run(WINDOW, inputs)
    spoiled = poisoned(inputs, WINDOW, document)
    spoiled.query[:, document] = NAN
    outside = torch.ones(70, dtype=torch.bool)
    outside[document] = False
    for got, wanted in zip(run(WINDOW, spoiled), clean, strict=True):
        assert torch.equal(got[:, outside], wanted[:, outside])


@pytest.mark.parametrize("size", [1e4, 1e30, -1e30])
def test_finite_future_tokens_do_not_change_the_past(size):
    """Guards against a mask that is added instead of set."""
    inputs = draw(case())
    before = run(WINDOW, inputs)
    after = run(WINDOW, poisoned(inputs, WINDOW, slice(40, None), size))
    for got, wanted in zip(after[:3], before[:3], strict=True):
        assert torch.equal(got[:, :40], wanted[:, :40])


def test_nan_key_changes_the_rows_that_see_it():
    """Guards against NaN that a maximum swallows."""
    inputs = draw(case())
    inputs.window[0][0, 20, 1] = NAN
    bad = run(WINDOW, inputs)[0].isnan().any(dim=-1)[0]
    assert bad[20:29, 2:].all()
    assert not bad[:, :2].any()
    assert not bad[29:].any()


@pytest.mark.parametrize("factor", [0.0, 60.0, 1e-7], ids=["zeros", "logits of 1e4", "subnormals"])
def test_extreme_values(factor):
    """Guards against overflow of the exponential and 0 / 0."""
    inputs = draw(case(), torch.float16)
    inputs = inputs.with_tensors(tuple(x * factor for x in inputs.tensors))
    out = run(WINDOW, inputs)[0]
    assert out.isfinite().all()
    grad_out = comparison.upstream(inputs, WINDOW)
    low, gold = (comparison.expected(WINDOW, x, grad_out)[0] for x in (inputs, inputs.to(torch.float64)))
    comparison.assert_within_budget("out", out, low, gold)


def test_a_batch_row_alone_has_the_same_bits():
    """Guards against a batch stride that is left out, and a tile that depends on the batch."""
    inputs = draw(case(batch=3, tokens=40))
    together = run(WINDOW, inputs)
    for row in range(3):
        alone = inputs.with_tensors(tuple(x[row : row + 1] for x in inputs.tensors))
        grad_out = comparison.upstream(inputs, WINDOW)[row : row + 1]
        comparison.assert_same(run(WINDOW, alone, grad_out), [x[row : row + 1] for x in together])


@pytest.mark.parametrize(
    "sizes",
    [
        {"tokens": 0},
        {"batch": 0},
        {"query_start": 70},
        {"tokens": 0, "cu_seqlens": (0, 0)},
        {"query_start": 70, "cu_seqlens": (0, 20, 70)},
    ],
    ids=str,
)
def test_nothing_gives_nothing(sizes):
    """Guards against a launch of no programs, and gradients of keys without rows that are left unwritten."""
    inputs = draw(case(**sizes))
    out, lse, *grads = run(WINDOW, inputs)
    assert out.shape == (*inputs.query.shape[:3], 6)
    assert lse.shape == inputs.query.shape[:3]
    for grad, tensor in zip(grads, (inputs.query, *inputs.window), strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()
