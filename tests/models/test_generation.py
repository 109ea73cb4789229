"""`generate`: whatever it does with the cache, the text is the one without a cache."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, pipeline

from trisparse.data.tokenizer import VOCAB_SIZE, byte_tokenizer
from trisparse.models import TrisparseForCausalLM
from trisparse.models.cache_name import CACHE_NAME

from .generated import KINDS, generated, greedy_without_cache, model_of
from .tiny import ids_of, tiny_model


@pytest.mark.parametrize("prompt", [1, 3, 8, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_equals_recomputation_without_a_cache(kind: str, prompt: int) -> None:
    """Guards decode through the cache of transformers: slots, masks, positions, state of each layer."""
    model, ids = model_of(kind), ids_of(2, prompt)
    expected = greedy_without_cache(model, ids)
    assert len(set(expected.flatten().tolist())) > 3
    assert torch.equal(generated(model, ids), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_left_padded_rows_are_continued_as_if_alone(kind: str) -> None:
    """Guards a batch of prompts of different length."""
    model, ids, skips = model_of(kind), ids_of(3, 13), [0, 4, 12]
    mask = (torch.arange(13) >= torch.tensor(skips)[:, None]).long()
    out = generated(model, ids * mask, attention_mask=mask)
    for row, skip in enumerate(skips):
        assert torch.equal(out[row : row + 1], greedy_without_cache(model, ids[row : row + 1, skip:]))


@pytest.mark.parametrize("kind", KINDS)
def test_beams_equal_beams_without_a_cache(kind: str) -> None:
    """Guards the reordering of rows: a beam must go on with its own past."""
    model, ids = model_of(kind), ids_of(2, 9)
    settings = {"num_beams": 4, "num_return_sequences": 3}
    with_cache = generated(model, ids, **settings)
    assert with_cache.shape == (6, 14)
    assert torch.equal(with_cache, generated(model, ids, use_cache=False, **settings))
    assert not torch.equal(with_cache[0::3], greedy_without_cache(model, ids))


def test_sampling_is_reproduced_by_its_seed_and_equals_that_without_a_cache() -> None:
    """Guards against randomness of our own, and against rows of one prompt that share a cache row."""
    model, ids, texts = model_of(), ids_of(2, 9), []
    for seed, use_cache in ((1, True), (1, True), (2, True), (1, False)):
        torch.manual_seed(seed)
        texts.append(generated(model, ids, do_sample=True, num_return_sequences=3, use_cache=use_cache))
    first, again, other, without_cache = texts
    assert first.shape == (6, 14)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, without_cache)
    assert len({tuple(row) for row in first.tolist()}) == 6


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_prefill_in_chunks_gives_the_same_text(chunk: int) -> None:
    """Guards prompts too long for one pass, left-padded ones included."""
    model, ids = model_of(), ids_of(2, 18)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    expected = generated(model, ids, attention_mask=mask)
    assert torch.equal(generated(model, ids, attention_mask=mask, prefill_chunk_size=chunk), expected)


def test_cache_has_either_name() -> None:
    """Guards against a cache that is swallowed: transformers hands it over as `cache` from 5.24 on."""
    model, ids = model_of("mixed"), ids_of(2, 9)
    expected = model(ids, use_cache=False).logits[:, -1:]
    for name in ("past_key_values", "cache"):
        for part in (model, model.model):
            cache = DynamicCache(config=model.config)
            with torch.no_grad():
                out = part(ids[:, :8], **{name: cache})
                assert getattr(out, CACHE_NAME) is cache
                assert cache.get_seq_length() == 8
                out = part(ids[:, 8:], **{name: cache})
            if part is model:
                torch.testing.assert_close(out.logits, expected)
    other = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match=f"^cache: expected none beside past_key_values; use {CACHE_NAME}"):
        model(ids, past_key_values=cache, cache=other)


def test_generation_goes_on_with_a_cache_it_is_given() -> None:
    """Guards chats: the second call must use what the first one left, not compute or attend it twice."""
    model, ids = model_of(), ids_of(1, 9)
    cache = DynamicCache(config=model.config)
    first = generated(model, ids, cache=cache, max_new_tokens=5)
    # the last token was chosen but never read
    assert cache.get_seq_length() == 9 + 4
    whole = torch.cat([ids, first, ids_of(1, 3, seed=4)], dim=1)
    assert torch.equal(generated(model, whole, cache=cache), greedy_without_cache(model, whole))


@pytest.mark.parametrize("number", [int, torch.tensor], ids=["int", "tensor"])
def test_cropped_cache_goes_on_as_if_the_tokens_never_came(number: Any) -> None:
    """Guards speculative decoding through the cache of transformers, 5.17 of which crops by tensors."""
    model, ids = model_of("mixed"), ids_of(2, 20)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.cat([ids[:, :11], ids_of(2, 6, seed=3)], dim=1), past_key_values=cache)
        cache.crop(number(-6))
        assert cache.get_seq_length() == 11
        out = model(ids[:, 11:], past_key_values=cache).logits
        expected = model(ids, use_cache=False).logits[:, 11:]
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)


def test_rows_of_the_cache_can_be_repeated_and_chosen() -> None:
    """Guards the ways in which transformers rearranges a batch."""
    model, ids = model_of(), ids_of(2, 9)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0, 1]))
        out = model(ids_of(3, 4, seed=8), past_key_values=cache).logits
        whole = torch.cat([ids[[1, 0, 0]], ids_of(3, 4, seed=8)], dim=1)
        expected = model(whole, use_cache=False).logits[:, 9:]
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
    cache.reset()
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize(
    "make", [lambda _: DynamicCache(), lambda _: (), lambda model: model_cache(model, 3)]
)
def test_cache_that_was_not_made_for_the_model_is_refused(make: Any) -> None:
    """Guards against dense K/V caches, which our layers cannot fill."""
    model = model_of()
    with pytest.raises(
        TypeError, match=r"^past_key_values: expected DynamicCache\(config=model\.config\) with 2"
    ):
        model(ids_of(1, 3), past_key_values=make(model))


def model_cache(_: TrisparseForCausalLM, layers: int) -> DynamicCache:
    """The cache of a deeper model."""
    return DynamicCache(config=tiny_model(num_hidden_layers=layers).config)


@pytest.mark.parametrize("positions", [[[8, 9]], [[0, 1]], [[10, 11]], [[9, 9]]])
def test_positions_that_do_not_follow_the_cache_are_refused(positions: list[list[int]]) -> None:
    """Guards against tokens whose place the caller and the cache see differently."""
    model = model_of()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids_of(1, 9), past_key_values=cache)
        with pytest.raises(ValueError, match=r"^position_ids: expected positions from 9 on,"):
            model(ids_of(1, 2), past_key_values=cache, position_ids=torch.tensor(positions))
        assert cache.get_seq_length() == 9
        model(ids_of(1, 2), past_key_values=cache, position_ids=torch.tensor([[9, 10]]))
    assert cache.get_seq_length() == 11


def test_a_copy_of_a_prefix_cache_goes_on_by_itself() -> None:
    """Guards prompts that share a beginning: prefilled once, copied, and continued in two ways."""
    model, prefix = model_of("mixed"), ids_of(1, 23)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prefix, past_key_values=cache)
    texts = []
    for seed in (1, 2):
        whole = torch.cat([prefix, ids_of(1, 4, seed=seed)], dim=1)
        texts.append(generated(model, whole, cache=copy.deepcopy(cache)))
        assert torch.equal(texts[-1], greedy_without_cache(model, whole))
    assert not torch.equal(*texts)
    assert cache.get_seq_length() == 23
    whole = torch.cat([prefix, ids_of(1, 4, seed=3)], dim=1)
    assert torch.equal(generated(model, whole, cache=cache), greedy_without_cache(model, whole))


def test_beams_of_left_padded_rows_equal_beams_without_a_cache() -> None:
    """Guards rows of different length that trade places."""
    model, ids = model_of(), ids_of(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    settings = {"num_beams": 3, "attention_mask": mask, "early_stopping": True, "length_penalty": 0.5}
    with_cache = generated(model, ids * mask, **settings)
    assert torch.equal(with_cache, generated(model, ids * mask, use_cache=False, **settings))
    alone = generated(model, ids[1:, 6:], **(settings | {"attention_mask": mask[1:, 6:]}))
    assert torch.equal(with_cache[1:], alone)


def test_text_pipeline_answers_a_batch_as_each_prompt_alone() -> None:
    """Guards the padding that a pipeline puts before shorter prompts."""
    model = tiny_model(vocab_size=VOCAB_SIZE, eos_token_id=256, pad_token_id=257).double()
    ask = pipeline("text-generation", model=model, tokenizer=byte_tokenizer(), device="cpu")
    settings = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    prompts = ["Once upon", "A", "In the beginning there was"]
    together = [answer[0]["generated_text"] for answer in ask(prompts, batch_size=3, **settings)]
    assert together == [ask(prompt, **settings)[0]["generated_text"] for prompt in prompts]


def test_text_pipeline_runs() -> None:
    """Guards the whole way of a user: tokenizer, generation config, decoding."""
    model = tiny_model(vocab_size=VOCAB_SIZE, eos_token_id=256, pad_token_id=257)
    ask = pipeline("text-generation", model=model, tokenizer=byte_tokenizer(), device="cpu")
    answer = ask("Once upon", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert answer.startswith("Once upon")
