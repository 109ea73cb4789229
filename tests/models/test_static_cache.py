"""A static cache: all room from the start, nothing moves, and a full cache is refused."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from .generated import KINDS, generated, greedy_without_cache, model_of
from .tiny import ids_of


@pytest.mark.parametrize("kind", KINDS)
def test_text_with_a_static_cache_is_the_same(kind: str) -> None:
    """Guards `cache_implementation="static"`, left-padded and prefilled in chunks too."""
    model, ids = model_of(kind), ids_of(2, 13)
    expected = greedy_without_cache(model, ids)
    assert torch.equal(generated(model, ids, cache_implementation="static"), expected)
    chunked = generated(model, ids, cache_implementation="static", prefill_chunk_size=4)
    assert torch.equal(chunked, expected)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    padded = generated(model, ids * mask, attention_mask=mask, cache_implementation="static")
    assert torch.equal(padded[1:], greedy_without_cache(model, ids[1:, 5:]))


def test_beams_with_a_static_cache_are_the_same() -> None:
    """Guards the reordering of rows whose room is fixed."""
    model, ids = model_of("mixed"), ids_of(2, 9)
    settings = {"num_beams": 3, "num_return_sequences": 2}
    expected = generated(model, ids, use_cache=False, **settings)
    assert torch.equal(generated(model, ids, cache_implementation="static", **settings), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_and_nothing_grows(kind: str) -> None:
    """Guards memory that is reserved once, for a server that must know its need beforehand."""
    model, ids = model_of(kind), ids_of(2, 300)
    cache = StaticCache(config=model.config, max_cache_len=300)
    assert cache.get_max_length() == 300
    assert cache.is_compileable
    places = []
    with torch.no_grad():
        for chunk in ids.split([3, 1, 130, 65, 1, 100], dim=1):
            model(chunk, past_key_values=cache)
            buffers = [buffer for layer in cache.layers for buffer in layer.state.buffers.values()]
            places.append([(buffer.data.data_ptr(), buffer.nbytes()) for buffer in buffers])
    assert all(place == places[0] for place in places)
    assert all(layer.state.buffers["key"].room == 300 for layer in cache.layers)


def test_the_last_slot_is_used_and_the_next_token_is_refused() -> None:
    """Guards the capacity from both sides, and the state from the call that was refused."""
    model, ids = model_of("mixed"), ids_of(2, 24)
    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        model(ids[:, :18], past_key_values=cache)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^cache: expected at most capacity=20 tokens, got 21"):
                model(ids[:, 18:21], past_key_values=cache)
        out = model(ids[:, 18:20], past_key_values=cache).logits
        expected = model(ids[:, :20], use_cache=False).logits[:, 18:]
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
    assert cache.get_seq_length() == 20


def test_text_that_does_not_fit_ends_with_the_name_of_the_limit() -> None:
    """Guards a server whose cache is full in the middle of an answer: it can take tokens back and go on."""
    model, ids = model_of("mixed"), ids_of(2, 15)
    cache = StaticCache(config=model.config, max_cache_len=20)
    with pytest.raises(ValueError, match=r"^cache: expected at most capacity=20 tokens, got 21"):
        generated(model, ids, cache=cache)
    assert cache.get_seq_length() == 20
    cache.crop(-5)
    expected = greedy_without_cache(model, ids, steps=6)
    ids = torch.cat([ids, expected[:, :1]], dim=1)
    assert torch.equal(generated(model, ids, cache=cache, max_new_tokens=5), expected[:, 1:])


def test_reset_makes_room_again() -> None:
    """Guards a server that uses one cache for one request after the other."""
    model, ids = model_of(), ids_of(1, 24)
    cache = StaticCache(config=model.config, max_cache_len=24)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        cache.reset()
        assert cache.get_seq_length() == 0
        out = model(ids, past_key_values=cache).logits
    torch.testing.assert_close(out, model(ids, use_cache=False).logits, rtol=1e-9, atol=1e-10)


def test_static_and_growing_layers_are_registered_apart() -> None:
    """Guards against one layer class that takes the other's place in transformers."""
    config = model_of().config
    assert [layer.get_max_length() for layer in DynamicCache(config=config).layers] == [-1, -1]
    assert [layer.get_max_length() for layer in StaticCache(config=config, max_cache_len=9).layers] == [9, 9]


def test_assisted_decoding_refuses_a_static_cache_by_name() -> None:
    """Guards the message of transformers before 5.24 that says what does not go together.

    Later ones read guesses beyond the end of the text, for which their cache has no room.
    """
    model = model_of()
    refused = "assisted generate is not supported with Static cache|^cache: expected at most capacity="
    with pytest.raises(ValueError, match=refused):
        generated(model, ids_of(1, 5), cache_implementation="static", prompt_lookup_num_tokens=3)


@pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="transformers makes a CUDA stream before the cache is looked at",
)
def test_offloading_is_refused() -> None:
    """Guards against a cache that is said to be offloaded and is not."""
    model = model_of()
    for name in ("offloaded", "offloaded_static"):
        with pytest.raises(NotImplementedError, match="^past_key_values: offloading is not supported"):
            generated(model, ids_of(1, 5), cache_implementation=name)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cache_copied_in_inference_mode_goes_on_outside(kind: str) -> None:
    """Guards the copies of a beginning that many prompts share."""
    model, ids = model_of(), ids_of(2, 12)
    cache: Any = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.inference_mode():
        model(ids[:, :9], past_key_values=cache)
        copied = copy.deepcopy(cache)
    with torch.no_grad():
        found = model(ids[:, 9:], past_key_values=copied).logits
        torch.testing.assert_close(found, model(ids, use_cache=False).logits[:, 9:])
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_no_rows_are_no_failure(static: bool) -> None:
    """Guards a batch whose rows have all ended."""
    model, ids = model_of(), ids_of(2, 10)
    for rows in (0, 2):
        cache: Any = DynamicCache(config=model.config)
        if static:
            cache = StaticCache(config=model.config, max_cache_len=20)
        with torch.no_grad():
            model(ids[:rows, :9], past_key_values=cache)
            cache.batch_select_indices(torch.tensor([], dtype=torch.int64))
            assert model(ids[:0, 9:], past_key_values=cache).logits.shape[0] == 0
