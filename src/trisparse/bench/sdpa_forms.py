"""The ways to put a decode step to PyTorch's `scaled_dot_product_attention`; which is fastest depends."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# (query [B, n, H, D], key [B, G, T, D], value [B, G, T, >= E], visible [B, 1, n, T] or None, E)
Form = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Callable[[], Tensor]]


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, value_dim: int
) -> Callable[[], Tensor]:
    """Heads as heads, groups by `enable_gqa`."""

    def call() -> Tensor:
        out = scaled_dot_product_attention(
            query.transpose(1, 2), key, value, attn_mask=visible, enable_gqa=True
        )
        return out.transpose(1, 2)[..., :value_dim]

    return call


def _folded(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, value_dim: int
) -> Callable[[], Tensor]:
    """The heads of a group as rows of one head: each key is read once for all of them."""
    groups, new_tokens = key.shape[1], query.shape[1]
    mask = None if visible is None else visible.repeat(1, 1, query.shape[2] // groups, 1)

    def call() -> Tensor:
        rows = query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = scaled_dot_product_attention(rows, key, value, attn_mask=mask)
        by_head = out[..., :value_dim].unflatten(2, (-1, new_tokens))
        return by_head.permute(0, 3, 1, 2, 4).flatten(2, 3)

    return call


def _repeated(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, value_dim: int
) -> Callable[[], Tensor]:
    """Groups as rows of the batch, whose one key head is repeated by a view."""
    batch, groups = key.shape[:2]
    mask = None if visible is None else visible.repeat_interleave(groups, dim=0)

    def call() -> Tensor:
        heads = query.transpose(1, 2).unflatten(1, (groups, -1)).flatten(0, 1)
        size = (-1, heads.shape[1], -1, -1)
        keys, values = key.flatten(0, 1)[:, None].expand(size), value.flatten(0, 1)[:, None].expand(size)
        out = scaled_dot_product_attention(heads, keys, values, attn_mask=mask)
        return out[..., :value_dim].unflatten(0, (batch, groups)).flatten(1, 2).transpose(1, 2)

    return call


FORMS: dict[str, Form] = {"grouped": _grouped, "folded": _folded, "repeated": _repeated}
# rows of different length may also be called one by one, without a mask: name -> the form of each call
RAGGED_FORMS = {f"{name} row by row": name for name in FORMS}


def row_by_row(calls: Sequence[Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """One call after the other; the batch of their results."""
    return lambda: torch.cat([call() for call in calls])
