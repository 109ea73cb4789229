"""The kernels of the compressed branch give what the reference gives, in any shape, layout and company."""

import importlib
from dataclasses import replace

import comparison
import pytest
import torch
from comparison import COMPRESSED, LAYOUTS, NAN, PACKED, SHORT, check, draw, poisoned, rows_of, run

from trisparse import SparseConfig
from trisparse.testing.inputs import Case
from trisparse.triton.compressed_forward import compressed_lse, compressed_place

CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_initial=0, num_local=1, window=9
)
FINE = replace(CONFIG, compress_block=2, compress_stride=1)


def case(**others):
    sizes = {"batch": 1, "tokens": 70, "heads": 4, "groups": 2, "head_dim": 8, "value_dim": 6}
    return Case(**{"name": "compressed", "config": CONFIG, **sizes, **others})


@pytest.mark.parametrize("name", SHORT)
def test_agrees_with_the_reference(name):
    """Guards against a wrong tile edge, mask, head, group or stride, forward or backward."""
    check(COMPRESSED, draw(SHORT[name]))


@pytest.mark.parametrize("name", list(SHORT)[1::2])
def test_agrees_with_the_reference_in_fp16(name):
    """Guards against sums or weights kept in the inputs' dtype."""
    check(COMPRESSED, draw(SHORT[name], torch.float16))


@pytest.mark.parametrize("name", PACKED)
def test_packed_agrees_with_the_reference(name):
    """Guards against documents that see one another, and compressed blocks counted through documents."""
    check(COMPRESSED, draw(PACKED[name]))


@pytest.mark.parametrize("heads_per_group", [1, 2, 3, 4, 16, 80])
def test_any_number_of_heads_in_a_group(heads_per_group):
    """Guards against heads that are padding being added up, and groups of more heads than a tile has rows."""
    check(COMPRESSED, draw(case(tokens=11, heads=2 * heads_per_group)))


@pytest.mark.parametrize(("head_dim", "value_dim"), [(192, 128), (60, 100), (16, 40), (96, 24), (1, 1)])
def test_any_head_dims(head_dim, value_dim):
    """Guards against a second part of a split dim that is read or written in the wrong place."""
    check(COMPRESSED, draw(case(tokens=40, head_dim=head_dim, value_dim=value_dim)))


@pytest.mark.parametrize("tokens", [32, 33, 34, 64, 65, 66, 129])
def test_blocks_around_the_size_of_a_tile(tokens):
    """Guards against whole tiles of keys that are masked or missing, and a tail tile read past its end."""
    check(COMPRESSED, draw(case(tokens=tokens, config=FINE)))


def test_rows_out_of_step_with_tiles_of_keys():
    """Guards against a tile of keys that goes unmasked because the last row of a tile sees it."""
    inputs = draw(case(tokens=60, heads=2, config=FINE))
    check(COMPRESSED, rows_of(inputs, slice(27, 60)))


@pytest.mark.parametrize("splits", [2, 7])
@pytest.mark.parametrize("bounds", [None, (0, 1, 41, 50)], ids=["alone", "packed"])
def test_rows_split_among_programs(monkeypatch, splits, bounds):
    """Guards against rows counted twice or never where the rows of a block are shared by programs."""
    # by name: the package's attribute of that name is the function
    module = importlib.import_module("trisparse.triton.compressed_backward")
    inputs = draw(case(tokens=50, heads=2, groups=1, config=FINE, cu_seqlens=bounds))
    whole = run(COMPRESSED, inputs)
    monkeypatch.setattr(module, "num_splits", lambda _: splits)
    check(COMPRESSED, inputs)
    assert torch.equal(run(COMPRESSED, inputs)[2], whole[2])


@pytest.mark.parametrize("rows", [slice(1, 70), slice(33, 34), slice(16, 40), slice(69, 70)], ids=str)
@pytest.mark.parametrize("bounds", [None, (0, 21, 21, 47, 70)], ids=["alone", "packed"])
def test_rows_from_the_middle(rows, bounds):
    """Guards against positions counted from the first query row, or blocks that only later rows see."""
    check(COMPRESSED, rows_of(draw(case(cu_seqlens=bounds)), rows))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(layout):
    """Guards against an assumed stride or alignment; NaN lies between the values that count."""
    inputs = draw(case(batch=2, tokens=40))
    grad_out = comparison.upstream(inputs, COMPRESSED)
    clean = run(COMPRESSED, inputs, grad_out)
    moved = comparison.in_layout(inputs, layout)
    comparison.assert_same(run(COMPRESSED, moved, comparison.relaid(grad_out, layout)), clean)


def test_rows_without_a_block_give_nothing():
    """Guards against NaN from a softmax over nothing, forward or backward."""
    out, lse, grad_query, *_ = run(COMPRESSED, draw(case()))
    assert not out[:, :7].any()
    assert lse[:, :7].isneginf().all()
    assert not grad_query[:, :7].any()
    assert lse[:, 7:].isfinite().all()


def test_blocks_past_the_last_row_do_not_matter():
    """Guards against a chunk that reads blocks completed later, and gradients that they are not given."""
    inputs = rows_of(draw(case()), slice(0, 40))
    clean = run(COMPRESSED, inputs)
    seen = CONFIG.num_compressed(40)
    comparison.assert_same(run(COMPRESSED, poisoned(inputs, COMPRESSED, slice(seen, None))), clean)
    assert not clean[3][:, seen:].any()
    assert not clean[4][:, seen:].any()


@pytest.mark.parametrize("bad", range(3))
def test_other_documents_do_not_matter(bad):
    """Guards against NaN that crosses the border between packed documents."""
    bounds = (0, 21, 47, 70)
    inputs = draw(case(cu_seqlens=bounds))
    counts = [CONFIG.num_compressed(b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    rows, blocks = slice(bounds[bad], bounds[bad + 1]), slice(sum(counts[:bad]), sum(counts[: bad + 1]))
    clean = run(COMPRESSED, inputs)
    spoiled = poisoned(inputs, COMPRESSED, blocks)
    spoiled.query[:, rows] = NAN
    for got, wanted, cut in zip(
        run(COMPRESSED, spoiled), clean, (rows, rows, rows, blocks, blocks), strict=True
    ):
        outside = torch.ones(got.shape[1], dtype=torch.bool)
        outside[cut] = False
        assert torch.equal(got[:, outside], wanted[:, outside])


@pytest.mark.parametrize("size", [1e4, 1e30, -1e30])
def test_finite_future_blocks_do_not_change_the_past(size):
    """Guards against a mask that is added instead of set."""
    inputs = draw(case())
    before = run(COMPRESSED, inputs)
    after = run(COMPRESSED, poisoned(inputs, COMPRESSED, slice(CONFIG.num_compressed(40), None), size))
    for got, wanted in zip(after[:3], before[:3], strict=True):
        assert torch.equal(got[:, :40], wanted[:, :40])


@pytest.mark.parametrize("factor", [0.0, 60.0, 1e-7], ids=["zeros", "logits of 1e4", "subnormals"])
def test_extreme_values(factor):
    """Guards against overflow of the exponential and 0 / 0."""
    inputs = draw(case(), torch.float16)
    inputs = inputs.with_tensors(tuple(x * factor for x in inputs.tensors))
    out, lse = run(COMPRESSED, inputs)[:2]
    assert out.isfinite().all()
    grad_out = comparison.upstream(inputs, COMPRESSED)
    low, gold = (comparison.expected(COMPRESSED, x, grad_out) for x in (inputs, inputs.to(torch.float64)))
    comparison.assert_within_budget("out", out, low[0], gold[0])
    comparison.assert_within_budget("lse", lse, low[1], gold[1])


def test_a_batch_row_alone_has_the_same_bits():
    """Guards against a batch stride that is left out, and a tile that depends on the batch."""
    inputs = draw(case(batch=3, tokens=40))
    together = run(COMPRESSED, inputs)
    for row in range(3):
        alone = inputs.with_tensors(tuple(x[row : row + 1] for x in inputs.tensors))
        grad_out = comparison.upstream(inputs, COMPRESSED)[row : row + 1]
        comparison.assert_same(run(COMPRESSED, alone, grad_out), [x[row : row + 1] for x in together])


@pytest.mark.parametrize("dims", [(8, 6), (192, 128)], ids=str)
def test_lse_without_values_has_the_same_bits(dims):
    """Guards against ids of `select_blocks` that are not those of the whole op."""
    inputs = draw(case(tokens=40, head_dim=dims[0], value_dim=dims[1]))
    where = comparison.place(inputs)
    lse = run(COMPRESSED, inputs)[1]
    alone = compressed_lse(
        inputs.query, inputs.compressed[0], compressed_place(inputs.query, inputs.compressed[0], *where)
    )
    assert torch.equal(alone, lse)


@pytest.mark.parametrize(
    "sizes",
    [
        {"tokens": 0},
        {"batch": 0},
        {"tokens": 7},
        {"query_start": 70},
        {"tokens": 0, "cu_seqlens": (0, 0)},
        {"tokens": 12, "cu_seqlens": (0, 5, 12)},
        {"query_start": 70, "cu_seqlens": (0, 20, 70)},
    ],
    ids=str,
)
def test_nothing_gives_nothing(sizes):
    """Guards against a launch of no programs, and results that are left unwritten where there is no block."""
    inputs = draw(case(**sizes))
    out, lse, *grads = run(COMPRESSED, inputs)
    assert out.shape == (*inputs.query.shape[:3], 6)
    assert not out.any()
    assert lse.shape == inputs.query.shape[:3]
    assert lse.isneginf().all()
    for grad, tensor in zip(grads, (inputs.query, *inputs.compressed), strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()
