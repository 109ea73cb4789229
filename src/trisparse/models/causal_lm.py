"""The language model: TrisparseModel and its head, tied or untied, with `generate`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from trisparse.models.batch import check_labels, check_unused
from trisparse.models.cache_name import CACHE_NAME, one_cache
from trisparse.models.configuration import TrisparseConfig
from trisparse.models.modeling import TrisparseModel, TrisparsePreTrainedModel
from trisparse.models.stepped_call import SteppedCall


class TrisparseForCausalLM(TrisparsePreTrainedModel, GenerationMixin):
    """Token ids to next-token logits, with `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TrisparseConfig) -> None:
        super().__init__(config)
        self.model = TrisparseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | StaticCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        cache: DynamicCache | StaticCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As TrisparseModel.forward; `labels` [B, T] add the mean loss in nats.

        Labels are shifted inside, and -100 is ignored. `kwargs` are for the loss.
        `logits_to_keep` n > 0 computes logits for the last n tokens only.
        """
        check_unused(kwargs)
        if labels is not None:
            # before a cache has taken the tokens
            check_labels(labels, input_ids if input_ids is not None else inputs_embeds)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not torch.is_grad_enabled()
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=one_cache(past_key_values, cache),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        filled = getattr(outputs, CACHE_NAME)
        with torch.set_grad_enabled(torch.is_grad_enabled() and filled is None):
            logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            size = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE_NAME: filled},
        )

    def get_compiled_call(self, compile_config: Any = None) -> Callable[..., Any]:  # noqa: ARG002
        """What `generate` calls with a StaticCache on a GPU: each step is a captured one.

        transformers would compile the whole call. `compile_config` means nothing here; with
        `disable_compile=True`, generate does without. A subclass with another forward is called as it is.
        """
        ours = type(self).forward is TrisparseForCausalLM.forward
        return SteppedCall(self) if ours and self.device.type in ("cuda", "cpu") else self.__call__

    def create_masks_for_generate(
        self,
        *,
        attention_mask: Tensor | None = None,
        **unused: Any,  # noqa: ARG002
    ) -> Tensor | None:
        """The mask [B, T] itself: nothing here reads a dense one."""
        return attention_mask
