"""Steps by one program for all positions: the same logits as the model's own cached call."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from trisparse.invariance import batch_invariant
from trisparse.models import TokenStep, TrisparseForCausalLM
from trisparse.testing.inputs import usable_backends

from .generated import KINDS, model_of
from .tiny import ids_of, tiny_model

STEPS = 25


def prefilled(
    model: TrisparseForCausalLM, ids: Tensor, room: int = 64, mask: Tensor | None = None
) -> StaticCache:
    cache = StaticCache(config=model.config, max_cache_len=room)
    with torch.no_grad():
        model(ids, past_key_values=cache, attention_mask=mask)
    return cache


def expected(model: TrisparseForCausalLM, ids: Tensor) -> Tensor:
    """Logits [B, T, V] without a cache."""
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("prompt", [1, 3, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_whole_text(kind: str, prompt: int) -> None:
    """Guards blocks that a step completes, and rings that it goes round."""
    model, ids = model_of(kind), ids_of(2, prompt + STEPS)
    step = TokenStep(model, prefilled(model, ids[:, :prompt]))
    found = torch.stack([step(ids[:, place, None]) for place in range(prompt, prompt + STEPS)], dim=1)
    torch.testing.assert_close(found, expected(model, ids)[:, prompt:])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_length(kind: str) -> None:
    """Guards positions that are those of the batch instead of the row's own."""
    model, ids = model_of(kind), ids_of(2, 11 + STEPS)
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[1, :6] = 0
    step = TokenStep(model, prefilled(model, ids[:, :11], mask=mask))
    found = torch.stack([step(ids[:, place, None]) for place in range(11, 11 + STEPS)], dim=1)
    torch.testing.assert_close(found[0], expected(model, ids[:1])[0, 11:])
    torch.testing.assert_close(found[1], expected(model, ids[1:, 6:])[0, 5:])


@pytest.mark.parametrize("kind", KINDS)
def test_other_calls_may_come_between(kind: str) -> None:
    """Guards against a step that goes on where the cache no longer is: cropped, moved, extended."""
    model, ids = model_of(kind), ids_of(2, 30)
    cache = prefilled(model, ids[:, :9])
    step = TokenStep(model, cache)
    for place in range(9, 15):
        step(ids[:, place, None])
    cache.crop(-3)
    torch.testing.assert_close(step(ids[:, 12, None]), expected(model, ids[:, :13])[:, -1])
    cache.reorder_cache(torch.tensor([1, 0]))
    ids = ids.flip(0)
    torch.testing.assert_close(step(ids[:, 13, None]), expected(model, ids[:, :14])[:, -1])
    with torch.no_grad():
        model(ids[:, 14:20], past_key_values=cache)
    torch.testing.assert_close(step(ids[:, 20, None]), expected(model, ids[:, :21])[:, -1])
    assert cache.get_seq_length() == 21


def test_memory_that_is_not_a_number_behind_the_tokens_is_not_seen() -> None:
    """Guards full attention, whose masked products with garbage would be NaN."""
    model, ids = model_of("mixed"), ids_of(2, 12)
    cache = prefilled(model, ids[:, :9])
    for layer in cache.layers:
        for buffer in layer.state.buffers.values():
            if buffer.newest is None:
                buffer.data[:, 9:] = float("nan")
    step = TokenStep(model, cache)
    found = torch.stack([step(ids[:, place, None]) for place in range(9, 12)], dim=1)
    torch.testing.assert_close(found, expected(model, ids)[:, 9:])


def test_a_full_cache_is_refused_and_kept() -> None:
    model, ids = model_of(), ids_of(2, 12)
    cache = prefilled(model, ids[:, :10], room=11)
    step = TokenStep(model, cache)
    step(ids[:, 10, None])
    with pytest.raises(ValueError, match="^cache: expected at most capacity=11 tokens, got 12"):
        step(ids[:, 11, None])
    assert cache.get_seq_length() == 11


def test_wrong_calls_are_named() -> None:
    model, ids = model_of(), ids_of(2, 9)
    with pytest.raises(TypeError, match="^past_key_values: expected a StaticCache, got DynamicCache"):
        TokenStep(model, DynamicCache(config=model.config))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^past_key_values: expected a cache that holds a prompt"):
        TokenStep(model, StaticCache(config=model.config, max_cache_len=20))
    cache = prefilled(model, ids)
    step = TokenStep(model, cache)
    with pytest.raises(ValueError, match=r"^input_ids: expected \[2, 1\], got \[2, 2\]"):
        step(ids[:, :2])
    with pytest.raises(ValueError, match=r"^input_ids: expected ids below vocab_size=40, got 40"):
        step(torch.tensor([[1], [40]]))
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(step(ids[:, :1]), expected(model, torch.cat([ids, ids[:, :1]], 1))[:, -1])


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        ({}, {"nsa_window": 9}),
        ({}, {"nsa_num_selected": 4}),
        ({}, {"nsa_select_block": 8}),
        ({}, {"attention": "full"}),
        ({"attention": "full"}, {}),
    ],
    ids=str,
)
def test_cache_of_another_model_is_refused(mine: dict[str, Any], other: dict[str, Any]) -> None:
    """Guards logits that are wrong, and nobody told."""
    cache = prefilled(tiny_model(**mine), ids_of(2, 9))
    with pytest.raises(ValueError, match="^past_key_values: expected the cache of this model, in layer 0"):
        TokenStep(tiny_model(**other), cache)


def test_ids_and_weights_of_another_kind_are_refused() -> None:
    """Guards ids that are cut to integers, and an error of PyTorch in place of ours."""
    model, ids = tiny_model(), ids_of(2, 10)
    cache = prefilled(model, ids[:, :9])
    step = TokenStep(model, cache)
    with pytest.raises(TypeError, match="^input_ids: expected int64 or int32, got torch.float32"):
        step(torch.full((2, 1), 3.7))
    with pytest.raises(TypeError, match="^input_ids: expected a torch.Tensor, got list"):
        step([[3], [7]])  # type: ignore[arg-type]
    narrow = TokenStep(copy.deepcopy(model).bfloat16(), cache)
    with pytest.raises(
        ValueError, match=r"^cache: expected new tokens \[2, 4\] torch.float32 on cpu, got .*bfloat16"
    ):
        narrow(ids[:, 9, None])
    torch.testing.assert_close(step(ids[:, 9, None]), expected(model, ids)[:, -1])


@pytest.mark.skipif("cpu" not in usable_backends(), reason="the CPU kernels cannot run here")
@pytest.mark.parametrize("kind", KINDS)
def test_batch_invariant_steps_have_the_bits_of_the_whole(kind: str) -> None:
    """Guards full attention by another kernel than the whole text's."""
    model, ids = tiny_model(**KINDS[kind]), ids_of(2, 9 + STEPS)
    with batch_invariant():
        step = TokenStep(model, prefilled(model, ids[:, :9]))
        found = torch.stack([step(ids[:, place, None]) for place in range(9, 9 + STEPS)], dim=1)
        assert torch.equal(found, expected(model, ids)[:, 9:])


def test_a_step_made_in_inference_mode_goes_on_outside() -> None:
    model, ids = model_of(), ids_of(2, 11)
    with torch.inference_mode():
        step = TokenStep(model, prefilled(model, ids[:, :9]))
        step(ids[:, 9, None])
    torch.testing.assert_close(step(ids[:, 10, None]), expected(model, ids)[:, -1])
