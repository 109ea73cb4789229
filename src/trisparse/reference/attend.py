"""Softmax attention over an explicit set of visible keys, on which all three branches rest."""

import torch
from torch import Tensor

NEGATIVE_INFINITY = float("-inf")


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Spec 9: fp64 for fp64 inputs, fp32 for everything narrower."""
    return torch.promote_types(tensor.dtype, torch.float32)


def per_group(query: Tensor, groups: int) -> Tensor:
    """[B, T, H, D] -> [B, G, M, T, D]: query head h reads group h // M."""
    batch, tokens, heads, dim = query.shape
    return query.reshape(batch, tokens, groups, heads // groups, dim).permute(0, 2, 3, 1, 4)


def masked_softmax(scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and log-sum-exp over the visible entries of the last dimension.

    A row without any gives probabilities 0 and log-sum-exp -inf, with gradient 0: the exponential never
    sees -inf - (-inf).
    """
    scores = scores.masked_fill(~visible, NEGATIVE_INFINITY)
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], NEGATIVE_INFINITY)
    empty = ~visible.any(dim=-1, keepdim=True)
    highest = scores.detach().amax(dim=-1, keepdim=True).masked_fill(empty, 0.0)
    weights = torch.exp(scores - highest)
    total = weights.sum(dim=-1, keepdim=True)
    log_sum_exp = total.masked_fill(empty, 1.0).log() + highest
    log_sum_exp = log_sum_exp.masked_fill(empty, NEGATIVE_INFINITY)
    return weights / total.masked_fill(empty, 1.0), log_sum_exp.squeeze(-1)


def only_seen(tensor: Tensor, visible: Tensor) -> Tensor:
    """Zero the rows of `tensor` [B, N, G, *] that no query sees by `visible` [B or 1, G or 1, Tq, N].

    Spec 10: they must not matter even if they are NaN, and 0 * NaN is NaN, backward too.
    """
    seen = visible.any(dim=-2).movedim(1, 2)
    return torch.where(seen[..., None], tensor, 0.0)


def attention_probabilities(
    query: Tensor, key: Tensor, visible: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 8: softmax(scale * q . k) over the visible keys.

    `query` [B, Tq, H, D], `key` [B, N, G, D], `visible` bool [B or 1, G or 1, Tq, N]
    -> probabilities [B, G, M, Tq, N] and log-sum-exp [B, G, M, Tq], in the compute dtype.
    """
    dtype = compute_dtype(query)
    grouped_query = per_group(query.to(dtype), key.shape[2])
    key = only_seen(key.to(dtype), visible).permute(0, 2, 3, 1)
    scores = grouped_query @ key[:, :, None] * scale
    return masked_softmax(scores, visible[:, :, None].expand_as(scores))


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention output [B, Tq, H, E] and log-sum-exp [B, Tq, H], in the compute dtype.

    `visible` is bool [B or 1, G or 1, Tq, N]. A row that sees nothing gives output 0 and log-sum-exp -inf.
    """
    probabilities, log_sum_exp = attention_probabilities(query, key, visible, scale)
    value = only_seen(value.to(probabilities.dtype), visible).transpose(1, 2)
    out = probabilities @ value[:, :, None]
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3), log_sum_exp.permute(0, 3, 1, 2).flatten(2, 3)
