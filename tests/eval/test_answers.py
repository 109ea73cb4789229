"""Answers read whole and from the cache: the same opinion on the same bytes."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trisparse.eval.answers import Question, read_answers
from trisparse.eval.forward import evaluating
from trisparse.eval.needle import needle_rows

from .models import Uniform, tiny_llama, tiny_trisparse

QUESTIONS = [
    Question(prompt=b"the first of two prompts: ", answers=(b"abc", b"xyz", b"a b")),
    Question(prompt=b"the other of two prompts: ", answers=(b"123", b"321", b"111")),
]


def joined(model: nn.Module, *, batch_size: int = 4, share_prompt: bool = False) -> list[torch.Tensor]:
    with evaluating(model):
        batches = list(read_answers(model, QUESTIONS, batch_size=batch_size, share_prompt=share_prompt))
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_each_byte_is_predicted_from_all_before_it() -> None:
    """Guards against logits one byte too early or too late, and against answers out of order."""
    model = tiny_llama()
    logits, answers = joined(model)
    texts = [(question.prompt, answer) for question in QUESTIONS for answer in question.answers]
    assert [bytes(answer) for answer in answers.tolist()] == [answer for _, answer in texts]
    with torch.no_grad():
        for row, (prompt, answer) in enumerate(texts):
            for place in range(3):
                before = torch.tensor([list(prompt + answer[:place])])
                wanted = model(before).logits[0, -1]
                torch.testing.assert_close(logits[row, place], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_trisparse])
def test_shared_prompt_gives_the_same_logits(make_model: Callable[[], nn.Module]) -> None:
    """Guards against a copy of the cache that answers share or that belongs to another prompt."""
    model = make_model()
    whole, shared = joined(model), joined(model, share_prompt=True)
    assert torch.equal(whole[1], shared[1])
    torch.testing.assert_close(shared[0], whole[0], atol=1e-4, rtol=1e-4)


def test_needles_can_share_their_prompt() -> None:
    """Guards the option's way through to the rows."""
    haystack = torch.randint(256, (500,), generator=torch.Generator().manual_seed(0)).numpy()
    model = tiny_llama()
    rows = [
        needle_rows(
            model,
            haystack,
            attention="full",
            lengths=[64],
            depths=[0, 100],
            samples=10,
            seed=0,
            share_prompt=share_prompt,
        )
        for share_prompt in (False, True)
    ]
    assert rows[0] == rows[1]


def test_model_without_a_cache_is_refused() -> None:
    """Guards against an attribute error from inside of a measurement."""
    with pytest.raises(ValueError, match="^share_prompt: expected a model that returns a transformers cache"):
        joined(Uniform(), share_prompt=True)
