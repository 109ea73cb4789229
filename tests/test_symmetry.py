"""Heads, groups and batch rows have no order; keys may be attended half by half (reliability row K16)."""

import pytest
import torch
from agreement import cancelling, ids_of
from hypothesis import given
from hypothesis import strategies as st
from test_properties import FEW, WIDE, cases, inputs_of

import trisparse
from trisparse.testing.budget import assert_within_budget, compare_ids, selection_ranks
from trisparse.testing.inputs import device_of, usable_backends

# those on a CPU; on a GPU each of many shapes would be compiled first, and tests/gpu has what differs there
CALLS = [
    (backend, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for backend in usable_backends(dtype)
    if device_of(backend) == "cpu"
]
EACH = pytest.mark.parametrize(
    ("backend", "dtype"), CALLS, ids=[f"{backend}-{str(dtype)[6:]}" for backend, dtype in CALLS]
)
# results of `parts` that have heads, not groups, in their third dimension
OF_HEADS = ("compressed", "lse", "selected", "window", *(f"d query {i}" for i in range(3)))


def parts(inputs, ids, backend):
    """Outputs, log-sum-exp and all gradients of the three branches by name, all with `ids`."""
    inputs = inputs.leaves()
    query, config = inputs.query, inputs.config
    pairs = (inputs.compressed, inputs.selected, inputs.window)
    out, lse = trisparse.compressed_attention(query, *pairs[0], config, backend=backend)
    outs = {
        "compressed": out,
        "selected": trisparse.selected_attention(query, *pairs[1], ids, config, backend=backend),
        "window": trisparse.window_attention(query, *pairs[2], config, backend=backend),
    }
    found = {name: branch.detach() for name, branch in outs.items()} | {"lse": lse}
    for index, (branch, pair) in enumerate(zip(outs.values(), pairs, strict=True)):
        # of every row, head and feature another one, and exact in bfloat16
        grad = (query[..., :1].detach().expand(branch.shape) * 4).round() / 4
        grads = torch.autograd.grad(branch, (query, *pair), grad)
        names = (f"d query {index}", f"d key {index}", f"d value {index}")
        found |= dict(zip(names, grads, strict=True))
    return found


def check(name, got, low, gold, inputs):
    terms = cancelling(inputs) if name.startswith(("d query", "d key")) else 0.0
    if name == "lse":
        # a score and a logarithm, of which little may be left
        terms = 1.0
    assert_within_budget(name, got, low.cpu(), gold, gradient=name.startswith("d "), cancelling=terms)


def in_group_order(orders, per_group):
    """The heads of all groups, those of group g in the order `orders[g]`."""
    return [group * per_group + head for group, order in enumerate(orders) for head in order]


@EACH
@given(case=cases(), seed=st.integers(0, 99), data=st.data())
@FEW
def test_heads_of_a_group_may_change_places(backend, dtype, case, seed, data):
    """Guards against a head that reads the row, or the softmax, of its neighbour in a tile."""
    inputs = inputs_of(case, seed, backend, dtype)
    per_group = case.heads // case.groups
    orders = [data.draw(st.permutations(range(per_group))) for _ in range(case.groups)]
    heads = in_group_order(orders, per_group)
    gold_inputs = inputs.to("cpu").to(WIDE)
    ids = ids_of(gold_inputs, "reference")
    moved = inputs.with_tensors((inputs.query[:, :, heads], *inputs.tensors[1:-1], inputs.gates[:, :, heads]))
    # like kernels, and unlike autograd, it begins its backward with a rounded output
    low, gold = parts(inputs.to("cpu"), ids, "torch"), parts(gold_inputs, ids, "reference")
    for name, got in parts(moved, ids.to(inputs.query.device), backend).items():
        exact = [x[:, :, heads] if name in OF_HEADS else x for x in (low[name], gold[name])]
        check(name, got, *exact, inputs)
    ranks = selection_ranks(gold_inputs.query, gold_inputs.compressed[0], case.config)
    compare_ids(ids_of(moved, backend), ids, ranks)


@EACH
@given(case=cases(), seed=st.integers(0, 99), data=st.data())
@FEW
def test_groups_and_batch_rows_may_change_places(backend, dtype, case, seed, data):
    """Guards against a group or batch row that reads another's keys, ids or rows; kernels to the last bit."""
    inputs = inputs_of(case, seed, backend, dtype)
    groups = data.draw(st.permutations(range(case.groups)))
    rows = data.draw(st.permutations(range(case.batch)))
    per_group = case.heads // case.groups
    heads = [group * per_group + head for group in groups for head in range(per_group)]

    def move(tensor, has_heads):
        return tensor[rows][:, :, heads if has_heads else groups]

    tensors = inputs.tensors
    moved = inputs.with_tensors(tuple(move(x, index in (0, 7)) for index, x in enumerate(tensors)))
    ids = ids_of(inputs, backend)
    gold_inputs = inputs.to("cpu").to(WIDE)
    found, wanted = parts(moved, move(ids, False), backend), parts(inputs, ids, backend)
    # the others multiply by PyTorch, whose products round by where in memory a number lies
    if backend == "cpu":
        assert torch.equal(ids_of(moved, backend), move(ids, False))
        for name, got in found.items():
            assert torch.equal(got, move(wanted[name], name in OF_HEADS)), name
        return
    gold = parts(gold_inputs, ids, "reference")
    for name, got in found.items():
        check(name, got, *(move(x[name], name in OF_HEADS) for x in (wanted, gold)), inputs)


@EACH
@given(case=cases(), seed=st.integers(0, 99))
@FEW
def test_a_batch_row_and_a_group_alone_give_what_they_give_together(backend, dtype, case, seed):
    """Guards against a size of the batch, or a number of groups, that reaches the numbers."""
    inputs = inputs_of(case, seed, backend, dtype)
    ids = ids_of(inputs, backend)
    per_group = case.heads // case.groups
    heads, group = slice(case.heads - per_group, case.heads), slice(case.groups - 1, case.groups)
    cuts = [heads, *[group] * 6, heads]
    alone = inputs.with_tensors(tuple(x[-1:, :, cut] for x, cut in zip(inputs.tensors, cuts, strict=True)))
    found, together = parts(alone, ids[-1:, :, group], backend), parts(inputs, ids, backend)
    gold = parts(inputs.to("cpu").to(WIDE), ids.cpu(), "reference")
    for name, got in found.items():
        low, exact = (x[name][-1:, :, heads if name in OF_HEADS else group] for x in (together, gold))
        if backend == "cpu":
            assert torch.equal(got, low), name
        else:
            check(name, got, low, exact, inputs)


def attended_in_halves(inputs, cut, rows, backend):
    """Compressed attention of `rows`, which see the first `cut` keys and more, merged from two calls."""
    config, (key, value) = inputs.config, inputs.compressed
    query = inputs.query[:, rows]
    batch, count = query.shape[:2]
    # each row as a sequence of its own, at a position that sees exactly the first half
    apart = query.flatten(0, 1)[:, None]
    halves = [x[:, :cut].repeat_interleave(count, dim=0) for x in (key, value)]
    sees_all = (cut - 1) * config.compress_stride + config.compress_block - 1
    first = trisparse.compressed_attention(apart, *halves, config, query_start=sees_all, backend=backend)
    first = [x.reshape(batch, count, *x.shape[2:]) for x in first]
    # the second half's first key is the first of a sequence that begins with it
    start = rows.start - cut * config.compress_stride
    second = trisparse.compressed_attention(
        query, key[:, cut:], value[:, cut:], config, query_start=start, backend=backend
    )
    lse = torch.logaddexp(first[1].double(), second[1].double())
    weights = [(half[1].double() - lse).exp()[..., None] for half in (first, second)]
    out = sum(weight * half[0].double() for weight, half in zip(weights, (first, second), strict=True))
    return out.to(query.dtype), lse.to(first[1].dtype)


@EACH
@given(case=cases(), seed=st.integers(0, 99), data=st.data())
@FEW
def test_two_halves_of_the_keys_merge_to_the_whole(backend, dtype, case, seed, data):
    """Guards against a log-sum-exp that is not that of its output, on which every merge relies."""
    config = case.config
    tokens = case.tokens + config.compress_block
    longer = type(case)(**{**vars(case), "tokens": tokens})
    inputs = inputs_of(longer, seed, backend, dtype)
    cut = data.draw(st.integers(1, config.num_compressed(tokens)))
    first_row = (cut - 1) * config.compress_stride + config.compress_block - 1
    rows = slice(max(first_row, cut * config.compress_stride), tokens)
    if rows.start >= tokens:
        rows = slice(tokens - 1, tokens)
        cut = max(1, (rows.start - config.compress_block + 1) // config.compress_stride)
    merged = attended_in_halves(inputs, cut, rows, backend)
    exact = [
        trisparse.compressed_attention(x.query, *x.compressed, config, backend="reference")
        for x in (inputs.to("cpu"), inputs.to("cpu").to(WIDE))
    ]
    for name, got, low, gold in zip(("out", "lse"), merged, *exact, strict=True):
        assert_within_budget(f"merged {name}", got, low[:, rows], gold[:, rows], seed=seed)
