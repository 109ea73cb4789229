"""Values that must not matter do not, and values that break arithmetic break no more than they should."""

import pytest
import torch
from agreement import BRANCHES, attend, cancelling, ids_of

import trisparse
from trisparse import SparseConfig
from trisparse.testing.budget import assert_within_budget
from trisparse.testing.inputs import Case, device_of, kernel_backends, make_inputs, usable_backends

BACKENDS = usable_backends(torch.float32)
CONFIG = SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_initial=0, num_local=1, window=9
)
TOKENS = 70
NAN, INF = float("nan"), float("inf")


def draw(backend, dtype=torch.float32, **others):
    sizes = {"batch": 1, "tokens": TOKENS, "heads": 4, "groups": 2, "head_dim": 8, "value_dim": 6}
    case = Case(**{"name": "special", "config": CONFIG, **sizes, **others})
    return make_inputs(case, dtype, 9).to(device_of(backend))


def run(inputs, backend, **where):
    """Output and all gradients of the whole op."""
    inputs = inputs.leaves()
    out = trisparse.sparse_attention(*inputs.all_arguments, backend=backend, **where)
    return [out.detach(), *torch.autograd.grad(out.sum(), inputs.tensors)]


def selected(inputs, ids, backend, **where):
    query, key, value = (x.detach().clone().requires_grad_() for x in (inputs.query, *inputs.selected))
    out = trisparse.selected_attention(query, key, value, ids, CONFIG, backend=backend, **where)
    return [out.detach(), *torch.autograd.grad(out.sum(), (query, key, value))]


def poisoned(tensor, cut, value=NAN):
    spoiled = tensor.clone()
    spoiled[:, cut] = value
    return spoiled


@pytest.mark.parametrize("poison", [NAN, float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_unselected_blocks_do_not_matter(backend, poison):
    """Guards against reading a block nobody selected: 0 * NaN is NaN, backward too."""
    inputs = draw(backend)
    ids = torch.zeros(1, TOKENS, 2, 2, dtype=torch.int32, device=inputs.query.device)
    ids[:, 48:, :, 1] = 3
    clean = selected(inputs, ids, backend)
    key, value = (poisoned(x, slice(16, 48), poison) for x in inputs.selected)
    key, value = (poisoned(x, slice(64, 70), poison) for x in (key, value))
    spoiled = selected(
        inputs.with_tensors((*inputs.tensors[:3], key, value, *inputs.tensors[5:])), ids, backend
    )
    for got, wanted in zip(spoiled, clean, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_selected_by_one_group_only(backend):
    """Guards against a group that reads the blocks of another."""
    inputs = draw(backend)
    ids = torch.zeros(1, TOKENS, 2, 1, dtype=torch.int32, device=inputs.query.device)
    ids[:, :, 1] = 1
    clean = selected(inputs, ids, backend)
    key, value = (x.clone() for x in inputs.selected)
    for x in (key, value):
        x[:, 16:, 0] = NAN
        x[:, :16, 1] = NAN
    spoiled = selected(
        inputs.with_tensors((*inputs.tensors[:3], key, value, *inputs.tensors[5:])), ids, backend
    )
    for got, wanted in zip(spoiled, clean, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_past_the_last_row_do_not_matter(backend):
    """Guards against a chunk that reads keys written later, in any branch, forward or backward."""
    inputs = draw(backend)
    rows = 40
    cut = inputs.with_tensors((inputs.query[:, :rows], *inputs.tensors[1:-1], inputs.gates[:, :rows]))
    clean = run(cut, backend)
    seen = CONFIG.num_compressed(rows)
    spoiled = [cut.query]
    spoiled += [poisoned(x, slice(seen, None)) for x in cut.compressed]
    spoiled += [poisoned(x, slice(rows, None)) for x in (*cut.selected, *cut.window)]
    results = run(cut.with_tensors((*spoiled, cut.gates)), backend)
    for got, wanted in zip(results, clean, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_before_the_window_of_a_chunk_do_not_matter(backend):
    """Guards against a window that reads tokens no row sees."""
    inputs = draw(backend)
    results = []
    for key, value in (inputs.window, tuple(poisoned(x, slice(0, 42)) for x in inputs.window)):
        tensors = [x.clone().requires_grad_() for x in (inputs.query[:, 50:], key, value)]
        out = trisparse.window_attention(*tensors, CONFIG, query_start=50, backend=backend)
        results.append([out.detach(), *torch.autograd.grad(out.sum(), tensors)])
    for got, wanted in zip(results[1], results[0], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("bad", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_documents_do_not_matter(backend, bad):
    """Guards against NaN that crosses the border between packed documents."""
    bounds = (0, 21, 47, 70)
    inputs = draw(backend, cu_seqlens=bounds)
    clean = run(inputs, backend, cu_seqlens=inputs.cu_seqlens)
    tokens = slice(bounds[bad], bounds[bad + 1])
    counts = [CONFIG.num_compressed(b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    blocks = slice(sum(counts[:bad]), sum(counts[: bad + 1]))
    cuts = [tokens, blocks, blocks, tokens, tokens, tokens, tokens, tokens]
    tensors = tuple(poisoned(x, cut) for x, cut in zip(inputs.tensors, cuts, strict=True))
    spoiled = run(inputs.with_tensors(tensors), backend, cu_seqlens=inputs.cu_seqlens)
    for got, wanted, cut in zip(spoiled, clean, [tokens, *cuts], strict=True):
        outside = torch.ones(got.shape[1], dtype=torch.bool)
        outside[cut] = False
        assert torch.equal(got[:, outside], wanted[:, outside])


@pytest.mark.parametrize("size", [1e4, 1e30, -1e30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_future_tokens_do_not_change_the_past(backend, size):
    """Guards against a mask that is added instead of set, and 0 * inf from an overflowed product."""
    inputs = draw(backend)
    before = trisparse.sparse_attention(*inputs.all_arguments, backend=backend)
    rows, seen = 40, CONFIG.num_compressed(40)
    cuts = [rows, seen, seen, rows, rows, rows, rows, rows]
    tensors = tuple(poisoned(x, slice(cut, None), size) for x, cut in zip(inputs.tensors, cuts, strict=True))
    after = trisparse.sparse_attention(*inputs.with_tensors(tensors).all_arguments, backend=backend)
    assert torch.equal(before[:, :rows], after[:, :rows])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_key_changes_only_the_rows_that_see_it(backend):
    """Guards against NaN hidden from the rows that must show it, or shown by rows that must not."""
    inputs = draw(backend)
    key = inputs.window[0].clone()
    key[0, 20, 1] = NAN
    out = trisparse.window_attention(inputs.query, key, inputs.window[1], CONFIG, backend=backend)
    bad = out.isnan().any(dim=-1)[0]
    assert bad[20:29, 2:].all()
    assert not bad[:, :2].any()
    assert not bad[29:].any()


def attend_fused(branch, inputs, ids, backend):
    """Output of a branch, or of the whole op as `backend` fuses it."""
    if branch == "whole":
        return trisparse.sparse_attention(*inputs.all_arguments, backend=backend, **inputs.where)
    return attend(branch, inputs, ids, backend)[0]


def assert_same_specials(branch, out, inputs, ids, first=0):
    """NaN and infinities are those of the reference, given the same ids, in the rows from `first` on."""
    gold = attend(branch, inputs.to("cpu").to(torch.float64), ids.cpu(), "reference")[0]
    for test in (torch.isnan, torch.isinf):
        assert torch.equal(test(out.cpu())[:, first:], test(gold)[:, first:])


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_query_changes_only_its_row(backend, branch):
    """Guards against inf of one row or head that a tile spreads to others, or a maximum hides."""
    inputs = draw(backend)
    query = inputs.query.clone()
    query[0, 40, 1, 3] = INF
    spoiled = inputs.with_tensors((query, *inputs.tensors[1:]))
    ids = ids_of(spoiled if branch == "whole" else inputs, backend)
    results = []
    for given in (inputs.leaves(), spoiled.leaves()):
        out = attend_fused(branch, given, ids, backend)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), given.query)))
    assert_same_specials(branch, results[1][0], spoiled, ids)
    # the heads of a group choose together
    heads = slice(0, 2) if branch == "whole" else slice(1, 2)
    for clean, result in zip(*results, strict=True):
        assert result[0, 40, 1].isnan().all()
        clean[0, 40, heads] = result[0, 40, heads] = 0
        assert torch.equal(result, clean)


@pytest.mark.parametrize("value", [INF, -INF], ids=str)
@pytest.mark.parametrize("branch", BRANCHES[:3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_key_changes_only_the_rows_that_see_it(backend, branch, value):
    """Guards against inf that a tile spreads to rows behind it, or to the other group."""
    inputs = draw(backend)
    ids = torch.zeros(1, TOKENS, 2, 2, dtype=torch.int32, device=inputs.query.device)
    # block 1, where the key lies, is chosen by every third row
    ids[:, ::3, :, 1] = 1
    clean = attend(branch, inputs, ids, backend)[0]
    index = 2 * BRANCHES.index(branch) + 1
    tensors = list(inputs.tensors)
    tensors[index] = tensors[index].clone()
    # compressed block 5 ends with token 27
    tensors[index][0, 5 if branch == "compressed" else 20, 1, 3] = value
    spoiled = inputs.with_tensors(tuple(tensors))
    out = attend(branch, spoiled, ids, backend)[0]
    sees = torch.zeros(TOKENS, dtype=torch.bool)
    sees[{"compressed": slice(27, None), "selected": slice(21, None, 3), "window": slice(20, 29)}[branch]] = (
        True
    )
    assert torch.equal(out[:, :, :2], clean[:, :, :2])
    # of a future token in the same tile nothing is promised
    assert torch.equal(out[:, 32:][:, ~sees[32:]], clean[:, 32:][:, ~sees[32:]])
    assert_same_specials(branch, out, spoiled, ids, first=20)


# far from overflow forward, close to it backward
HUGE = {torch.float32: 1e37, torch.bfloat16: 1e37, torch.float16: 1e4}


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("dtype", HUGE, ids=str)
@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_huge_gradient_gives_what_the_reference_gives(backend, dtype, branch):
    """Guards against products of a gradient that overflow, or that meet a probability of 0 as inf."""
    inputs = draw("reference", dtype)
    moved = inputs.to(device_of(backend))
    ids = ids_of(moved, backend)
    grads = []
    for given, chosen in ((moved, backend), (inputs, "reference"), (inputs.to(torch.float64), "reference")):
        given = given.leaves()
        slots = ids.to(given.query.device)
        if chosen == "reference":
            out = attend(branch, given, slots, chosen)[0]
        else:
            out = attend_fused(branch, given, slots, chosen)
        grad = torch.full_like(out, HUGE[dtype])
        grads.append(torch.autograd.grad(out, given.tensors, grad, allow_unused=True))
    for what, (got, low, gold) in enumerate(zip(*grads, strict=True)):
        assert (got is None) == (gold is None)
        if got is not None:
            terms = HUGE[dtype] * cancelling(inputs) if what in (0, 1, 3, 5) else 0.0
            name = f"{branch} gradient {what}"
            assert_within_budget(name, got, low, gold, gradient=True, cancelling=terms)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("zeros", lambda x: x * 0),
        ("constants", lambda x: x * 0 + 0.5),
        ("logits of 1e4", lambda x: x * 60),
        ("subnormals", lambda x: x * 1e-7),
        ("large values", lambda x: x * 200),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_extreme_values_give_what_the_reference_gives(backend, dtype, what, change):
    """Guards against overflow of exp, of fp16 sums, and 0 / 0 where all is zero."""
    inputs = draw("reference", dtype)
    inputs = inputs.with_tensors(tuple(change(x) for x in inputs.tensors))
    wide, moved = inputs.to(torch.float64), inputs.to(device_of(backend))
    for name in ("compressed", "window"):
        function = getattr(trisparse, f"{name}_attention")
        results = []
        for given, chosen in ((moved, backend), (inputs, "reference"), (wide, "reference")):
            result = function(given.query, *getattr(given, name), CONFIG, backend=chosen)
            results.append(result[0] if isinstance(result, tuple) else result)
        assert results[0].isfinite().all()
        assert_within_budget(f"{name}, {what}", *results)


@pytest.mark.parametrize("backend", kernel_backends(torch.float32))
def test_fp16_sums_beyond_fp16_stay_finite(backend):
    """Guards against scores kept in fp16: 300 * 300 * 8 is past its largest number."""
    inputs = draw(backend, torch.float16)
    query = torch.full_like(inputs.query, 300.0)
    key = torch.full_like(inputs.window[0], 300.0)
    out = trisparse.window_attention(query, key, inputs.window[1], CONFIG, backend=backend)
    mean = torch.stack(
        [inputs.window[1][0, max(0, t - 8) : t + 1].double().mean(dim=0) for t in range(TOKENS)]
    )
    low = mean.half().repeat_interleave(2, dim=1)[None]
    assert_within_budget("mean", out, low, mean.repeat_interleave(2, dim=1)[None])


EMPTY = {
    "T 0": {"tokens": 0},
    "B 0": {"batch": 0},
    "B 0 and T 0": {"batch": 0, "tokens": 0},
    "T below a compressed block": {"tokens": 3},
    "T 1": {"tokens": 1},
    "no query rows": {"query_start": TOKENS},
    "empty packed sequence": {"tokens": 0, "cu_seqlens": (0, 0)},
    "empty documents": {"tokens": 5, "cu_seqlens": (0, 0, 5, 5, 5)},
    "no query rows of packed": {"query_start": TOKENS, "cu_seqlens": (0, 20, TOKENS)},
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_dimensions_give_empty_results_and_zero_gradients(backend, name):
    """Guards against division by zero, reductions over nothing and gradients that go missing."""
    inputs = draw(backend, **EMPTY[name])
    results = run(inputs, backend, **inputs.where)
    assert results[0].shape == (*inputs.query.shape[:3], 6)
    for result, tensor in zip(results[1:], inputs.tensors, strict=True):
        assert result.shape == tensor.shape
        assert result.isfinite().all()
        if inputs.query.numel() == 0:
            assert not result.any()
    query, config, where = inputs.query, inputs.config, {**inputs.where, "backend": backend}
    out, lse = trisparse.compressed_attention(query, *inputs.compressed, config, **where)
    ids = trisparse.select_blocks(query, inputs.compressed[0], config, **where)
    assert ids.shape == (*query.shape[:2], 2, 2)
    assert lse.shape == query.shape[:3]
    if inputs.compressed[0].shape[1] == 0:
        assert not out.any()
        assert lse.isneginf().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_of_zero_removes_a_finite_branch(backend):
    """Guards against gates in another order than compressed, selected, window."""
    inputs = draw(backend)
    out, _ = trisparse.compressed_attention(inputs.query, *inputs.compressed, CONFIG, backend=backend)
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], CONFIG, backend=backend)
    branches = (
        out,
        trisparse.selected_attention(inputs.query, *inputs.selected, ids, CONFIG, backend=backend),
        trisparse.window_attention(inputs.query, *inputs.window, CONFIG, backend=backend),
    )
    for index, branch in enumerate(branches):
        gates = torch.zeros_like(inputs.gates)
        gates[..., index] = 1.0
        arguments = (inputs.query, inputs.compressed, inputs.selected, inputs.window, gates, CONFIG)
        assert torch.equal(trisparse.sparse_attention(*arguments, backend=backend), branch)
