"""The model without its head: embedding, pre-norm blocks of attention and SwiGLU."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from trisparse.baselines.full_attention import FullAttention
from trisparse.models.batch import (
    Batch,
    check_embeddings,
    check_ids,
    check_past,
    check_positions,
    check_unused,
    read_documents,
    read_padding,
)
from trisparse.models.cache import (
    TrisparseCacheLayer,
    cache_layers,
    cached_lengths,
    check_state,
    take_back,
)
from trisparse.models.cache_name import CACHE_NAME, one_cache
from trisparse.models.configuration import TrisparseConfig
from trisparse.nn.attention import NativeSparseAttention
from trisparse.nn.cache import BatchCache
from trisparse.nn.compressor import Compressor
from trisparse.nn.gates import Gates
from trisparse.nn.packed import packed_places


def make_attention(config: TrisparseConfig, layer: int) -> NativeSparseAttention | FullAttention:
    """The attention of one layer, as the config says."""
    assert config.head_dim is not None
    sizes = (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    kind = config.attention_of_layers()[layer]
    if kind != "nsa":
        return FullAttention(
            *sizes, value_dim=config.value_head_dim, rope=config.rope(), gated=kind == "gated_full"
        )
    return NativeSparseAttention(
        *sizes,
        value_dim=config.value_head_dim,
        config=config.sparse_config(),
        compressor=config.compressor,  # type: ignore[arg-type]
        shared_kv=config.shared_kv,
        rope=config.rope(),
        compressed_rope=config.compressed_rope,  # type: ignore[arg-type]
        layer=layer,
        recompute=config.recompute,
        backend=config.backend,
    )


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, config: TrisparseConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


# lengths are counted on the host: compiled, every new token would be another program
@torch.compiler.disable
def _attend_cached(attention: nn.Module, hidden: Tensor, batch: Batch, cache: BatchCache) -> Tensor:
    return attention(hidden, cache=cache, padding=batch.padding)


@torch.compiler.disable
def read_cached_batch(
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    shape: Sequence[int],
    layers: list[TrisparseCacheLayer],
) -> Batch:
    """How new tokens of `shape` [B, T, ...] are to be read after those that a cache holds.

    Raises:
        ValueError, TypeError: as TrisparseModel.forward.
    """
    rows, num_tokens = shape[:2]
    lengths = cached_lengths(layers) or [0] * rows
    padding = read_padding(attention_mask, rows, num_tokens, slots=layers[0].slots)
    if len(lengths) != rows:
        raise ValueError(f"past_key_values: expected a batch of {len(lengths)} rows, got {rows}")
    check_past(attention_mask, num_tokens, layers[0].slots, lengths)
    check_positions(position_ids, padding, num_tokens, lengths)
    return Batch(padding=padding)


class Block(GradientCheckpointingLayer):
    """Attention and SwiGLU, each behind an RMS norm and around a residual stream."""

    def __init__(self, config: TrisparseConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = make_attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, hidden: Tensor, batch: Batch, cache: BatchCache | None = None) -> Tensor:
        normed = self.attention_norm(hidden)
        if cache is None:
            mixed = self.attention(normed, padding=batch.padding, packed=batch.packed)
        else:
            mixed = _attend_cached(self.attention, normed, batch, cache)
        return self._finish(hidden, mixed)

    def step(self, hidden: Tensor, cache: BatchCache, starts: Tensor) -> Tensor:
        """One token of each row, as `NativeSparseAttention.step` attends it: [B, 1, hidden_size]."""
        mixed = cast(Any, self.attention).step(self.attention_norm(hidden), cache, starts)
        return self._finish(hidden, mixed)

    def _finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = hidden + mixed
        return hidden + self.mlp(self.mlp_norm(hidden))


class TrisparsePreTrainedModel(PreTrainedModel):
    """What transformers must know about our models."""

    config_class = TrisparseConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = [CACHE_NAME]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Compressor | Gates):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


class TrisparseModel(TrisparsePreTrainedModel):
    """Token ids to hidden states."""

    def __init__(self, config: TrisparseConfig) -> None:
        super().__init__(config)
        # whoever changed a field after the config was made would else get another model without a word
        config.check()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | StaticCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: DynamicCache | StaticCache | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, hidden_size] of `input_ids` [B, T] or `inputs_embeds`.

        Args:
            attention_mask: [B, past + T] or [B, T], left-padded (each row then gives what it gives alone), or
                right-padded where there is no cache.
            position_ids: [B, T] or [1, T]; without a cache, those that restart at 0 mark packed documents.
            past_key_values: `DynamicCache(config=model.config)`, or `StaticCache(config=model.config,
                max_cache_len=n)`; extended in place. A call that fails leaves it as it was.
            cache: the same, under the name that it has in transformers 5.24.
            output_hidden_states: also give the embeddings and what each block makes of them, the last one
                behind the norm: num_hidden_layers + 1 tensors [B, T, hidden_size].
            use_cache: make a cache where none is given. A forward with a cache is inference: its results
                have no gradient, because none could reach the keys and values through the cache.

        Raises:
            ValueError, TypeError: masks, positions or a cache that do not fit, or an argument of transformers
                that means something this model does not do; the message names which.
        """
        check_unused(unused)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        kept: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self._embeddings(input_ids, inputs_embeds)
        held = one_cache(past_key_values, cache)
        if held is None and use_cache:
            held = DynamicCache(config=self.config)
        if held is None:
            batch = self._read_batch(attention_mask, position_ids, hidden)
            output = self._run(hidden, batch, [None] * len(self.layers), kept)
        else:
            layers = cache_layers(held, len(self.layers))
            batch = read_cached_batch(attention_mask, position_ids, hidden.shape, layers)
            output = self._run_cached(hidden, batch, layers, kept)
        return BaseModelOutputWithPast(
            last_hidden_state=output,
            hidden_states=None if kept is None else (*kept, output),
            **{CACHE_NAME: held},
        )

    def _run(
        self, hidden: Tensor, batch: Batch, caches: list[BatchCache | None], kept: list[Tensor] | None
    ) -> Tensor:
        """Hidden states [B, T, hidden_size] through all blocks; `kept` takes those before each."""
        shape = hidden.shape
        if batch.packed is not None:
            hidden = hidden.flatten(0, 1)[None]
        for block, cache in zip(self.layers, caches, strict=True):
            if kept is not None:
                kept.append(hidden.view(shape))
            hidden = block(hidden, batch, cache)
        return self.norm(hidden).view(shape)

    def _run_cached(
        self, hidden: Tensor, batch: Batch, layers: list[TrisparseCacheLayer], kept: list[Tensor] | None
    ) -> Tensor:
        """`_run` that leaves the cache as it was if it fails, at an interruption for example."""
        states = self._states(layers)
        lengths = cached_lengths(layers)
        try:
            with torch.no_grad():
                output = self._run(hidden, batch, states, kept)
        except BaseException:
            take_back(layers, lengths)
            raise
        for layer in layers:
            layer.slots += hidden.shape[1]
        return output

    def _embeddings(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Those that are given, or those of the ids."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids: expected either input_ids or inputs_embeds")
        if input_ids is None:
            check_embeddings(inputs_embeds, self.embed_tokens.weight)
            return cast(Tensor, inputs_embeds)
        check_ids(input_ids)
        return self.embed(input_ids)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings, after a check that costs nothing on a CPU."""
        if input_ids.device.type == "cpu" and input_ids.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in input_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                wrong = (input_ids < 0) | (input_ids >= self.config.vocab_size)
                place = wrong.nonzero()[0].tolist()
                raise ValueError(
                    f"input_ids: expected ids below vocab_size={self.config.vocab_size}, "
                    f"got {int(input_ids[tuple(place)])} at {place}"
                )
        return self.embed_tokens(input_ids)

    def _read_batch(
        self, attention_mask: Tensor | None, position_ids: Tensor | None, hidden: Tensor
    ) -> Batch:
        rows, num_tokens = hidden.shape[:2]
        padding = read_padding(attention_mask, rows, num_tokens, slots=None)
        if padding is not None:
            check_positions(position_ids, padding, num_tokens, [0] * rows)
            return Batch(padding=padding)
        bounds = read_documents(position_ids, rows, num_tokens)
        if bounds is None:
            return Batch()
        return Batch(packed=packed_places(bounds, rows * num_tokens, self.config.sparse_config()))

    @torch.compiler.disable
    def _states(self, layers: list[TrisparseCacheLayer]) -> list[BatchCache | None]:
        """The decode states of the layers, made at their first use."""
        attentions = [cast(Block, block).attention for block in self.layers]
        # all are looked at before any is filled
        for index, (layer, attention) in enumerate(zip(layers, attentions, strict=True)):
            check_state(layer, attention.new_cache(), index)
        for layer, attention in zip(layers, attentions, strict=True):
            if layer.state is None:
                layer.state = self._new_state(attention, layer.capacity)
            layer.together = layers
        return [layer.state for layer in layers]

    def _new_state(
        self, attention: NativeSparseAttention | FullAttention, capacity: int | None
    ) -> BatchCache:
        if isinstance(attention, NativeSparseAttention):
            return attention.new_cache(capacity, self.config.max_rollback)
        return attention.new_cache(capacity)
