"""`generate` through the native kernels, in fp32: every new token is one that the whole text would choose."""

from typing import Any

import pytest
import torch
from operators import Operators
from torch import Tensor

from trisparse.models import TrisparseForCausalLM
from trisparse.testing.inputs import usable_backends

from .generated import KINDS
from .tiny import ids_of, tiny_model

pytestmark = pytest.mark.skipif("cpu" not in usable_backends(), reason="the CPU kernels cannot run here")

PROMPT, NEW = 37, 14
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "in chunks": {"prefill_chunk_size": 8},
    "static": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 5},
    "one beam of several": {"num_beams": 3, "num_return_sequences": 1, "length_penalty": 0.0},
    "sampling": {"do_sample": True, "top_k": 3},
    "assistant model": {},
    "sampling with an assistant model": {"do_sample": True, "top_k": 3},
}


def kernel_model(kind: str) -> TrisparseForCausalLM:
    return tiny_model(tie_word_embeddings=False, backend="cpu", **KINDS[kind])


def settings_of(mode: str) -> dict[str, Any]:
    """What `generate` is called with; an assistant goes through the kernels too."""
    settings = {"max_new_tokens": NEW, "do_sample": False} | MODES[mode]
    if "assistant" in mode:
        helper = tiny_model(seed=5, tie_word_embeddings=False, backend="cpu", num_hidden_layers=1)
        helper.generation_config.assistant_confidence_threshold = 0.0
        settings["assistant_model"] = helper
    return settings


def log_probabilities(
    model: TrisparseForCausalLM, tokens: Tensor, skip: int = 0, rank: int = 1
) -> tuple[Tensor, Tensor]:
    """Of the new tokens and of the best ones, or the `rank`-th best, without a cache: [rows, NEW] each."""
    with torch.no_grad():
        logits = model(tokens[:, skip:-1], use_cache=False).logits[:, PROMPT - skip - 1 :].log_softmax(dim=-1)
    chosen = logits.gather(2, tokens[:, PROMPT:, None])[..., 0]
    return chosen, logits.topk(rank).values[..., -1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["nsa", "shared", "mixed"])
def test_new_tokens_are_those_of_the_whole_text(kind: str, mode: str) -> None:
    """Guards each way to generate: it finds what is as likely as what a greedy one without a cache finds.

    What is sampled is one of the three likeliest tokens of the whole text.
    """
    model, prompt, settings = kernel_model(kind), ids_of(1, PROMPT), settings_of(mode)
    torch.manual_seed(0)
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    chosen, best = log_probabilities(model, tokens, rank=settings.get("top_k", 1))
    if "num_beams" in settings:
        # not the best at each step, but no less likely as a whole than the greedy text
        greedy = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False
        )
        assert chosen.sum() >= log_probabilities(model, greedy)[0].sum() - 1e-3
    else:
        assert (chosen >= best - 1e-4).all()


def test_left_padded_rows_are_those_of_the_text_alone() -> None:
    """Guards rows of different length in one batch of the decode kernels."""
    model, prompt, skips = kernel_model("nsa"), ids_of(3, PROMPT), [0, 5, 30]
    mask = (torch.arange(PROMPT) >= torch.tensor(skips)[:, None]).long()
    tokens = model.generate(prompt * mask, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    for row, skip in enumerate(skips):
        chosen, best = log_probabilities(model, tokens[row : row + 1], skip)
        assert (chosen >= best - 1e-4).all()


@pytest.mark.parametrize("mode", MODES)
def test_generation_goes_through_the_decode_kernels(mode: str) -> None:
    """Guards against a model that falls back on full attention, or on the whole forward for each token."""
    model, prompt, settings = kernel_model("nsa"), ids_of(1, PROMPT), settings_of(mode)
    with Operators() as operators:
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **(settings | {"max_new_tokens": 5}))
    ours = {name for name in operators.calls if name.startswith("trisparse.")}
    assert ours == {"trisparse.decode_forward.default"}
    assert not any("scaled_dot_product" in name for name in operators.calls)
