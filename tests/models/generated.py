"""Texts of tiny models, with and without a cache."""

from typing import Any

import torch
from torch import Tensor

from trisparse.models import TrisparseForCausalLM
from trisparse.models.cache_name import CACHE_NAME

from .tiny import tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "nsa": {},
    "shared": {"shared_kv": True, "compressed_rope": "none"},
    "mixed": {"attention": ["full", "nsa"]},
    "gated_full": {"attention": "gated_full"},
}


def model_of(kind: str = "nsa") -> TrisparseForCausalLM:
    """In fp64, where rounding cannot turn a choice of token; an untied head repeats itself less."""
    return tiny_model(tie_word_embeddings=False, **KINDS[kind]).double()


def generated(model: TrisparseForCausalLM, ids: Tensor, *, cache: Any = None, **settings: Any) -> Tensor:
    """The new tokens alone; `cache` goes under its name in this version of transformers."""
    settings = {"max_new_tokens": 14, "do_sample": False} | settings
    if cache is not None:
        settings[CACHE_NAME] = cache
    settings.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, **settings)[:, ids.shape[1] :]


def greedy_without_cache(model: TrisparseForCausalLM, ids: Tensor, steps: int = 14) -> Tensor:
    """Each step computes the whole text again."""
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(steps):
            scores = model(ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[:, start:]
