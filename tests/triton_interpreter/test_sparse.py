"""The whole op is the gated sum of its parts, and so is its gradient."""

import importlib
from dataclasses import replace

import comparison
import pytest
import torch
from comparison import BY_NAME, draw, place, rows_of

import trisparse
from trisparse import triton as room
from trisparse.reference.sparse_attention import gated_sum
from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks
from trisparse.testing.inputs import Case
from trisparse.triton import row_chunks, sparse_call
from trisparse.triton.combine import combine_forward

CONFIG = trisparse.SparseConfig(
    compress_block=8, compress_stride=4, select_block=16, num_selected=2, num_initial=0, num_local=1, window=9
)
NAMES = (
    "one_token",
    "below_stride",
    "over_stride",
    "own_block_only",
    "empty_at_both_ends",
    "all_too_short",
    "uneven",
)


def case(**others):
    sizes = {"batch": 1, "tokens": 50, "heads": 4, "groups": 2, "head_dim": 8, "value_dim": 6}
    return Case(**{"name": "sparse", "config": CONFIG, **sizes, **others})


def run(inputs, grad_out=None):
    """[out, branches, lse, ids] and [gradient of each tensor of `inputs`]."""
    results = room.sparse_forward(*inputs.tensors, True, *place(inputs))
    out, branches, lse, ids = results
    if grad_out is None:
        generator = torch.Generator().manual_seed(comparison.SEED)
        grad_out = torch.randn(out.shape, generator=generator).bfloat16().to(out)
    grads = room.sparse_backward(grad_out, *inputs.tensors, branches, lse, ids, *place(inputs))
    return list(results), list(grads), grad_out


def expected(inputs, ids, grad_out):
    """[out, gradient of each tensor] of the reference, with the ids given."""
    inputs, ids = inputs.to("cpu").leaves(), ids.cpu()
    where = {**inputs.where, "backend": "reference"}
    branches = (
        trisparse.compressed_attention(inputs.query, *inputs.compressed, inputs.config, **where)[0],
        trisparse.selected_attention(inputs.query, *inputs.selected, ids, inputs.config, **where),
        trisparse.window_attention(inputs.query, *inputs.window, inputs.config, **where),
    )
    out = gated_sum(*branches, inputs.gates)
    grads = torch.autograd.grad(out, inputs.tensors, grad_out.cpu().to(out), allow_unused=True)
    zeros = (torch.zeros_like(x) for x in inputs.tensors)
    return [out.detach(), *(z if g is None else g for g, z in zip(grads, zeros, strict=True))]


def check(inputs):
    (out, _, _, ids), grads, grad_out = run(inputs)
    low, gold = (expected(x, ids, grad_out) for x in (inputs, inputs.to(torch.float64)))
    terms = sum(comparison.cancelling(inputs, x) for x in (comparison.WINDOW, comparison.COMPRESSED))
    terms += comparison.cancelling(replace(inputs, window=inputs.selected), comparison.WINDOW)
    assert_within_budget("out", out, low[0], gold[0])
    for index, results in enumerate(zip(grads, low[1:], gold[1:], strict=True)):
        if results[0].numel():
            name = f"gradient {index}"
            assert_within_budget(name, *results, gradient=True, cancelling=terms, seed=comparison.SEED)


@pytest.mark.parametrize(
    "sizes", [{}, {"tokens": 30}, {"cu_seqlens": (0, 20, 50)}, {"query_start": 33}], ids=str
)
def test_backward_from_the_ids_alone(sizes):
    """Guards a backward that recomputes: by the same kernels, where all blocks are selected too."""
    inputs = draw(case(**sizes))
    (*_, ids), grads, grad_out = run(inputs)
    again = room.sparse_recompute_backward(grad_out, *inputs.tensors, ids, *place(inputs))
    for got, wanted in zip(again, grads, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("sizes", "chunks"),
    [
        ({"batch": 2, "tokens": 36, "heads": 2, "groups": 1}, 4),
        ({"batch": 5, "tokens": 7}, 2),
        ({"tokens": 36, "query_start": 3, "heads": 16, "groups": 1}, 2),
        ({"tokens": 0, "cu_seqlens": (0, 0)}, 1),
    ],
    ids=str,
)
def test_chunks_of_rows_change_no_bit(monkeypatch, sizes, chunks):
    """Guards against rows that are attended twice or not at all, and a chunk told the wrong place or keys."""
    inputs = draw(case(**sizes))
    (out, branches, lse, ids), grads, grad_out = run(inputs)
    # as many tokens as a tile has here, so that tiles are those of the whole
    monkeypatch.setattr(row_chunks, "_TOKENS", 32)
    monkeypatch.setattr(row_chunks, "SCRATCH_BYTES", 1)
    parts, attend = [], sparse_call.SparseCall.attend

    def counted(call, *arguments):
        parts.append(call)
        return attend(call, *arguments)

    monkeypatch.setattr(sparse_call.SparseCall, "attend", counted)
    in_chunks = room.sparse_forward(*inputs.tensors, False, *place(inputs))
    assert len(parts) == chunks
    assert torch.equal(in_chunks[0], out)
    assert torch.equal(in_chunks[3], ids)
    saved = room.sparse_backward(grad_out, *inputs.tensors, branches, lse, ids, *place(inputs))
    again = room.sparse_recompute_backward(grad_out, *inputs.tensors, ids, *place(inputs))
    for results in zip(saved, again, grads, strict=True):
        assert torch.equal(results[0], results[2])
        assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name):
    """Guards against swapped gates, and gradients of the branches that are lost or added twice."""
    check(draw(BY_NAME[name]))


@pytest.mark.parametrize("name", ["over_stride", "one_stride"])
def test_agrees_with_the_reference_in_fp16(name):
    """Guards against d query rounded to the inputs' dtype between the branches."""
    check(draw(BY_NAME[name], torch.float16))


@pytest.mark.parametrize("rows", [slice(33, 34), slice(16, 40), slice(49, 50)], ids=str)
@pytest.mark.parametrize("bounds", [None, (0, 21, 21, 47, 50)], ids=["alone", "packed"])
def test_rows_from_the_middle(rows, bounds):
    """Guards against a branch that is not told where the rows begin."""
    check(rows_of(draw(case(cu_seqlens=bounds)), rows))


@pytest.mark.parametrize("name", ["own_block_only", "around_a_block"])
def test_selects_what_the_reference_selects(name):
    """Guards against a selection from another branch's log-sum-exp."""
    inputs = draw(BY_NAME[name])
    ids = run(inputs)[0][3]
    parts = room.compressed_select_forward(inputs.query, *inputs.compressed, *place(inputs))
    assert torch.equal(ids, parts[2])
    assert torch.equal(ids, room.select_blocks(inputs.query, inputs.compressed[0], *place(inputs)))
    wide = inputs.to("cpu").to(torch.float64)
    gold = trisparse.select_blocks(
        wide.query, wide.compressed[0], wide.config, backend="reference", **wide.where
    )
    if inputs.cu_seqlens is None:
        compare_ids(ids, gold, selection_ranks(wide.query, wide.compressed[0], wide.config))
    else:
        assert torch.equal(ids.cpu(), gold)


@pytest.mark.parametrize("bounds", [None, (0, 21, 47, 50)], ids=["alone", "packed"])
def test_parts_have_the_same_bits(bounds):
    """Guards against a whole op whose branches are not those of the public parts."""
    inputs = draw(case(cu_seqlens=bounds))
    where = place(inputs)
    (out, branches, lse, ids), _, _ = run(inputs)
    compressed = room.compressed_select_forward(inputs.query, *inputs.compressed, *where)
    selected = room.selected_forward(inputs.query, *inputs.selected, ids, *where)
    window = room.window_forward(inputs.query, *inputs.window, *where)
    for index, (part, part_lse) in enumerate((compressed[:2], selected, window)):
        assert torch.equal(branches[index], part)
        assert torch.equal(lse[index], part_lse)
    assert torch.equal(out, combine_forward(branches, inputs.gates))


@pytest.mark.parametrize("heads_per_group", [3, 16])
def test_any_number_of_heads_in_a_group(heads_per_group):
    """Guards against tiles of heads that the branches of one op count differently."""
    check(draw(case(tokens=21, heads=2 * heads_per_group)))


def test_gates_may_be_wider_and_strided():
    """Guards against gates rounded to fp16, or read as if they were contiguous."""
    inputs = draw(case(), torch.float16)
    gates = torch.full((*inputs.gates.shape[:2], 6, 5), comparison.NAN, device=comparison.DEVICE)
    gates[:, :, 1:5, 1:4] = inputs.gates.float() + 2**-14
    check(inputs.with_tensors((*inputs.tensors[:-1], gates[:, :, 1:5, 1:4])))


@pytest.mark.parametrize("layout", comparison.LAYOUTS[:3:2])
def test_layout_does_not_matter(layout):
    """Guards against an assumed stride; NaN lies between the values that count."""
    inputs = draw(case(batch=2, tokens=20))
    results, grads, grad_out = run(inputs)
    moved = run(comparison.in_layout(inputs, layout), comparison.relaid(grad_out, layout))
    comparison.assert_same([*moved[0], *moved[1]], [*results, *grads])


def test_tokens_past_the_last_row_do_not_matter():
    """Guards against a chunk that reads keys written later, in any branch."""
    inputs = rows_of(draw(case()), slice(0, 40))
    results, grads, _ = run(inputs)
    spoiled = comparison.poisoned(inputs, comparison.COMPRESSED, slice(CONFIG.num_compressed(40), None))
    spoiled = comparison.poisoned(spoiled, comparison.WINDOW, slice(40, None))
    pair = tuple(x.clone() for x in inputs.selected)
    for tensor in pair:
        tensor[:, 40:] = comparison.NAN
    moved = run(replace(spoiled, selected=pair))
    comparison.assert_same([*moved[0], *moved[1]], [*results, *grads])


def test_the_same_keys_in_all_branches():
    """Guards against outputs that share memory where inputs do."""
    inputs = draw(case())
    check(replace(inputs, selected=inputs.window))


@pytest.mark.parametrize(
    "sizes",
    [
        {"tokens": 0},
        {"batch": 0},
        {"tokens": 3},
        {"query_start": 50},
        {"tokens": 0, "cu_seqlens": (0, 0)},
        {"tokens": 5, "cu_seqlens": (0, 0, 5, 5, 5)},
    ],
    ids=str,
)
def test_nothing_gives_nothing(sizes):
    """Guards against a launch of no programs, and gradients that are left unwritten."""
    inputs = draw(case(**sizes))
    (out, branches, lse, ids), grads, _ = run(inputs)
    assert out.shape == (*inputs.query.shape[:3], 6)
    assert branches.shape == (3, *out.shape)
    assert lse.shape == (3, *out.shape[:3])
    assert ids.shape == (*inputs.query.shape[:2], 2, CONFIG.num_selected)
    for grad, tensor in zip(grads, inputs.tensors, strict=True):
        assert grad.shape == tensor.shape
        assert grad.isfinite().all()
        if inputs.query.numel() == 0:
            assert not grad.any()


@pytest.mark.parametrize(("tokens", "dense"), [(32, True), (33, False)])
def test_short_sequences_take_no_list_of_blocks(monkeypatch, tokens, dense):
    """Guards the border: two slots of 16 tokens are everything that 32 tokens have, and not for one more."""
    calls = []
    # the module, not the function of this name
    backward = importlib.import_module("trisparse.triton.sparse_backward")
    modules = {
        "attend_selected": sparse_call,
        "selected_query_gradient": backward,
        "selected_key_gradients": backward,
    }
    for name, module in modules.items():
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function: (calls.append(f.__name__), f(*a))[1])
    check(draw(case(tokens=tokens)))
    assert sorted(set(calls)) == ([] if dense else sorted(modules))
