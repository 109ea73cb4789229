"""Large logits, NaN, shared tensors and long sequences through the native kernels."""

import pytest
import torch
from agreement import cancelling, further

import trisparse
from trisparse import SparseConfig
from trisparse.bench.chosen import selection_ratio
from trisparse.testing.budget import assert_within_budget

from .kernels import CONFIG, assert_same_bits, draw, grad_of, instruction_sets, needs_kernels, run, with_jump

pytestmark = needs_kernels
SETS = pytest.mark.parametrize("instructions", instruction_sets())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
NAN = float("nan")
SMALL = {"batch": 1, "tokens": 333, "heads": 6, "head_dim": 32, "value_dim": 24}


def parts(inputs, ids, backend):
    """Outputs of the three branches, all with `ids`."""
    where = {"backend": backend}
    query, config = inputs.query, inputs.config
    return [
        trisparse.compressed_attention(query, *inputs.compressed, config, **where)[0],
        trisparse.selected_attention(query, *inputs.selected, ids, config, **where),
        trisparse.window_attention(query, *inputs.window, config, **where),
    ]


@pytest.mark.parametrize("size", [1.0, 1e1, 1e2, 1e3, 1e4])
@DTYPES
@SETS
def test_logits_of_any_size(select, instructions, dtype, size):
    """Guards against exponentials that overflow, and references that are raised too late or too far."""
    select(instructions)
    inputs = draw(dtype, **SMALL)
    inputs = inputs.with_tensors(((inputs.query * size).to(dtype), *inputs.tensors[1:])).leaves()
    wide = inputs.to(torch.float64).leaves()
    low, other = inputs.leaves(), inputs.leaves()
    ids = trisparse.select_blocks(wide.query, wide.compressed[0], CONFIG, backend="reference")
    results = [
        parts(given, ids, name) for given, name in ((inputs, "cpu"), (low, "reference"), (wide, "reference"))
    ]
    for name, got, one_low, gold in zip(("compressed", "selected", "window"), *results, strict=True):
        assert got.isfinite().all()
        assert_within_budget(f"{name}, logits times {size}", got, one_low, gold)
    # the torch backend starts from rounded outputs and log-sum-exps, as the kernels do
    results.append(parts(other, ids, "torch"))
    for index, branch in enumerate(("compressed", "selected", "window")):
        grads = [
            torch.autograd.grad(outs[index], (given.query, *getattr(given, branch)), grad_of(given))
            for outs, given in zip(results, (inputs, low, wide, other), strict=True)
        ]
        for number, (got, one_low, gold, other_low) in enumerate(zip(*grads, strict=True)):
            terms = cancelling(inputs) if number < 2 else 0.0
            assert got.isfinite().all()
            assert_within_budget(
                f"{branch} gradient {number}, logits times {size}",
                got,
                further(one_low, other_low, gold),
                gold,
                gradient=True,
                cancelling=terms,
            )


# more than one tile of keys in every branch
JUMP = SparseConfig(
    compress_block=4,
    compress_stride=2,
    select_block=16,
    num_selected=8,
    num_initial=1,
    num_local=1,
    window=128,
)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 3e9, 1e12, 1e20])
@DTYPES
@SETS
def test_logits_that_jump_from_tile_to_tile(select, instructions, dtype, size):
    """Guards against a reference that is rounded when it is raised far: rows became 0, gradients inf."""
    select(instructions)
    inputs = with_jump(draw(dtype, batch=1, tokens=160, heads=6, config=JUMP), size)
    wide = inputs.to(torch.float64)
    ids = trisparse.select_blocks(wide.query, wide.compressed[0], JUMP, backend="reference")
    results = [
        parts(given, ids, name)
        for given, name in ((inputs, "cpu"), (inputs, "reference"), (wide, "reference"))
    ]
    for name, got, low, gold in zip(("compressed", "selected", "window"), *results, strict=True):
        assert got.isfinite().all()
        assert_within_budget(f"{name}, jump of {size}", got, low, gold)
    assert all(x.isfinite().all() for x in run(inputs))
    query, *pairs, gates = inputs.tensors
    ones = [torch.ones_like(x) if index % 2 else x for index, x in enumerate(pairs)]
    sums = parts(inputs.with_tensors((query, *ones, gates)), ids, "cpu")
    for name, total in zip(("compressed", "selected", "window"), sums, strict=True):
        # the first rows see no compressed key
        seen = total[:, 3:] if name == "compressed" else total
        torch.testing.assert_close(seen, torch.ones_like(seen), rtol=0, atol=4 * torch.finfo(dtype).eps)


@SETS
def test_large_logits_without_a_rounded_digit(select, instructions):
    """Guards against a raise by powers of two where floats are whole numbers: old weights were 27 % off."""
    select(instructions)
    base = torch.where(torch.arange(128) < 64, 1e7, 1e7 + 6)
    query, key = torch.ones(1, 128, 1, 1), base[None, :, None, None]
    value = torch.randn(1, 128, 1, 4, generator=torch.Generator().manual_seed(0))
    config = SparseConfig(window=128)
    low, gold, out = (
        trisparse.window_attention(query.to(to), key.to(to), value.to(to), config, scale=1.0, backend=backend)
        for to, backend in (
            (torch.float32, "reference"),
            (torch.float64, "reference"),
            (torch.float32, "cpu"),
        )
    )
    assert_within_budget("whole logits", out, low, gold)


@DTYPES
@SETS
def test_logits_that_rise_with_every_key(select, instructions, dtype):
    """Guards against sums and pooled scores that are not rescaled when the reference is raised."""
    select(instructions)
    inputs = draw(dtype, **SMALL)
    rising = [
        (x + torch.linspace(0, 9, x.shape[1])[None, :, None, None]).to(dtype)
        for x in (inputs.compressed[0], inputs.selected[0], inputs.window[0])
    ]
    query = (inputs.query.abs() + 1).to(dtype)
    pairs = zip(rising, (inputs.compressed[1], inputs.selected[1], inputs.window[1]), strict=True)
    inputs = inputs.with_tensors((query, *(x for pair in pairs for x in pair), inputs.gates))
    wide = inputs.to(torch.float64)
    ids = trisparse.select_blocks(wide.query, wide.compressed[0], CONFIG, backend="reference")
    results = [
        parts(given, ids, name)
        for given, name in ((inputs, "cpu"), (inputs, "reference"), (wide, "reference"))
    ]
    for name, got, low, gold in zip(("compressed", "selected", "window"), *results, strict=True):
        assert_within_budget(f"{name}, rising", got, low, gold)
    chosen = trisparse.select_blocks(inputs.query, inputs.compressed[0], CONFIG, backend="cpu")
    assert selection_ratio(chosen, inputs.query, inputs.compressed[0], CONFIG, 0) <= 1


@DTYPES
@SETS
def test_nan_in_one_query_stays_in_its_row(select, instructions, dtype):
    """Guards against NaN that vanishes in a maximum, and against NaN that spreads over a tile of rows."""
    select(instructions)
    inputs = draw(dtype, **SMALL)
    clean = run(inputs)
    query = inputs.query.clone()
    query[0, 200, 4, 3] = NAN
    spoiled = trisparse.sparse_attention(query, *inputs.all_arguments[1:], backend="cpu")
    bad = spoiled.isnan().any(dim=-1)
    expected = torch.zeros_like(bad)
    expected[0, 200, 4] = True
    # the whole group reads the blocks that its ranks choose
    others = ~expected
    others[0, 200, 3:] = False
    assert torch.equal(bad, expected)
    assert torch.equal(spoiled[others], clean[0][others])


@DTYPES
@SETS
def test_nan_in_one_key_reaches_exactly_the_rows_that_see_it(select, instructions, dtype):
    """Guards against a mask that hides NaN, or shows it to rows outside of window, block or future."""
    select(instructions)
    inputs = draw(dtype, **SMALL)
    ids = torch.zeros(1, 333, 2, 2, dtype=torch.int32)
    ids[:, 200:, 1, 1] = 2
    for branch in ("compressed", "selected", "window"):
        key, value = getattr(inputs, branch)
        key = key.clone()
        place = 8 if branch == "compressed" else 130
        key[0, place, 1, 5] = NAN
        if branch == "compressed":
            out, lse = trisparse.compressed_attention(inputs.query, key, value, CONFIG, backend="cpu")
            first, last = place * CONFIG.compress_stride + CONFIG.compress_block - 1, 333
            assert torch.equal(lse.isnan(), out.isnan().all(dim=-1))
        elif branch == "selected":
            out = trisparse.selected_attention(inputs.query, key, value, ids, CONFIG, backend="cpu")
            first, last = 200, 333
        else:
            config = SparseConfig(window=77)
            out = trisparse.window_attention(inputs.query, key, value, config, backend="cpu")
            first, last = place, place + 77
        expected = torch.zeros(1, 333, 6, dtype=torch.bool)
        expected[0, first:last, 3:] = True
        assert torch.equal(out.isnan().any(dim=-1), expected), branch


@DTYPES
@SETS
def test_one_tensor_for_two_branches_equals_two(select, instructions, dtype):
    """Guards against the packing that selected and window branch share where they have the same keys."""
    select(instructions)
    for where in ({}, {"tokens": 700, "query_start": 641}, {"cu_seqlens": (0, 100, 101, 333)}):
        inputs = draw(dtype, **SMALL | where)
        query, key_cmp, value_cmp, key, value, *_, gates = inputs.tensors
        results = []
        for pair in ((key, value), (key.clone(), value.clone())):
            leaves = [x.clone().requires_grad_() for x in (query, key_cmp, value_cmp, gates)]
            out = trisparse.sparse_attention(
                leaves[0],
                tuple(leaves[1:3]),
                (key, value),
                pair,
                leaves[3],
                CONFIG,
                backend="cpu",
                **inputs.where,
            )
            results.append([out.detach(), *torch.autograd.grad(out.float().sum(), leaves)])
        assert_same_bits(*results)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@SETS
def test_tokens_that_no_row_of_a_chunk_sees_do_not_matter(select, instructions, shared):
    """Guards against a tile that begins before the window: 0 * NaN is NaN, forward and backward."""
    select(instructions)
    config = SparseConfig(num_selected=2, num_initial=1, num_local=1, window=70)
    inputs = draw(**SMALL | {"tokens": 700, "query_start": 655}, config=config)
    if shared:
        inputs = inputs.with_tensors((*inputs.tensors[:5], *inputs.selected, inputs.gates))
    results = []
    for poison in (1.0, NAN):
        given = inputs.leaves()
        ids = trisparse.select_blocks(
            given.query, given.compressed[0], config, query_start=655, backend="cpu"
        )
        seen = torch.zeros(700, dtype=torch.bool)
        seen[586:] = True
        seen |= torch.isin(torch.arange(700) // 64, ids)
        with torch.no_grad():
            for x in given.tensors[3:7]:
                x[:, ~seen] = poison
        # the block in whose middle the first window begins is nobody's
        assert not seen[576:586].any()
        pair = given.selected if shared else given.window
        leaves = list(dict.fromkeys((given.query, *given.compressed, *given.selected, *pair, given.gates)))
        out = trisparse.sparse_attention(
            given.query,
            given.compressed,
            given.selected,
            pair,
            given.gates,
            config,
            query_start=655,
            backend="cpu",
        )
        results.append([out.detach(), *torch.autograd.grad(out.sum(), leaves)])
    assert all(x.isfinite().all() for x in results[1])
    assert_same_bits(results[1], results[0])


def test_selection_of_a_long_sequence():
    """Guards against pooling that is right in the first tiles only: every block chosen is among the best."""
    config = SparseConfig()
    inputs = draw(torch.bfloat16, batch=1, tokens=4096, heads=4, groups=1, head_dim=64, config=config)
    ids = trisparse.select_blocks(inputs.query, inputs.compressed[0], config, backend="cpu")
    for start in (0, 1024, 4096 - 256):
        rows = slice(start, start + 256)
        key = inputs.compressed[0][:, : config.num_compressed(start + 256)]
        assert selection_ratio(ids[:, rows], inputs.query[:, rows], key, config, start) <= 1
