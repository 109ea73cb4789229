"""The decode state: errors that leave it as it was, beams, and its memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trisparse.baselines.full_attention import FullAttention
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.cache import SparseCache

from .layers import BLOCKS, hidden_of, make_layer


def snapshot(cache: SparseCache) -> list[dict[str, Tensor]]:
    """Copies of everything the cache still holds."""
    held = []
    for row in cache.rows:
        held.append({name: buffer.clone() for name, buffer in row.buffers.items()})
    return [{name: buffer.since(buffer._first) for name, buffer in row.items()} for row in held]


def filled(layer: NativeSparseAttention, rows: int, tokens: int, **settings: Any) -> SparseCache:
    cache = layer.new_cache(**settings)
    with torch.no_grad():
        layer(hidden_of(rows, tokens), cache=cache)
    return cache


def step(**others: Any) -> Callable[[SparseCache], Any]:
    """One more token through a layer that differs in `others` from the one that filled the cache."""
    return lambda cache: make_layer(**others)(hidden_of(2, 1), cache=cache)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (step(config=replace(BLOCKS, window=6)), r"^cache: expected one for SparseConfig"),
        (step(shared_kv=True), r"^cache: expected one for .*shared=True.*shared=False"),
        (step(value_dim=3), r"^cache: expected (value|tail_value) tokens \[2, 4\].*got \[2, 3\]"),
        (
            lambda cache: make_layer().float()(hidden_of(2, 1).float(), cache=cache),
            r"^cache: .*float64.*float32",
        ),
        (
            lambda cache: make_layer()(hidden_of(3, 1), cache=cache),
            r"^cache: expected a batch of 2 rows, got 3",
        ),
        (
            lambda cache: make_layer()(hidden_of(2, 6), cache=cache),
            r"^cache: expected at most capacity=20.*got 21",
        ),
        (lambda cache: cache.crop(16), r"^length: expected 0 \.\. 15.*got 16"),
        (lambda cache: cache.crop(-1), r"^length: expected 0 \.\. 15.*got -1"),
        (lambda cache: cache.crop([14, 16]), r"^length: expected 0 \.\. 15.*got 16"),
        (lambda cache: cache.crop([14]), r"zip"),
        (lambda cache: cache.reorder([0, 2]), r"^indices: expected rows 0 \.\. 1, got \[0, 2\]"),
        (lambda cache: cache.reorder([-1]), r"^indices: expected rows 0 \.\. 1, got \[-1\]"),
    ],
)
def test_refused_call_leaves_the_cache_as_it_was(act: Callable[[SparseCache], Any], message: str) -> None:
    """Guards against a cache that is half extended, or half cropped, after an error the caller catches."""
    layer = make_layer()
    cache = filled(layer, 2, 15, capacity=20)
    before = snapshot(cache)
    with pytest.raises(ValueError, match=message):
        act(cache)
    after = snapshot(cache)
    assert cache.lengths == [15, 15]
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    with torch.no_grad():
        out = layer(hidden_of(2, 20, seed=1)[:, :5], cache=cache)
    assert out.isfinite().all()


def test_row_that_is_still_empty_is_not_filled_by_a_refused_call() -> None:
    """Guards the check of all rows before the first is changed: an empty row fits any dtype."""
    layer, cache = make_layer(), make_layer().new_cache()
    with torch.no_grad():
        layer(hidden_of(2, 3), cache=cache, padding=[3, 0])
    with pytest.raises(ValueError, match=r"^cache: .*float64.*float32"):
        make_layer().float()(hidden_of(2, 1).float(), cache=cache)
    assert cache.lengths == [0, 3]


def test_capacity_can_be_filled_to_the_last_token() -> None:
    """Guards the border of the capacity check, also for padded rows and a first call that is too long."""
    layer = make_layer()
    cache = filled(layer, 2, 15, capacity=20)
    with torch.no_grad():
        layer(hidden_of(2, 8), cache=cache, padding=[3, 8])
    assert cache.lengths == [20, 15]
    fresh = layer.new_cache(capacity=4)
    with pytest.raises(ValueError, match=r"capacity=4 tokens, got 5"):
        layer(hidden_of(1, 5), cache=fresh)
    assert fresh.rows == []


def test_crop_beyond_the_rollback_is_refused_and_changes_nothing() -> None:
    """Guards against a window or tail that was forgotten: the crop must refuse, for all rows or none."""
    layer, hidden = make_layer(), hidden_of(2, 150)
    cache = layer.new_cache(max_rollback=3)
    with torch.no_grad():
        for token in range(150):
            layer(hidden[:, token : token + 1], cache=cache)
    with pytest.raises(ValueError, match=r"^length: expected a crop of at most max_rollback.*got 50 of 150"):
        cache.crop([149, 50])
    assert cache.lengths == [150, 150]
    cache.crop(147)
    with torch.no_grad():
        out = layer(hidden[:, 147:], cache=cache)
    torch.testing.assert_close(out, layer(hidden)[:, 147:].detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("order", [[1, 0], [0, 0, 1], [2, 2, 2, 0], [1]])
def test_reordered_rows_continue_on_their_own(order: list[int]) -> None:
    """Guards beams: rows repeated or dropped, and copies that must not write into each other."""
    layer, past, future = make_layer(), hidden_of(3, 13), hidden_of(4, 9, seed=5)[: len(order)]
    cache = filled(layer, 3, 13)
    cache.reorder(order)
    with torch.no_grad():
        parts = [layer(future[:, t : t + 1], cache=cache) for t in range(9)]
    whole = layer(torch.cat([past[order], future], dim=1)).detach()
    torch.testing.assert_close(torch.cat(parts, dim=1), whole[:, 13:], rtol=1e-9, atol=1e-11)


def test_reset_forgets_tokens_and_batch_size() -> None:
    """Guards against a second sequence that continues the first."""
    layer = make_layer()
    cache = filled(layer, 2, 15)
    cache.reset()
    assert cache.lengths == []
    assert cache.nbytes() == 0
    with torch.no_grad():
        out = layer(hidden_of(3, 9), cache=cache)
    torch.testing.assert_close(out, layer(hidden_of(3, 9)).detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("prefill", [0, 250])
def test_window_and_tail_memory_does_not_grow_with_the_tokens(prefill: int) -> None:
    """Guards against a cache of three K/V sets that costs three times the dense one."""
    layer, hidden = make_layer(), hidden_of(1, 300)
    cache = layer.new_cache(max_rollback=8)
    with torch.no_grad():
        for start, stop in [(0, prefill), *((t, t + 1) for t in range(prefill, 300))]:
            layer(hidden[:, start:stop], cache=cache)
    row = cache.rows[0]
    token_bytes = 2 * 4 * 8
    for name in ("window_key", "window_value", "tail_key", "tail_value"):
        assert row.buffers[name].nbytes() <= 64 * token_bytes, name
    assert cache.nbytes() == sum(buffer.nbytes() for buffer in row.buffers.values())
    dense = FullAttention(12, 4, 2, 4).double()
    full = dense.new_cache()
    with torch.no_grad():
        for start, stop in [(0, prefill), *((t, t + 1) for t in range(prefill, 300))]:
            dense(hidden[:, start:stop], cache=full)
    # the compressed keys and values come to half of the raw ones at a stride of 2
    assert cache.nbytes() <= 1.6 * full.nbytes() + 4 * 64 * token_bytes


def test_no_gradient_flows_through_the_cache() -> None:
    """Guards against a graph that grows with every decoded token."""
    layer, cache = make_layer(), make_layer().new_cache()
    layer(hidden_of(1, 9), cache=cache)
    assert not any(buffer.since(0).requires_grad for buffer in cache.rows[0].buffers.values())
