"""The batch-invariant mode: a token decoded from a cache has the bits of the whole forward."""

from itertools import pairwise

import pytest
import torch

from trisparse import SparseConfig
from trisparse.invariance import batch_invariant, is_batch_invariant
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.rope import Rope
from trisparse.testing.inputs import usable_backends

CONFIG = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=4,
    num_initial=1,
    num_local=2,
    window=20,
)
needs_kernels = pytest.mark.skipif("cpu" not in usable_backends(), reason="the CPU kernels cannot run here")


def make_layer(dtype, **settings):
    torch.manual_seed(0)
    layer = NativeSparseAttention(96, 8, 2, 16, config=CONFIG, rope=Rope(dim=16), backend="cpu", **settings)
    for parameter in layer.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return layer.to(dtype)


def hidden_of(batch, tokens, dtype):
    return torch.randn(batch, tokens, 96, generator=torch.Generator().manual_seed(1)).to(dtype)


@needs_kernels
@pytest.mark.parametrize(
    "cuts", [[1, 2, 3], [100, *range(101, 160)], [7, 90, 91, 150], list(range(5, 160, 5))]
)
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"shared_kv": True},
        {"compressor": "linear"},
        {"compressed_rope": "none"},
        {"compressed_rope": "none", "shared_kv": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_chunks_give_the_bits_of_the_whole(dtype, kind, cuts):
    """Guards against a kernel, or a product with a weight, that adds in another order for fewer rows."""
    layer, hidden = make_layer(dtype, **kind), hidden_of(2, 160, dtype)
    with torch.no_grad(), batch_invariant():
        whole = layer(hidden)
        cache = layer.new_cache()
        parts = [layer(hidden[:, a:b], cache=cache) for a, b in pairwise([0, *cuts, 160])]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@needs_kernels
def test_outside_of_the_mode_bits_differ():
    """Guards the test above: what it compares must be able to differ."""
    layer, hidden = make_layer(torch.float32), hidden_of(2, 160, torch.float32)
    with torch.no_grad():
        whole = layer(hidden)
        cache = layer.new_cache()
        parts = [layer(hidden[:, a:b], cache=cache) for a, b in pairwise([0, 100, *range(101, 161)])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-3, atol=1e-4)
    assert not torch.equal(torch.cat(parts, dim=1), whole)


@needs_kernels
@pytest.mark.parametrize("batch", [2, 3, 7, 32])
def test_row_has_its_bits_in_any_batch_and_place(batch):
    """Guards against work shared out by the batch: a row alone, beside others, moved, with new neighbours."""
    layer, hidden = make_layer(torch.bfloat16), hidden_of(batch, 70, torch.bfloat16)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(2))

    def decoded(rows):
        cache = layer.new_cache()
        return torch.cat([layer(part, cache=cache) for part in rows.split([60, 1, 1, 8], dim=1)], dim=1)

    with torch.no_grad(), batch_invariant():
        together = decoded(hidden)
        others = torch.randn_like(hidden)
        others[-1] = hidden[-1]
        assert torch.equal(decoded(hidden[:1]), together[:1])
        assert torch.equal(decoded(hidden[order]), together[order])
        assert torch.equal(decoded(others)[-1], together[-1])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neighbours_of_any_length_change_no_bit(dtype):
    """Guards against a row that depends on how many rows are beside it, and on their lengths."""
    layer, hidden = make_layer(dtype), hidden_of(5, 90, dtype)
    skips = [0, 40, 3, 77, 61]

    def decoded(rows):
        cache = layer.new_cache()
        parts = [layer(hidden[rows, :80], cache=cache, padding=[skips[row] for row in rows])]
        parts += [layer(hidden[rows, t : t + 1], cache=cache) for t in range(80, 90)]
        return torch.cat(parts, dim=1)

    with torch.no_grad(), batch_invariant():
        together = decoded([0, 1, 2, 3, 4])
        for rows in ([3], [4, 1], [2, 0, 3]):
            assert torch.equal(decoded(rows), together[rows])


def test_products_are_those_of_the_rows_and_keep_their_gradients():
    """Guards the products by rows: no row lost at the end, none from the padding, bias and gradient right."""
    weight = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64)
    for shape in ((0, 7), (1, 7), (3, 64, 7), (130, 7)):
        rows = torch.randn(shape, dtype=torch.float64)
        wanted = torch.nn.functional.linear(rows, weight, bias)
        with batch_invariant():
            actual = torch.nn.functional.linear(rows, weight, bias)
            product = rows @ weight.T
        torch.testing.assert_close(actual, wanted)
        torch.testing.assert_close(product, rows @ weight.T)
        for out in (actual, wanted):
            out.square().sum().backward()
        assert weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "rms_norm"])
def test_a_number_is_the_same_wherever_it_lies(name, dtype):
    """Guards against vector code and its tail that round differently: positions 0 to 40 of every length."""
    functions = {"sigmoid": torch.sigmoid, "rms_norm": lambda x: torch.nn.functional.rms_norm(x, (13,))}
    function = functions.get(name) or getattr(torch.nn.functional, name)
    rows = (3 * torch.randn(400, 13, generator=torch.Generator().manual_seed(2))).to(dtype)
    with batch_invariant():
        whole = function(rows)
        torch.testing.assert_close(whole, function(rows.double()).to(dtype))
        for start in range(1, 400):
            assert torch.equal(function(rows[start:].clone()), whole[start:])
            assert torch.equal(function(rows[:start].clone()), whole[:start])


def test_mode_ends_with_its_block():
    """Guards against a mode that stays on after an error."""
    with pytest.raises(KeyError), batch_invariant():
        assert is_batch_invariant()
        raise KeyError
    assert not is_batch_invariant()
