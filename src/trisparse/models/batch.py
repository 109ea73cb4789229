"""What the masks and positions of transformers mean for our layers: padding per row, or packed documents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from trisparse import validate
from trisparse.nn.packed import PackedPlaces

# what an embedding, or a comparison with numbers of tokens, takes
_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How the rows of a batch are to be read.

    Attributes:
        padding: left-padding tokens of each row, None if there are none.
        packed: where the documents of the flattened batch lie, None if every row is one document.
    """

    padding: list[int] | None = None
    packed: PackedPlaces | None = None


def _check_integers(name: str, value: Any) -> None:
    validate.any_tensor(name, value)
    if value.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected int64 or int32, got {value.dtype}")


def check_ids(input_ids: Any) -> None:
    """`input_ids` is [B, T] of integers; what they are is looked at elsewhere."""
    _check_integers("input_ids", input_ids)
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids: expected [B, T], got {list(input_ids.shape)}")


def check_embeddings(inputs_embeds: Any, like: Tensor) -> None:
    """`inputs_embeds` is [B, T, hidden_size] in the dtype of the weights `like` [V, hidden_size]."""
    validate.any_tensor("inputs_embeds", inputs_embeds)
    if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != like.shape[1]:
        raise ValueError(f"inputs_embeds: expected [B, T, {like.shape[1]}], got {list(inputs_embeds.shape)}")
    # autocast casts both to its own dtype
    casts = torch.is_autocast_enabled(inputs_embeds.device.type) and inputs_embeds.is_floating_point()
    if inputs_embeds.dtype != like.dtype and not casts:
        raise TypeError(f"inputs_embeds: expected {like.dtype}, got {inputs_embeds.dtype}")


def check_labels(labels: Any, tokens: Tensor | None) -> None:
    """`labels` is [B, T] of int64, as `tokens` [B, T, ...] are."""
    validate.any_tensor("labels", labels)
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected int64, got {labels.dtype}")
    if isinstance(tokens, Tensor) and labels.shape != tokens.shape[:2]:
        raise ValueError(f"labels: expected {list(tokens.shape[:2])}, got {list(labels.shape)}")


def _check_position_shape(position_ids: Any, batch: int, num_tokens: int) -> None:
    _check_integers("position_ids", position_ids)
    shape = list(position_ids.shape)
    if shape not in ([1, num_tokens], [batch, num_tokens]):
        rows = "1" if batch == 1 else f"1 or {batch}"
        raise ValueError(f"position_ids: expected [{rows}, {num_tokens}], got {shape}")


def read_padding(
    attention_mask: Tensor | None, batch: int, num_tokens: int, slots: int | None
) -> list[int] | None:
    """Left-padding tokens among the last `num_tokens` of each row of a mask [B, T] or [B, slots + T].

    `slots` are those of a cache, None without one: right padding then means nothing to a causal model and
    counts as none.

    Raises:
        TypeError: a mask that is no tensor.
        ValueError: a mask that is not 2-D, of another batch size or width, or neither left- nor right-padded.
    """
    if attention_mask is None:
        return None
    validate.any_tensor("attention_mask", attention_mask)
    widths = {num_tokens} if slots is None else {num_tokens, slots + num_tokens}
    wrong = attention_mask.dim() != 2 or len(attention_mask) != batch
    if wrong or attention_mask.shape[1] not in widths:
        past = f"{slots} + " if slots else ""
        raise ValueError(
            f"attention_mask: expected [{batch}, {past}{num_tokens}], got {list(attention_mask.shape)}; "
            "sparse attention takes no dense mask"
        )
    has_cache = slots is not None
    mask = attention_mask[:, attention_mask.shape[1] - num_tokens :].bool()
    if bool(mask.all()):
        return None
    falls = (mask[:, :-1] & ~mask[:, 1:]).any(dim=1)
    rises = (~mask[:, :-1] & mask[:, 1:]).any(dim=1)
    if bool((falls & (rises | has_cache)).any()):
        wanted = "left padding" if has_cache else "left or right padding"
        way_out = "; pass use_cache=False for right padding" if has_cache else ""
        raise ValueError(f"attention_mask: expected {wanted}, got a mask that falls from 1 to 0{way_out}")
    counts = torch.where(falls, 0, (~mask).sum(dim=1)).tolist()
    return counts if any(counts) else None


def check_past(attention_mask: Tensor | None, num_tokens: int, slots: int, lengths: list[int]) -> None:
    """A mask [B, slots + T] must say of the past what the cache holds: rows of `lengths` tokens.

    Raises:
        ValueError: it hides tokens that are in the cache, or shows padding.
    """
    if attention_mask is None or attention_mask.shape[1] != slots + num_tokens:
        return
    shown = attention_mask[:, :slots].bool().sum(dim=1).tolist()
    if shown != lengths:
        raise ValueError(
            f"attention_mask: expected as many ones before the new tokens as the cache holds, {lengths}, "
            f"got {shown}"
        )


def read_documents(position_ids: Tensor | None, batch: int, num_tokens: int) -> Tensor | None:
    """Bounds of the documents that restarting positions [B or 1, T] mark, None if no row holds two.

    Raises:
        TypeError: positions that are no tensor of integers.
        ValueError: positions of another shape, or that do not count up by one from 0 in every document.
    """
    if position_ids is None:
        return None
    _check_position_shape(position_ids, batch, num_tokens)
    if num_tokens == 0:
        return None
    flat = position_ids.expand(batch, num_tokens).flatten()
    starts = flat == 0
    consecutive = starts.clone()
    consecutive[1:] |= flat[1:] == flat[:-1] + 1
    rows_start = starts[::num_tokens]
    if not bool(consecutive.all()) or not bool(rows_start.all()):
        raise ValueError(
            "position_ids: expected positions that count from 0 and restart at 0 in each document"
        )
    if int(starts.sum()) == batch:
        return None
    bounds = starts.nonzero().flatten()
    return torch.cat([bounds, bounds.new_tensor([flat.numel()])]).to(torch.int32)


def check_positions(
    position_ids: Tensor | None, padding: list[int] | None, num_tokens: int, lengths: list[int]
) -> None:
    """Positions [B or 1, T] beside a cache or padding must be those of the tokens after `lengths` tokens.

    Raises:
        TypeError: they are no tensor of integers.
        ValueError: they are of another shape, go backwards, skip tokens, or belong to another cache.
    """
    if position_ids is None:
        return
    _check_position_shape(position_ids, len(lengths), num_tokens)
    skips = padding or [0] * len(lengths)
    rows = position_ids.expand(len(lengths), -1).tolist()
    for row, skip, length in zip(rows, skips, lengths, strict=True):
        if row[skip:] != list(range(length, length + len(row) - skip)):
            raise ValueError(
                f"position_ids: expected positions from {length} on, got {row[skip:]}; packed documents take "
                "no cache (use_cache=False) and no padding, and assisted decoding an empty cache"
            )


def check_unused(arguments: dict[str, Any]) -> None:
    """Refuse arguments of transformers that would change a result, and that our models do not heed.

    Raises:
        ValueError: attention matrices are asked for, packed documents are marked by their lengths, or a
            cache comes under a name that we do not know.
    """
    for name, value in arguments.items():
        if isinstance(value, Cache):
            # to pass it by would be a text without its beginning
            raise ValueError(f"{name}: expected no cache under this name; use past_key_values or cache")
    if arguments.get("output_attentions"):
        raise ValueError(
            "output_attentions: expected False, got True; sparse attention makes no matrix of attentions"
        )
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if arguments.get(name) is not None:
            raise ValueError(
                f"{name}: expected none; mark packed documents by position_ids that restart at 0"
            )
