"""The decode state: errors that leave it as it was, beams, and its memory."""

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trisparse.baselines.full_attention import FullAttention
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.cache import BatchCache, SparseCache

from .layers import BLOCKS, hidden_of, make_layer


def snapshot(cache: SparseCache) -> dict[str, Tensor]:
    """Copies of everything the cache holds, with garbage."""
    return {name: buffer.data.clone() for name, buffer in cache.buffers.items()}


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
        (
            lambda cache: make_layer()(hidden_of(2, 4), cache=cache, padding=[0, 5]),
            r"^padding: expected 2 numbers in 0 \.\. 4, got \[0, 5\]",
        ),
        (lambda cache: cache.crop(16), r"^lengths: expected 0 \.\. 15.*got 16"),
        (lambda cache: cache.crop(-1), r"^lengths: expected 0 \.\. 15.*got -1"),
        (lambda cache: cache.crop([14, 16]), r"^lengths: expected 0 \.\. 15.*got 16"),
        (lambda cache: cache.crop([14]), r"^lengths: expected one for each of 2 rows, got \[14\]"),
        (lambda cache: cache.reorder([0, 2]), r"^indices: expected rows 0 \.\. 1, got \[0, 2\]"),
        (lambda cache: cache.reorder([-1]), r"^indices: expected rows 0 \.\. 1, got \[-1\]"),
        (lambda cache: cache.crop([14.0, 14.0]), r"^lengths: expected ints, got float 14.0"),
        (lambda cache: cache.crop([14, True]), r"^lengths: expected ints, got bool True"),
        (lambda cache: cache.crop(True), r"^lengths: expected an int, got bool True"),
        (lambda cache: cache.crop(2.5), r"^lengths: expected ints, got float 2.5"),
        (lambda cache: cache.crop(None), r"^lengths: expected ints, got NoneType None"),
        (lambda cache: cache.crop(torch.tensor(14.0)), r"^lengths: expected an int, got float 14.0"),
        (lambda cache: cache.crop(torch.tensor([14, 16])), r"^lengths: expected 0 \.\. 15.*got 16"),
        (lambda cache: cache.crop(torch.tensor([[14, 14]])), r"^lengths: expected ints, got list \[14, 14\]"),
        (lambda cache: cache.reorder([1.0, 0.0]), r"^indices: expected ints, got float 1.0"),
        (lambda cache: cache.reorder([True, False]), r"^indices: expected ints, got bool True"),
        (lambda cache: cache.reorder(["1", "0"]), r"^indices: expected ints, got str '1'"),
        (lambda cache: cache.reorder(torch.tensor([1.0, 0.0])), r"^indices: expected ints, got float 1.0"),
        (lambda cache: cache.reorder(torch.tensor([True, False])), r"^indices: expected ints, got bool True"),
        (lambda cache: cache.reorder(torch.tensor(1)), r"^indices: expected ints, got Tensor tensor\(1\)"),
        (lambda cache: cache.reorder(None), r"^indices: expected ints, got NoneType None"),
        (
            lambda cache: make_layer()([[1.0] * 12], cache=cache),
            r"^hidden: expected a torch.Tensor, got list",
        ),
        (
            lambda cache: make_layer()(hidden_of(2, 1).long(), cache=cache),
            r"^hidden: expected floating-point numbers, got torch.int64",
        ),
        (
            lambda cache: make_layer().to("meta")(hidden_of(2, 1).to("meta"), cache=cache),
            r"^cache: expected .* on cpu, got .* on meta",
        ),
    ],
)
def test_refused_call_leaves_the_cache_as_it_was(act: Callable[[SparseCache], Any], message: str) -> None:
    """Guards against a cache that is half extended, or half cropped, after an error the caller catches."""
    layer = make_layer()
    cache = filled(layer, 2, 15, capacity=20)
    before = snapshot(cache)
    with pytest.raises((TypeError, ValueError), match=message):
        act(cache)
    after = snapshot(cache)
    assert cache.lengths == [15, 15]
    assert before.keys() == after.keys()
    for name, old in before.items():
        torch.testing.assert_close(after[name], old, rtol=0, atol=0, equal_nan=True)
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
    assert fresh.lengths == []


def test_crop_beyond_the_rollback_is_refused_and_changes_nothing() -> None:
    """Guards against a window or tail that was forgotten: the crop must refuse, for all rows or none."""
    layer, hidden = make_layer(), hidden_of(2, 150)
    cache = layer.new_cache(max_rollback=3)
    with torch.no_grad():
        for token in range(150):
            layer(hidden[:, token : token + 1], cache=cache)
    message = r"^lengths: expected at most max_rollback=3 tokens less than the 150.*got 10.*new_cache\("
    with pytest.raises(ValueError, match=message):
        cache.crop([149, 10])
    assert cache.lengths == [150, 150]
    cache.crop(147)
    with torch.no_grad():
        out = layer(hidden[:, 147:], cache=cache)
    torch.testing.assert_close(out, layer(hidden)[:, 147:].detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lengths", [13, torch.tensor(13), torch.tensor([13, 13])], ids=str)
def test_lengths_of_a_crop_may_be_a_tensor(lengths: Any) -> None:
    """Guards lengths that come from a model's own arithmetic."""
    layer = make_layer()
    cache = filled(layer, 2, 15)
    cache.crop(lengths)
    assert cache.lengths == [13, 13]
    assert all(type(length) is int for length in cache.lengths)
    cache.crop(torch.tensor([12, 9]))
    assert cache.lengths == [12, 9]


def test_rows_may_be_chosen_by_an_integer_tensor() -> None:
    """Guards beams, whose order is a tensor: no warning, and lengths that are still ints."""
    cache = filled(make_layer(), 2, 15)
    other = copy.deepcopy(cache)
    cache.reorder(torch.tensor([1, 1, 0], dtype=torch.int32))
    other.reorder([1, 1, 0])
    assert cache.lengths == [15, 15, 15]
    for name, tokens in snapshot(other).items():
        torch.testing.assert_close(cache.buffers[name].data, tokens, rtol=0, atol=0, equal_nan=True)


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


def test_reset_with_a_capacity_keeps_its_memory() -> None:
    """Guards against room that moves, and against a sequence of another kind that is refused for it."""
    layer = make_layer()
    cache = filled(layer, 2, 15, capacity=30)
    addresses = {name: buffer.data.data_ptr() for name, buffer in cache.buffers.items()}
    cache.reset()
    assert cache.lengths == []
    with torch.no_grad():
        out = layer(hidden_of(2, 9, seed=4), cache=cache)
    torch.testing.assert_close(out, layer(hidden_of(2, 9, seed=4)).detach(), rtol=1e-9, atol=1e-11)
    assert {name: buffer.data.data_ptr() for name, buffer in cache.buffers.items()} == addresses
    cache.reset()
    with torch.no_grad():
        make_layer().float()(hidden_of(3, 9).float(), cache=cache)
    assert cache.lengths == [9, 9, 9]


@pytest.mark.parametrize("prefill", [0, 250])
def test_window_and_tail_memory_does_not_grow_with_the_tokens(prefill: int) -> None:
    """Guards against a window that costs as much as the whole sequence."""
    layer, hidden = make_layer(), hidden_of(1, 300)
    cache = layer.new_cache(max_rollback=8)
    with torch.no_grad():
        for start, stop in [(0, prefill), *((t, t + 1) for t in range(prefill, 300))]:
            layer(hidden[:, start:stop], cache=cache)
    token_bytes = 2 * 4 * 8
    for name in ("window_key", "window_value", "tail_key", "tail_value"):
        assert cache.buffers[name].nbytes() == 128 * token_bytes, name
    assert cache.nbytes() == sum(buffer.nbytes() for buffer in cache.buffers.values())


def bytes_while_it_grows(cache: BatchCache, tokens: int, step: int) -> dict[int, int]:
    """Length of a row -> memory of its cache, where `step` tokens at a time come until there are `tokens`."""
    key, found = torch.zeros(1, step, 1, 2), {}
    for length in range(step, tokens + 1, step):
        cache.reserve(dict.fromkeys(cache.new_buffers(), key), [step])
        cache.commit([step])
        found[length] = cache.nbytes()
    return found


# the paper's sizes; the memory of a ratio does not depend on the width of a token
SPARSE, FULL = NativeSparseAttention(8, 16, 1, 2), FullAttention(8, 16, 1, 2)


@pytest.mark.parametrize("is_static", [False, True], ids=["at once", "static"])
@pytest.mark.parametrize(
    ("tokens", "most"),
    [(4096, 1.24), (8192, 1.15), (16384, 1.11), (20000, 1.10), (32768, 1.09), (65536, 1.08), (131072, 1.07)],
)
def test_memory_of_three_sets_beside_a_dense_cache(tokens: int, most: float, is_static: bool) -> None:
    """Guards the promise: at most 1.10 times the memory of one set from 20,000 tokens on."""
    capacity = tokens if is_static else None
    sparse, full = (
        bytes_while_it_grows(layer.new_cache(capacity), tokens, tokens)[tokens] for layer in (SPARSE, FULL)
    )
    assert most - 0.015 < sparse / full <= most


@pytest.mark.parametrize("begin", [64, 5120, 21535])
def test_growing_cache_keeps_the_promise_at_every_length(begin: int) -> None:
    """Guards against compressed tokens that grow by themselves: they once took 1.113 times a dense cache."""
    caches, lengths = [layer.new_cache() for layer in (SPARSE, FULL)], range(begin + 32, 70000, 32)
    for cache in caches:
        bytes_while_it_grows(cache, begin, begin)
    sparse, full = (bytes_while_it_grows(cache, 32 * len(lengths), 32) for cache in caches)
    ratios = [a / b for a, b in zip(sparse.values(), full.values(), strict=True)]
    late = zip(lengths, ratios, strict=True)
    assert max(ratio for length, ratio in late if length >= 20000) <= 1.10


def test_call_that_failed_has_changed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a row that is longer, or whose window is lost, after an interruption."""
    layer, hidden = make_layer(), hidden_of(2, 160)
    cache = filled(layer, 2, 9)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for count in (1, 140):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("trisparse.nn.attention.sparse_decode", interrupted)
            layer(hidden[:, :count], cache=cache)
    assert cache.lengths == [9, 9]
    with torch.no_grad():
        out = layer(hidden[:, :5], cache=cache)
    whole = layer(torch.cat([hidden_of(2, 9), hidden[:, :5]], dim=1)).detach()
    torch.testing.assert_close(out, whole[:, 9:], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("count", [5, 140])
@pytest.mark.parametrize("kind", ["sparse", "full"])
def test_padded_call_that_failed_in_a_later_row_has_changed_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    """Guards rows that are attended one by one against a first one that keeps the tokens of a failed call."""
    layer: Any = make_layer()
    place = "trisparse.nn.attention.sparse_decode"
    if kind == "full":
        layer, place = (
            FullAttention(12, 4, 2, 4).double(),
            "trisparse.baselines.full_attention.causal_attention",
        )
    cache = filled(layer, 2, 9)
    module, name = place.rsplit(".", 1)
    attend, rows = getattr(importlib.import_module(module), name), iter(range(9))

    def interrupted(*arguments: Any, **others: Any) -> Any:
        if next(rows) == 1:
            raise KeyboardInterrupt
        return attend(*arguments, **others)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), torch.no_grad():
        patch.setattr(place, interrupted)
        layer(hidden_of(2, count, seed=1), cache=cache, padding=[1, 2])
    assert cache.lengths == [9, 9]
    with torch.no_grad():
        out = layer(hidden_of(2, 3, seed=2), cache=cache)
        whole = layer(torch.cat([hidden_of(2, 9), hidden_of(2, 3, seed=2)], dim=1))
    torch.testing.assert_close(out, whole[:, 9:], rtol=1e-9, atol=1e-11)


def test_rings_that_an_interruption_spoiled_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against wrong rows after Ctrl-C between the rings and the count of tokens."""
    layer = make_layer()
    cache = filled(layer, 2, 9)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), torch.no_grad():
        patch.setattr(SparseCache, "commit", interrupted)
        layer(hidden_of(2, 140), cache=cache)
    with torch.no_grad(), pytest.raises(ValueError, match="^cache: expected whole rings"):
        layer(hidden_of(2, 1), cache=cache)
    cache.reset()
    with torch.no_grad():
        assert layer(hidden_of(2, 9), cache=cache).isfinite().all()


@pytest.mark.parametrize("layer", [make_layer(), FullAttention(12, 4, 2, 4).double()], ids=["sparse", "full"])
def test_batch_of_no_rows_gives_no_rows(layer: Any) -> None:
    """Guards the last batch of a queue that has run empty."""
    cache = layer.new_cache()
    with torch.no_grad():
        for tokens in (5, 1, 80):
            assert layer(hidden_of(0, tokens), cache=cache).shape == (0, tokens, 12)
    assert cache.lengths == []


@pytest.mark.parametrize("settings", [{"capacity": -3}, {"capacity": 2.5}, {"max_rollback": True}], ids=str)
def test_sizes_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    """Guards against a cache that fails at its first token instead of where it is made."""
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(settings))}: expected"):
        SparseCache(BLOCKS, **settings)


def test_no_gradient_flows_through_the_cache() -> None:
    """Guards against a graph that grows with every decoded token."""
    layer, cache = make_layer(), make_layer().new_cache()
    layer(hidden_of(1, 9), cache=cache)
    assert not any(buffer.data.requires_grad for buffer in cache.buffers.values())


def test_refused_first_call_leaves_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a cache from the batch size and dtype of a call that was none."""
    layer = make_layer()
    cache = layer.new_cache()
    monkeypatch.setattr(layer, "backend", "nonsense")
    with pytest.raises(ValueError, match="^backend"):
        layer(torch.randn(2, 3, 12, dtype=torch.float64), cache=cache)
    monkeypatch.undo()
    layer = layer.float()
    assert layer(torch.randn(3, 3, 12), cache=cache).shape == (3, 3, 12)
    assert cache.lengths == [3, 3, 3]
