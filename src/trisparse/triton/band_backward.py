"""Window and compressed branch, backward: what both do beside their bands."""

import torch
from torch import Tensor

from trisparse.triton.band_forward import Band
from trisparse.triton.band_key_gradient import KEY_TILES, key_gradient
from trisparse.triton.band_query_gradient import QUERY_TILES, query_gradient
from trisparse.triton.launch import Place, pinned, rowwise


def fill_query_gradient(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    partial: Tensor | None,
    grad_query: Tensor,
    place: Place,
    band: Band,
) -> None:
    """Fill `grad_query` as `band_query_gradient.query_gradient` does."""
    grad_out, query, key, value = rowwise(grad_out), rowwise(query), rowwise(key), rowwise(value)
    inputs = query, key, value, grad_out, lse, delta, gate, partial, grad_query
    query_gradient(*inputs, place, band, pinned(QUERY_TILES, key, value)).run()


def key_gradients(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    place: Place,
    band: Band,
    splits: int = 1,
) -> tuple[Tensor, Tensor]:
    """d key and d value; arguments as in `fill_query_gradient`; `splits` programs share a tile."""
    grad_out, query, key, value = rowwise(grad_out), rowwise(query), rowwise(key), rowwise(value)
    inputs = query, key, value, grad_out, lse, delta, gate
    grads = new_gradients(key, value, splits, zero=place.packed is not None)
    key_gradient(*inputs, *grads, place, band, pinned(KEY_TILES, key, value)).run()
    if splits == 1:
        return grads[0][0], grads[1][0]
    return grads[0].sum(dim=0).to(key.dtype), grads[1].sum(dim=0).to(value.dtype)


def new_gradients(key: Tensor, value: Tensor, splits: int, zero: bool) -> tuple[Tensor, Tensor]:
    """[splits, *shape] each; fp32 if they are partial sums."""
    dtype = key.dtype if splits == 1 else torch.float32
    # packed: whatever the bounds leave out has no program
    new = torch.zeros if zero else torch.empty
    grad_key = new(splits, *key.shape, dtype=dtype, device=key.device)
    return grad_key, new(splits, *value.shape, dtype=dtype, device=value.device)
