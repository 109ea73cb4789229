"""Full attention: the softmax over everything before, however the tokens arrive."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from trisparse.baselines.full_attention import FullAttention, causal_attention
from trisparse.config import SparseConfig
from trisparse.nn.cache import SparseCache
from trisparse.nn.rope import Rope

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"gated": True},
    "rope": {"rope": Rope(dim=4)},
    "narrow_values": {"value_dim": 2, "rope": Rope(dim=2)},
    "wide_values": {"value_dim": 7, "gated": True},
}


def make_layer(name: str) -> FullAttention:
    torch.manual_seed(0)
    layer = FullAttention(12, 4, 2, 4, **LAYERS[name]).double()
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


def hidden_of(batch: int, tokens: int) -> Tensor:
    return torch.randn(batch, tokens, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the order of fp64 sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def naive(query: Tensor, key: Tensor, value: Tensor, start: int = 0) -> Tensor:
    """One row and head after the other."""
    out = query.new_zeros(*query.shape[:3], value.shape[3])
    for b, t, h in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        group = h // (query.shape[2] // key.shape[2])
        seen = start + t + 1
        scores = key[b, :seen, group] @ query[b, t, h] / query.shape[3] ** 0.5
        weights = scores.exp() / scores.exp().sum()
        out[b, t, h] = weights @ value[b, :seen, group]
    return out


@pytest.mark.parametrize("value_dim", [2, 4, 7])
@pytest.mark.parametrize(("rows", "start"), [(6, 0), (3, 3), (1, 5), (2, 1), (1, 0)])
def test_equals_the_softmax_written_out(value_dim: int, rows: int, start: int) -> None:
    """Guards the mask of a chunk in the middle, the heads of a group, and padded value channels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tokens = start + rows
    query, key, value = draw(2, rows, 4, 4), draw(2, tokens, 2, 4), draw(2, tokens, 2, value_dim)
    assert_same(causal_attention(query, key, value, start), naive(query, key, value, start))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_its_parts_put_together_by_hand(name: str) -> None:
    """Guards projections, rotation and the gate of each head."""
    layer, hidden = make_layer(name), hidden_of(2, 7)
    query = (hidden @ layer.q_proj.weight.T).view(2, 7, 4, 4)
    key = (hidden @ layer.k_proj.weight.T).view(2, 7, 2, 4)
    value = (hidden @ layer.v_proj.weight.T).view(2, 7, 2, -1)
    if layer.rope is not None:
        query, key = (layer.rope.rotate(x, torch.arange(7)) for x in (query, key))
    out = naive(query, key, value)
    if layer.gates is not None:
        gates = torch.sigmoid(hidden @ layer.gates.proj.weight.T + layer.gates.proj.bias)
        out = out * gates[..., None]
    assert (layer.gates is not None) == ("gated" in LAYERS[name])
    assert_same(layer(hidden), out.flatten(2) @ layer.o_proj.weight.T)


@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 4, 5], [4], [3, 3, 9], [10, 11]])
@pytest.mark.parametrize("name", LAYERS)
def test_any_split_into_chunks_gives_the_rows_of_the_whole(name: str, cuts: list[int]) -> None:
    """Guards decode: positions and the mask of chunks after a cache."""
    layer, hidden = make_layer(name), hidden_of(2, 12)
    cache = layer.new_cache()
    with torch.no_grad():
        parts = [layer(hidden[:, a:b], cache=cache) for a, b in pairwise([0, *cuts, 12])]
    assert_same(torch.cat(parts, dim=1), layer(hidden).detach())


@pytest.mark.parametrize("name", LAYERS)
def test_packed_documents_are_as_if_alone(name: str) -> None:
    """Guards against attention or positions that reach over the end of a document."""
    layer, hidden, bounds = make_layer(name), hidden_of(1, 12), [0, 0, 5, 5, 6, 12]
    out = layer(hidden, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    for start, stop in pairwise(bounds):
        if stop > start:
            assert_same(out[:, start:stop], layer(hidden[:, start:stop]))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", ["plain", "rope"])
def test_left_padded_rows_are_as_if_alone(name: str, cached: bool) -> None:
    """Guards against padding that is attended or shifts positions, also when decoding on."""
    layer, hidden, padding = make_layer(name), hidden_of(3, 12), [0, 4, 9]
    cache = layer.new_cache() if cached else None
    with torch.no_grad():
        if cached:
            parts = [layer(hidden[:, :9], cache=cache, padding=padding), layer(hidden[:, 9:], cache=cache)]
            out = torch.cat(parts, dim=1)
        else:
            out = layer(hidden, padding=padding)
    for row, skip in enumerate(padding):
        assert_same(out[row : row + 1, skip:], layer(hidden[row : row + 1, skip:]).detach())
        assert torch.equal(out[row, :skip], torch.zeros_like(out[row, :skip]))


def test_crop_and_reorder_continue_as_the_sequences_they_left() -> None:
    """Guards the dense cache: it is the baseline of every decode comparison."""
    layer, hidden = make_layer("rope"), hidden_of(2, 12)
    cache = layer.new_cache()
    with torch.no_grad():
        layer(hidden[:, :10], cache=cache)
        cache.crop(6)
        cache.reorder([1, 1, 0])
        out = layer(hidden[[1, 0, 0], 6:], cache=cache)
    mixed = torch.cat([hidden[[1, 1, 0], :6], hidden[[1, 0, 0], 6:]], dim=1)
    assert_same(out, layer(mixed)[:, 6:].detach())


@pytest.mark.parametrize("name", ["gated", "narrow_values"])
def test_gradient_reaches_every_parameter(name: str) -> None:
    """Guards against a projection or gate that is cut off from training."""
    layer = make_layer(name)
    layer(hidden_of(2, 8)).square().sum().backward()
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert (parameter.grad.abs().sum(dim=-1) > 0).all(), parameter_name


def test_arguments_that_do_not_fit_are_refused() -> None:
    """Guards against dropped tokens, a foreign cache, and documents beside a cache."""
    layer, hidden = make_layer("plain"), hidden_of(1, 8)
    bounds = torch.tensor([0, 8], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^num_kv_groups: expected a divisor of num_heads=4, got 3"):
        FullAttention(12, 4, 3, 4)
    with pytest.raises(ValueError, match=r"^rope: expected at most head_dim=4 channels, got 6"):
        FullAttention(12, 4, 2, 4, rope=Rope(dim=6))
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected neither cache nor padding"):
        layer(hidden, cu_seqlens=bounds, cache=layer.new_cache())
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected the last bound to be the 8"):
        layer(hidden, cu_seqlens=torch.tensor([0, 5], dtype=torch.int32))
    with pytest.raises(TypeError, match=r"^cache: expected a DenseCache, got SparseCache"):
        layer(hidden, cache=SparseCache(SparseConfig()))
    full = layer.new_cache(capacity=7)
    with pytest.raises(ValueError, match=r"^cache: expected at most capacity=7 tokens, got 8"):
        layer(hidden, cache=full)
    assert full.lengths == []


@pytest.mark.parametrize("bounds", [[1, 8], [0, 6, 4, 8], [0, 9], [0, 5]])
def test_bounds_are_looked_at_on_every_device(bounds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a GPU's bounds, which the check of the call does not read."""
    monkeypatch.setattr("trisparse.baselines.full_attention.check_call", lambda *_: None)
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected"):
        make_layer("plain")(hidden_of(1, 8), cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
