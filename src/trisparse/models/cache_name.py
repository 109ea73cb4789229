"""Under which name a model is handed its cache: transformers calls it `cache` from 5.24 on."""

from inspect import signature
from typing import Any

from transformers import GenerationMixin

_OLD, _NEW = "past_key_values", "cache"
# what this version's `generate` takes and gives, and its outputs hold
CACHE_NAME = _NEW if _NEW in signature(GenerationMixin.prepare_inputs_for_generation).parameters else _OLD


def one_cache(past_key_values: Any, cache: Any) -> Any:
    """The cache that came under either name, or None.

    Raises:
        ValueError: it came under both.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError(f"cache: expected none beside past_key_values; use {CACHE_NAME} alone")
    return cache if past_key_values is None else past_key_values
