"""Assisted decoding: candidates that are guessed and taken back change nothing but the number of calls."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from trisparse.models import TrisparseForCausalLM

from .generated import KINDS, generated, greedy_without_cache, model_of
from .tiny import VOCABULARY, ids_of, tiny_model


def assistant() -> TrisparseForCausalLM:
    """One layer where the main model has two; it is often wrong."""
    return tiny_model(seed=5, tie_word_embeddings=False, num_hidden_layers=1).double()


class Forwards:
    """Counts the tokens of each forward of a model."""

    def __init__(self, model: TrisparseForCausalLM) -> None:
        self.tokens: list[int] = []
        model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: object, args: tuple[Tensor, ...], _kwargs: dict) -> None:
        self.tokens.append(args[0].shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_assistant_model_changes_nothing_of_the_text(kind: str) -> None:
    """Guards crops inside `generate`: rejected candidates must leave no trace in any buffer."""
    model, ids = model_of(kind), ids_of(1, 19)
    expected = greedy_without_cache(model, ids, steps=40)
    forwards = Forwards(model)
    helper = assistant()
    # without this, an assistant that is not sure guesses one token only
    helper.generation_config.assistant_confidence_threshold = 0.0
    helper.generation_config.num_assistant_tokens = 7
    out = generated(model, ids, assistant_model=helper, max_new_tokens=40)
    assert torch.equal(out, expected)
    assert max(forwards.tokens[1:]) == 8
    # some candidates were refused, or nothing was cropped
    assert sum(forwards.tokens[1:]) > 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_assists_itself_is_always_right(kind: str) -> None:
    """Guards equal bits of many tokens at once and one by one, as far as a choice of token shows them."""
    model, ids = model_of(kind), ids_of(1, 19)
    expected = greedy_without_cache(model, ids, steps=24)
    helper = model_of(kind)
    helper.generation_config.assistant_confidence_threshold = 0.0
    helper.generation_config.num_assistant_tokens = 5
    forwards = Forwards(model)
    assert torch.equal(generated(model, ids, assistant_model=helper, max_new_tokens=24), expected)
    # 6 tokens a call after the first: five guessed, one of its own
    assert len(forwards.tokens) == 4


@pytest.mark.parametrize(("kind", "guesses"), [("nsa", 40), ("mixed", 64)])
def test_long_drafts_of_the_model_itself_are_all_kept(kind: str, guesses: int) -> None:
    """Guards verification of more tokens than a tile has rows, the last of them too."""
    model, ids = model_of(kind), ids_of(1, 9)
    expected = greedy_without_cache(model, ids, steps=guesses + 3)
    helper = model_of(kind)
    helper.generation_config.assistant_confidence_threshold = 0.0
    helper.generation_config.num_assistant_tokens = guesses
    forwards = Forwards(model)
    assert torch.equal(generated(model, ids, assistant_model=helper, max_new_tokens=guesses + 3), expected)
    assert forwards.tokens[0] == 9 + guesses
    assert len(forwards.tokens) == 2


@pytest.mark.parametrize("guesses", [33, 64])
@pytest.mark.parametrize("kind", ["nsa", "shared", "mixed"])
def test_long_drafts_that_are_refused_change_nothing_of_the_text(kind: str, guesses: int) -> None:
    """Guards crops of nearly all of a long draft, one after the other."""
    # every token has been followed by others: there is always something to guess
    model, ids = model_of(kind), torch.arange(1, VOCABULARY).repeat(3)[None]
    expected = greedy_without_cache(model, ids, steps=6)
    forwards = Forwards(model)
    # drafts may be as long as the text that is still wanted: it is stopped long before
    out = generated(
        model,
        ids,
        prompt_lookup_num_tokens=guesses,
        max_new_tokens=200,
        stopping_criteria=[lambda text, _: torch.tensor([text.shape[1] >= ids.shape[1] + 6])],
    )
    assert torch.equal(out[:, :6], expected)
    assert out.shape[1] < 12
    assert forwards.tokens[0] == ids.shape[1] + guesses
    assert sum(count == guesses + 1 for count in forwards.tokens[1:]) > 2


def test_draft_that_is_too_long_to_be_taken_back_is_named() -> None:
    """Guards the limit of 64 guesses a call against wrong text, and a way out that can be followed."""
    model, ids = model_of(), ids_of(1, 7).repeat(1, 60)
    settings: dict[str, Any] = {"prompt_lookup_num_tokens": 300, "max_new_tokens": 310}
    settings["stopping_criteria"] = [lambda text, _: torch.tensor([text.shape[1] >= ids.shape[1] + 6])]
    with pytest.raises(
        ValueError,
        match=r"^lengths: expected at most max_rollback=64 tokens less.* larger config\.max_rollback",
    ):
        generated(model, ids, **settings)
    expected = greedy_without_cache(model, ids, steps=6)
    model.config.max_rollback = 300
    assert torch.equal(generated(model, ids, **settings)[:, :6], expected)


def test_assistant_takes_back_as_much_as_its_own_configuration_says() -> None:
    """Guards the cache of the assistant, which transformers makes where nobody can hand one over."""
    model, ids = model_of(), ids_of(1, 30)
    expected = greedy_without_cache(model, ids, steps=2)
    helper = assistant()
    helper.config.max_rollback = model.config.max_rollback = 140
    helper.generation_config.assistant_confidence_threshold = 0.0
    helper.generation_config.num_assistant_tokens = 140
    forwards = Forwards(model)
    out = generated(
        model,
        ids,
        assistant_model=helper,
        max_new_tokens=200,
        stopping_criteria=[lambda text, _: torch.tensor([text.shape[1] >= ids.shape[1] + 2])],
    )
    assert torch.equal(out[:, :2], expected)
    assert forwards.tokens[0] == 30 + 140


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_cache_of_a_model_reaches_back_as_far_as_the_configuration_says(static: bool) -> None:
    """Guards the number of tokens that a crop may take back, in both caches of transformers."""
    model, ids = tiny_model(max_rollback=200, tie_word_embeddings=False).double(), ids_of(1, 600)
    cache: Any = DynamicCache(config=model.config)
    if static:
        cache = StaticCache(config=model.config, max_cache_len=600)
    with torch.no_grad():
        for token in ids[:, :500].split(100, dim=1):
            model(token, past_key_values=cache)
        cache.crop(-200)
        out = model(ids[:, 300:310], past_key_values=cache).logits
        expected = model(ids[:, :310], use_cache=False).logits[:, 300:]
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("candidates", [1, 6, 60])
def test_prompt_lookup_changes_nothing_of_the_text(candidates: int) -> None:
    """Guards candidates copied from the prompt; a repeating prompt makes sure that there are some."""
    model, ids = model_of(), ids_of(1, 7).repeat(1, 11)
    expected = greedy_without_cache(model, ids, steps=30)
    forwards = Forwards(model)
    out = generated(model, ids, prompt_lookup_num_tokens=candidates, max_new_tokens=30)
    assert torch.equal(out, expected)
    assert max([*forwards.tokens[1:], forwards.tokens[0] - ids.shape[1]]) > 1


def test_assisted_text_goes_on_from_a_cache_it_is_given() -> None:
    """Guards a chat with assistance: the cache holds accepted tokens only."""
    model, ids = model_of("mixed"), ids_of(1, 19)
    cache = DynamicCache(config=model.config)
    first = generated(model, ids, cache=cache, assistant_model=assistant(), max_new_tokens=9)
    assert cache.get_seq_length() == 19 + 8
    whole = torch.cat([ids, first, ids_of(1, 3, seed=4)], dim=1)
    assert torch.equal(generated(model, whole, cache=cache), greedy_without_cache(model, whole))
