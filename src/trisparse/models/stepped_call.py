"""How `generate` calls a model where shapes are static: one more token by one program, all else as ever."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisparse.baselines.full_attention import FullAttention
from trisparse.invariance import is_batch_invariant
from trisparse.models.cache import cache_layers
from trisparse.models.cache_name import CACHE_NAME, one_cache
from trisparse.models.modeling import Block, TrisparseModel, read_cached_batch
from trisparse.models.token_step import TokenStep, has_kernels
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.probe import current_record

if TYPE_CHECKING:
    from trisparse.models.causal_lm import TrisparseForCausalLM

# what a step heeds, and what means nothing for one token
_HEEDED = ("input_ids", "attention_mask", "position_ids", "past_key_values", "cache")
_MEANINGLESS = ("use_cache", "logits_to_keep", "return_dict")
# one-token calls of a cache before the first captured one: a capture takes as long as some of them
_PLAIN_CALLS = 2
# modules whose own calls a step passes by
_PASSED_BY = (TrisparseModel, Block, NativeSparseAttention, FullAttention)


class SteppedCall:
    """`model(**inputs)`, by a `TokenStep` where it takes one more token of a static cache.

    For the calls of one `generate`: until its end, weights and modules must stay what and where they are.
    """

    def __init__(self, model: "TrisparseForCausalLM") -> None:
        self._model = model
        self._cache: StaticCache | None = None
        self._step: TokenStep | None = None
        self._plain_calls = 0
        one_device = len({weight.device for weight in model.parameters()}) == 1
        self._can_step = one_device and has_kernels(model) and not _is_altered(model)

    def __call__(self, **inputs: Any) -> CausalLMOutputWithPast:
        """As TrisparseForCausalLM.forward."""
        cache = one_cache(inputs.get("past_key_values"), inputs.get("cache"))
        if not (self._can_step and _is_one_token(inputs, cache)) or self._is_watched():
            return self._model(**inputs)
        ids = inputs["input_ids"]
        if self._cache is not cache:
            self._cache, self._step, self._plain_calls = cache, None, 0
        if self._plain_calls < _PLAIN_CALLS:
            self._plain_calls += 1
            return self._model(**inputs)
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        layers = cache_layers(cache, self._model.config.num_hidden_layers)
        if read_cached_batch(mask, positions, ids.shape, layers).padding is not None:
            return self._model(**inputs)
        logits = self._stepped(ids, cache)
        if logits is None:
            return self._model(**inputs)
        return CausalLMOutputWithPast(logits=logits[:, None], **{CACHE_NAME: cache})

    @property
    def is_stepping(self) -> bool:
        """Whether single tokens of the cache at hand go through a step by now."""
        return self._step is not None

    def _stepped(self, ids: torch.Tensor, cache: StaticCache) -> torch.Tensor | None:
        """Logits [B, V]; None, once and for all, where a step cannot be captured."""
        if self._step is not None and self._step.num_rows == len(ids):
            return self._step(ids)
        step = TokenStep(self._model, cache)
        try:
            logits = step(ids)
        except RuntimeError as error:
            # a module that was put into the model may wait for its device; the cache is as it was
            warnings.warn(f"generate: steps are not captured, for one failed: {error}", stacklevel=2)
            self._can_step = False
            return None
        self._step = step
        return logits

    def _is_watched(self) -> bool:
        """Whether something looks at, or changes, what a captured step does once and for all."""
        casts = torch.is_autocast_enabled(self._model.device.type)
        states = self._model.config.output_hidden_states
        return casts or states or is_batch_invariant() or current_record() is not None


def _is_one_token(inputs: dict[str, Any], cache: Any) -> bool:
    """One more token of each row, and nothing asked for but its logits."""
    if not isinstance(cache, StaticCache) or not cache.get_seq_length():
        return False
    ids = inputs.get("input_ids")
    others = [inputs[name] for name in inputs if name not in _HEEDED + _MEANINGLESS]
    asks = isinstance(inputs.get("logits_to_keep"), torch.Tensor) or inputs.get("return_dict") is False
    asks |= any(value is not None and value is not False for value in others)
    return isinstance(ids, torch.Tensor) and ids.dim() == 2 and ids.shape[1] == 1 and not asks


def _is_altered(model: torch.nn.Module) -> bool:
    """Whether calls of the model, or in it, do more than our code says: a step would leave that out."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)
        or (isinstance(module, _PASSED_BY) and type(module) not in _PASSED_BY)
        for module in model.modules()
    )
