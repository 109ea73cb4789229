"""Every mode of `generate` with every way to hold and fill the cache: the text is the one without a cache."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch._dynamo.backends.debugging import aot_eager
from transformers import pipeline

from trisparse.data.tokenizer import VOCAB_SIZE, byte_tokenizer
from trisparse.models import TrisparseForCausalLM

from .generated import generated, greedy_without_cache, model_of
from .tiny import ids_of, tiny_model

PROMPT = 23
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling with beams": {"do_sample": True, "num_beams": 3},
}
WAYS: dict[str, dict[str, Any]] = {
    "growing": {},
    "static": {"cache_implementation": "static"},
    "in chunks": {"prefill_chunk_size": 6},
}


def padded(skips: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts that begin after `skips` tokens of padding, and their mask."""
    mask = (torch.arange(PROMPT) >= torch.tensor(skips)[:, None]).long()
    return ids_of(len(skips), PROMPT) * mask, mask


@pytest.mark.parametrize("mode", MODES)
def test_text_is_that_without_a_cache(mode: str) -> None:
    """Guards the table of modes and ways, of which each is tested alone elsewhere."""
    model, (ids, mask) = model_of("mixed"), padded([0, 11])
    texts = {}
    for name, way in [*WAYS.items(), ("without a cache", {"use_cache": False})]:
        torch.manual_seed(3)
        texts[name] = generated(model, ids, attention_mask=mask, max_new_tokens=8, **MODES[mode], **way)
    expected = texts["without a cache"]
    assert len(set(expected.flatten().tolist())) > 3
    for name, text in texts.items():
        assert torch.equal(text, expected), name


@pytest.mark.parametrize(
    "assisted",
    [
        "lookup",
        pytest.param(
            "model",
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.21"),
                reason="before 5.21, transformers reads in chunks what the assistant's cache holds already",
            ),
        ),
    ],
)
@pytest.mark.parametrize("top_k", [None, 1, 3], ids=["greedy", "sampling of one", "sampling of three"])
def test_assisted_text_of_a_prompt_in_chunks(assisted: str, top_k: int | None) -> None:
    """Guards guesses after a prompt that came in pieces, and those that are taken back.

    Which text is sampled depends on the guesses. But each of its tokens must be one that the text before it,
    read without a cache, could be followed by, and with one such token there is one text.
    """
    model, ids = model_of("mixed"), ids_of(1, 6).repeat(1, 4)
    helper = tiny_model(seed=5, tie_word_embeddings=False, num_hidden_layers=1).double()
    guesses = {"prompt_lookup_num_tokens": 4} if assisted == "lookup" else {"assistant_model": helper}
    sampling = {} if top_k is None else {"do_sample": True, "top_k": top_k}
    torch.manual_seed(3)
    out = generated(model, ids, prefill_chunk_size=5, **sampling, **guesses)
    assert out.shape == (1, 14)
    with torch.no_grad():
        scores = model(torch.cat([ids, out], dim=1), use_cache=False).logits[:, ids.shape[1] - 1 : -1]
    likelier = (scores > scores.gather(2, out[..., None])).sum(dim=-1)
    assert (likelier < (top_k or 1)).all()
    # something was sampled where something could be
    assert bool(likelier.any()) == (top_k == 3)
    if top_k != 3:
        assert torch.equal(out, greedy_without_cache(model, ids))


@pytest.fixture
def programs() -> Iterator[list[torch.fx.GraphModule]]:
    """What was compiled during a test."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


@pytest.mark.parametrize("way", ["growing", "static"])
def test_generate_with_a_compiled_model(way: str, programs: list[torch.fx.GraphModule]) -> None:
    """Guards the compiled step where users have it: inside `generate`, with rows that are left-padded."""

    def counted(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        programs.append(graph)
        return aot_eager(graph, inputs)

    model, (ids, mask) = model_of("mixed"), padded([0, 11])
    expected = generated(model, ids, attention_mask=mask, use_cache=False, max_new_tokens=7)
    model.forward = torch.compile(model.forward, backend=counted)  # type: ignore[method-assign]
    out = generated(model, ids, attention_mask=mask, max_new_tokens=7, **WAYS[way])
    assert torch.equal(out, expected)
    count = len(programs)
    assert count > 0
    # another text needs no other programs
    generated(model, ids, attention_mask=mask, max_new_tokens=3, **WAYS[way])
    assert len(programs) == count


def text_without_cache(model: TrisparseForCausalLM, prompt: str, steps: int) -> str:
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return tokenizer.decode(greedy_without_cache(model, ids, steps)[0])


def test_text_pipeline_answers_as_the_model_without_a_cache() -> None:
    """Guards the text of a pipeline, not only that there is one."""
    model = tiny_model(vocab_size=VOCAB_SIZE, pad_token_id=257, tie_word_embeddings=False).double()
    ask = pipeline("text-generation", model=model, tokenizer=byte_tokenizer(), device="cpu")
    prompts = ["Once upon a time", "A", "In the beginning there was"]
    answers = ask(prompts, batch_size=3, max_new_tokens=7, do_sample=False, return_full_text=False)
    texts = [answer[0]["generated_text"] for answer in answers]
    assert texts == [text_without_cache(model, prompt, 7) for prompt in prompts]
