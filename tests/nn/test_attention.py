"""The layer: whatever way the tokens arrive, each row is the one of the whole sequence."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trisparse import api
from trisparse.api import gated_sum
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.cache import DenseCache, SparseCache
from trisparse.nn.packed import packed_places
from trisparse.nn.probe import recording
from trisparse.nn.rope import Rope
from trisparse.reference.compress import compress_blocks

from .layers import BLOCKS, HIDDEN, LAYERS, hidden_of, make_layer

property_test = settings(derandomize=True, deadline=None, max_examples=20, database=None)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the order of fp64 sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def in_chunks(
    layer: NativeSparseAttention, hidden: Tensor, cuts: list[int], cache: SparseCache | None = None
) -> Tensor:
    """The layer's output for `hidden` in pieces that end at `cuts`, through a cache."""
    cache = layer.new_cache() if cache is None else cache
    bounds = [0, *cuts, hidden.shape[1]]
    with torch.no_grad():
        return torch.cat([layer(hidden[:, a:b], cache=cache) for a, b in pairwise(bounds)], dim=1)


@pytest.mark.parametrize("name", LAYERS)
@property_test
@given(tokens=st.integers(1, 40), data=st.data())
def test_any_split_into_chunks_gives_the_rows_of_the_whole(
    name: str, tokens: int, data: st.DataObject
) -> None:
    """Guards decode: block and window borders, positions, and the tail that waits for its block."""
    layer = make_layer(name)
    cuts = sorted(data.draw(st.lists(st.integers(0, tokens), max_size=4), label="cuts"))
    hidden = hidden_of(2, tokens, seed=tokens)
    assert_same(in_chunks(layer, hidden, cuts), layer(hidden).detach())


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("name", LAYERS)
def test_prefill_then_equal_chunks_gives_the_rows_of_the_whole(name: str, chunk: int) -> None:
    """Guards token-by-token decode over many blocks, at every offset inside a block."""
    layer, hidden = make_layer(name), hidden_of(1, 33)
    assert_same(in_chunks(layer, hidden, list(range(6, 33, chunk))), layer(hidden).detach())


@pytest.mark.parametrize("rope", ["block", "none"])
def test_equals_the_contract_put_together_by_hand(rope: Any) -> None:
    """Guards which head, group and K/V set meets which branch, and where each is rotated."""
    layer, hidden = make_layer(compressed_rope=rope), hidden_of(2, 21)
    positions, rotation = torch.arange(21), Rope(dim=4)
    plain = (hidden @ layer.q_proj.weight.T).view(2, 21, 4, 4)
    query = rotation.rotate(plain, positions)
    keys = (hidden @ layer.k_proj.weight.T).view(2, 21, 3, 2, 4)
    values = (hidden @ layer.v_proj.weight.T).view(2, 21, 3, 2, 4)
    # a block at a time: the compressor has its own tests
    raw_blocks = [compress_blocks(raw, BLOCKS) for raw in (keys[:, :, 0], values[:, :, 0])]
    phis = (layer.compress_key, layer.compress_value)
    blocks = [
        torch.cat([phi(raw[:, i]) for i in range(raw.shape[1])], dim=1)
        for phi, raw in zip(phis, raw_blocks, strict=True)
    ]
    starts = torch.arange(blocks[0].shape[1]) * BLOCKS.compress_stride
    key_cmp = rotation.rotate(blocks[0], starts) if rope == "block" else blocks[0]
    query_cmp = query if rope == "block" else plain
    ids = api.select_blocks(query_cmp, key_cmp, BLOCKS, backend="reference")
    selected = rotation.rotate(keys[:, :, 1], positions), values[:, :, 1]
    window = rotation.rotate(keys[:, :, 2], positions), values[:, :, 2]
    branches = (
        api.compressed_attention(query_cmp, key_cmp, blocks[1], BLOCKS, backend="reference")[0],
        api.selected_attention(query, *selected, ids, BLOCKS, backend="reference"),
        api.window_attention(query, *window, BLOCKS, backend="reference"),
    )
    out = gated_sum(layer.gates(hidden), branches).flatten(2) @ layer.o_proj.weight.T
    assert_same(layer(hidden), out)


@pytest.mark.parametrize("name", ["paper", "shared_unrotated", "wide_values"])
@pytest.mark.parametrize("cached", [False, True])
def test_left_padded_rows_are_as_if_alone(name: str, cached: bool) -> None:
    """Guards against padding that shifts positions and blocks, or is attended; even if it is NaN."""
    layer, hidden, padding = make_layer(name), hidden_of(4, 19), [0, 3, 18, 19]
    for row, skip in enumerate(padding):
        hidden[row, :skip] = torch.nan
    out = layer(hidden, padding=padding, cache=layer.new_cache() if cached else None)
    for row, skip in enumerate(padding):
        assert torch.equal(out[row, :skip], torch.zeros(skip, HIDDEN, dtype=torch.float64))
        if skip < 19:
            assert_same(out[row : row + 1, skip:], layer(hidden[row : row + 1, skip:]))


@pytest.mark.parametrize("name", ["paper", "shared", "compressed_unrotated", "long_blocks"])
@pytest.mark.parametrize("bounds", [[0, 7, 7, 20, 21], [0, 0, 30], [0, 3, 6, 8]])
def test_packed_documents_are_as_if_alone(name: str, bounds: list[int]) -> None:
    """Guards against positions, blocks or attention that reach over the end of a document."""
    layer, hidden = make_layer(name), hidden_of(1, bounds[-1])
    out = layer(hidden, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    for start, stop in pairwise(bounds):
        if stop > start:
            assert_same(out[:, start:stop], layer(hidden[:, start:stop]))


def test_places_may_be_shared_by_layers() -> None:
    """Guards places that are made once for all layers of a model, and wrong ones."""
    layer, hidden = make_layer(), hidden_of(1, 20)
    bounds = torch.tensor([0, 7, 20], dtype=torch.int32)
    places = packed_places(bounds, 20, layer.config)
    assert torch.equal(layer(hidden, packed=places), layer(hidden, cu_seqlens=bounds))
    with pytest.raises(ValueError, match=r"^packed: expected no cu_seqlens beside it"):
        layer(hidden, cu_seqlens=bounds, packed=places)
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected the last bound to be the 19"):
        layer(hidden[:, :19], packed=places)
    with pytest.raises(ValueError, match=r"^packed: expected places for SparseConfig"):
        make_layer("long_blocks")(hidden, packed=places)
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected neither cache nor padding"):
        layer(hidden, packed=places, padding=[0])


@pytest.mark.parametrize("name", ["paper", "shared", "compressed_unrotated"])
def test_rows_of_different_length_live_in_one_cache(name: str) -> None:
    """Guards decode of a left-padded batch: each row counts its own tokens."""
    layer, hidden = make_layer(name), hidden_of(3, 30)
    skips, cache = [0, 9, 14], layer.new_cache()
    with torch.no_grad():
        parts = [layer(hidden[:, :14], cache=cache, padding=skips)]
        assert cache.lengths == [14, 5, 0]
        parts += [layer(hidden[:, t : t + 1], cache=cache) for t in range(14, 20)]
        parts += [layer(hidden[:, 20:], cache=cache)]
    out = torch.cat(parts, dim=1)
    for row, skip in enumerate(skips):
        assert_same(out[row : row + 1, skip:], layer(hidden[row : row + 1, skip:]).detach())


@pytest.mark.parametrize("name", ["paper", "shared", "long_blocks"])
@property_test
@given(first=st.integers(1, 30), rollback=st.integers(0, 12), step=st.sampled_from([1, 4, 30]))
def test_crop_then_continue_equals_the_straight_way(name: str, first: int, rollback: int, step: int) -> None:
    """Guards speculative decoding: nothing of the rejected tokens may stay in any buffer."""
    layer, hidden = make_layer(name), hidden_of(1, 40)
    cache = layer.new_cache(max_rollback=12)
    kept = max(0, first - rollback)
    in_chunks(layer, torch.cat([hidden[:, :kept], hidden_of(1, first - kept, seed=9)], dim=1), [], cache)
    cache.crop(kept)
    rest = in_chunks(layer, hidden[:, kept:], list(range(step, 40 - kept, step)), cache)
    assert_same(rest, layer(hidden)[:, kept:].detach())


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    """Guards against a projection, compressor or gate that is cut off from training."""
    layer = make_layer(name)
    layer(hidden_of(2, 24)).square().sum().backward()
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    for projection in (layer.k_proj, layer.v_proj):
        # every K/V set, not just one of the three
        assert projection.weight.grad is not None
        assert (projection.weight.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["paper", "shared_unrotated"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """Guards the gradient of the whole layer, for the input and every weight."""
    layer = make_layer(name)
    names = [parameter_name for parameter_name, _ in layer.named_parameters()]

    def run(hidden: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (hidden,))

    leaves = [x.detach().requires_grad_() for x in (hidden_of(1, 9), *layer.parameters())]
    # the selection jumps, but not for a step of 1e-6 from these inputs
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("cached", [False, True])
def test_recording_sees_gates_and_selection_and_changes_nothing(cached: bool) -> None:
    """Guards the look inside: it shows what was used, and looking does not change the result."""
    layer, hidden = make_layer(layer=7), hidden_of(2, 19)
    expected = layer(hidden)
    with recording() as record:
        actual = layer(hidden, cache=layer.new_cache() if cached else None)
    assert_same(actual, expected)
    assert [seen.layer for seen in record] == [7]
    assert_same(record[0].gates, layer.gates(hidden))
    ids = record[0].ids
    assert ids.shape == (2, 19, 2, 3)
    assert ids.dtype == torch.int32
    assert record[0].select_block == 4
    # forced: the first block and the own one
    own = torch.arange(19) // 4
    assert (ids[..., 0] == 0).all()
    assert (ids == own[None, :, None, None]).any(dim=-1).all()
    layer(hidden)
    assert len(record) == 1


@pytest.mark.parametrize("beside", ["cache", "padding"])
def test_packed_documents_beside_a_cache_or_padding_are_refused(beside: str) -> None:
    """Guards against one of the two being ignored."""
    layer = make_layer()
    other = layer.new_cache() if beside == "cache" else [0]
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected neither cache nor padding"):
        layer(hidden_of(1, 8), cu_seqlens=torch.tensor([0, 8], dtype=torch.int32), **{beside: other})


@pytest.mark.parametrize("bounds", [[0, 5], [1, 8], [0, 6, 4, 8], [0, 9]])
def test_bounds_that_do_not_fit_the_tokens_are_refused(bounds: list[int]) -> None:
    """Guards against tokens dropped or counted twice."""
    with pytest.raises(ValueError, match=r"^cu_seqlens: expected"):
        make_layer()(hidden_of(1, 8), cu_seqlens=torch.tensor(bounds, dtype=torch.int32))


@pytest.mark.parametrize("padding", [[0], [0, 9], [-1, 0], [0, 0, 0]])
def test_impossible_padding_is_refused(padding: list[int]) -> None:
    """Guards against a negative or overlong slice that answers with other tokens."""
    with pytest.raises(ValueError, match=r"^padding: expected 2 numbers in 0 \.\. 8"):
        make_layer()(hidden_of(2, 8), padding=padding)


def test_cache_of_full_attention_is_refused() -> None:
    """Guards against a cache without the compressed keys."""
    with pytest.raises(TypeError, match=r"^cache: expected a SparseCache, got DenseCache"):
        make_layer()(hidden_of(1, 8), cache=DenseCache())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_kv_groups": 3}, r"^num_kv_groups: expected a divisor of num_heads=4, got 3"),
        ({"num_kv_groups": 0}, r"^num_kv_groups: expected at least 1, got 0"),
        ({"head_dim": 0}, r"^head_dim: expected at least 1, got 0"),
        ({"value_dim": 0}, r"^value_dim: expected at least 1, got 0"),
        ({"hidden_size": 0}, r"^hidden_size: expected at least 1, got 0"),
        ({"compressed_rope": "first"}, r"^compressed_rope: expected 'block' or 'none', got 'first'"),
        ({"rope": Rope(dim=6)}, r"^rope: expected at most head_dim=4 channels, got 6"),
        ({"compressor": "max"}, r"^compressor: expected .*got 'max'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    """Guards against layers that fail at their first use, or not at all."""
    sizes = {"hidden_size": HIDDEN, "num_heads": 4, "num_kv_groups": 2, "head_dim": 4}
    with pytest.raises(ValueError, match=message):
        NativeSparseAttention(**(sizes | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 4.0}, r"^num_heads: expected an int, got float 4.0"),
        ({"num_kv_groups": True}, r"^num_kv_groups: expected an int, got bool True"),
        ({"rope": 8}, r"^rope: expected a Rope or None, got int"),
        ({"config": {"window": 3}}, r"^config: expected a SparseConfig, got dict"),
    ],
)
def test_settings_of_another_type_are_refused(settings: dict[str, Any], message: str) -> None:
    """Guards against layers that are something else than was written."""
    sizes = {"hidden_size": HIDDEN, "num_heads": 4, "num_kv_groups": 2, "head_dim": 4}
    with pytest.raises(TypeError, match=message):
        NativeSparseAttention(**(sizes | settings))


@pytest.mark.parametrize(
    ("hidden", "padding", "message"),
    [
        ([1.0, 2.0], None, r"^hidden: expected a torch.Tensor, got list"),
        (torch.zeros(5, HIDDEN), None, rf"^hidden: expected \[B, T, {HIDDEN}\], got \[5, {HIDDEN}\]"),
        (torch.zeros(1, 5, HIDDEN + 1), None, rf"^hidden: expected \[B, T, {HIDDEN}\]"),
        (torch.zeros(2, 5, HIDDEN).double(), 3, r"^padding: expected a list of ints, got int"),
        (torch.zeros(2, 5, HIDDEN).double(), [0.5, 1.0], r"^padding: expected ints, got float 0.5"),
        (torch.zeros(2, 5, HIDDEN).double(), [True, False], r"^padding: expected ints, got bool True"),
    ],
)
def test_calls_that_do_not_fit_are_refused(hidden: Any, padding: Any, message: str) -> None:
    """Guards against errors from inside of a product, which name nothing that the caller gave."""
    with pytest.raises((TypeError, ValueError), match=message):
        make_layer()(hidden, padding=padding)
