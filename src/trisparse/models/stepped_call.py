"""How `generate` calls a model where shapes are static: one more token by one program, all else as ever."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisparse.invariance import is_batch_invariant
from trisparse.models.cache import cache_layers
from trisparse.models.modeling import read_cached_batch
from trisparse.models.token_step import TokenStep
from trisparse.nn.probe import current_record

if TYPE_CHECKING:
    from trisparse.models.causal_lm import TrisparseForCausalLM

# what a step heeds, and what means nothing for one token
_HEEDED = ("input_ids", "attention_mask", "position_ids", "past_key_values")
_MEANINGLESS = ("use_cache", "logits_to_keep", "return_dict")


class SteppedCall:
    """`model(**inputs)`, by a `TokenStep` where it takes one more token of a static cache.

    For the calls of one `generate`: until its end, weights and modules must stay what and where they are.
    """

    def __init__(self, model: "TrisparseForCausalLM") -> None:
        self._model = model
        self._cache: StaticCache | None = None
        self._step: TokenStep | None = None
        # a step passes by the calls of modules, and a graph knows one device
        hooked = any(_has_hooks(module) for module in model.modules())
        self._can_step = not hooked and len({weight.device for weight in model.parameters()}) == 1

    def __call__(self, **inputs: Any) -> CausalLMOutputWithPast:
        """As TrisparseForCausalLM.forward."""
        if not (self._can_step and self._is_one_token(inputs)) or self._is_watched():
            return self._model(**inputs)
        ids, cache = inputs["input_ids"], inputs["past_key_values"]
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        layers = cache_layers(cache, self._model.config.num_hidden_layers)
        if read_cached_batch(mask, positions, ids.shape, layers).padding is not None:
            return self._model(**inputs)
        if self._step is None or self._cache is not cache:
            self._cache, self._step = cache, TokenStep(self._model, cache)
        return CausalLMOutputWithPast(logits=self._step(ids)[:, None], past_key_values=cache)

    def _is_one_token(self, inputs: dict[str, Any]) -> bool:
        """One more token of each row, and nothing asked for but its logits."""
        ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        if not isinstance(cache, StaticCache) or not cache.get_seq_length():
            return False
        others = [inputs[name] for name in inputs if name not in _HEEDED + _MEANINGLESS]
        asks = isinstance(inputs.get("logits_to_keep"), torch.Tensor)
        asks |= any(value is not None and value is not False for value in others)
        return isinstance(ids, torch.Tensor) and ids.dim() == 2 and ids.shape[1] == 1 and not asks

    def _is_watched(self) -> bool:
        """Whether something looks at, or changes, what a captured step does once and for all."""
        casts = torch.is_autocast_enabled(self._model.device.type)
        states = self._model.config.output_hidden_states
        return casts or states or is_batch_invariant() or current_record() is not None


def _has_hooks(module: torch.nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))
