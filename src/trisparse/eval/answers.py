"""What a model makes of given answers to given prompts, without generating any."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trisparse.eval.forward import device_of, logits_of


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the answers to weigh, all of one length, at least two bytes."""

    prompt: bytes
    answers: tuple[bytes, ...]


def read_answers(
    model: nn.Module, questions: Sequence[Question], *, batch_size: int, share_prompt: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits `[n, bytes, V]` at each byte of `n` answers, and those bytes `[n, bytes]`, in order.

    Each byte is predicted from the prompt and the answer's own bytes before it. The last byte is never read.

    Args:
        model: a causal language model over byte tokens, as in `evaluating`.
        questions: all of one prompt length and one answer length.
        batch_size: sequences in one forward; not used with `share_prompt`.
        share_prompt: False reads the prompt anew with each answer. True reads it once and goes on from a copy
            of the model's cache for each answer: several times cheaper, and a fault of the model's
            cache is then part of what is measured.

    Raises:
        ValueError: `share_prompt`, and the model returns no cache that can be copied.
    """
    if share_prompt:
        for question in questions:
            yield _from_cache(model, question)
        return
    pairs = [(question.prompt, answer) for question in questions for answer in question.answers]
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        answers = _tokens([answer for _, answer in batch])
        logits = logits_of(model, _tokens([prompt + answer[:-1] for prompt, answer in batch]))
        yield logits[:, -answers.shape[1] :], answers.to(logits.device)


def _from_cache(model: nn.Module, question: Question) -> tuple[Tensor, Tensor]:
    device = device_of(model)
    answers = _tokens(question.answers).to(device)
    prompt = model(input_ids=_tokens([question.prompt]).to(device), use_cache=True)
    # transformers calls it `cache` from 5.24 on
    name = "cache" if hasattr(prompt, "cache") else "past_key_values"
    cache = getattr(prompt, name, None)
    if cache is None or not hasattr(cache, "batch_repeat_interleave"):
        raise ValueError(
            f"share_prompt: expected a model that returns a transformers cache, got {type(cache).__name__}; "
            "leave share_prompt False"
        )
    cache.batch_repeat_interleave(len(answers))
    rest = model(input_ids=answers[:, :-1], use_cache=True, **{name: cache}).logits
    first = prompt.logits[:, -1:].expand(len(answers), -1, -1)
    return torch.cat([first, rest], dim=1), answers


def _tokens(texts: Sequence[bytes]) -> Tensor:
    return torch.tensor([list(text) for text in texts])
