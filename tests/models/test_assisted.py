"""Assisted decoding: candidates that are guessed and taken back change nothing but the number of calls."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from trisparse.models import TrisparseForCausalLM

from .generated import KINDS, generated, greedy_without_cache, model_of
from .tiny import ids_of, tiny_model


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
    first = generated(model, ids, past_key_values=cache, assistant_model=assistant(), max_new_tokens=9)
    assert cache.get_seq_length() == 19 + 8
    whole = torch.cat([ids, first, ids_of(1, 3, seed=4)], dim=1)
    assert torch.equal(generated(model, whole, past_key_values=cache), greedy_without_cache(model, whole))
