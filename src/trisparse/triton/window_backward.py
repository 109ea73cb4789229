"""Window branch, backward: d query by tiles of rows, d key and d value by tiles of tokens."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.band_key_gradient import KEY_TILES, key_gradient
from trisparse.triton.band_query_gradient import QUERY_TILES, query_gradient
from trisparse.triton.combine import row_sums
from trisparse.triton.launch import Place, pinned, rowwise
from trisparse.triton.sequences import packed_sequences
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.variants import KernelVariant
from trisparse.triton.window_forward import token_band


def window_query_gradient(
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
) -> None:
    """Fill `grad_query` as `band_query_gradient.query_gradient` does."""
    grad_out, query, key, value = rowwise(grad_out), rowwise(query), rowwise(key), rowwise(value)
    inputs = query, key, value, grad_out, lse, delta, gate, partial, grad_query
    query_gradient(*inputs, place, token_band(place.config), pinned(QUERY_TILES, key, value)).run()


def window_key_gradients(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    place: Place,
) -> tuple[Tensor, Tensor]:
    """d key and d value; the arguments are those of `window_query_gradient`."""
    grad_out, query, key, value = rowwise(grad_out), rowwise(query), rowwise(key), rowwise(value)
    inputs = query, key, value, grad_out, lse, delta, gate
    # packed: whatever the bounds leave out has no program
    new = torch.empty if place.packed is None else torch.zeros
    grad_key = new(1, *key.shape, dtype=key.dtype, device=key.device)
    grad_value = new(1, *value.shape, dtype=value.dtype, device=value.device)
    band, tile = token_band(place.config), pinned(KEY_TILES, key, value)
    key_gradient(*inputs, grad_key, grad_value, place, band, tile).run()
    return grad_key[0], grad_value[0]


def window_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `window_forward`, shaped and typed like query, key, value.

    A token that no row sees gets 0.
    """
    packed = packed_sequences(
        cu_seqlens, config, num_rows=query.shape[1], query_start=query_start, num_tokens=key.shape[1]
    )
    place = Place(config=config, scale=scale, query_start=query_start, packed=packed)
    grad_query = query.new_empty(query.shape)
    delta = row_sums(grad_out, out)
    inputs = grad_out, query, key, value, lse.contiguous(), delta, None
    window_query_gradient(*inputs, None, grad_query, place)
    return grad_query, *window_key_gradients(*inputs, place)


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, place, query, key, value in shape_cases(TOKENS):
        grad_out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        band = token_band(place.config)
        inputs = query, key, value, grad_out, lse, lse
        total = query.new_empty(query.shape, dtype=torch.float32)
        for name, gate, partial in (("", None, None), (",gated", lse, total)):
            label = f"[{shape.label}{name}]"
            tile = pinned(QUERY_TILES, key, value)
            launch = query_gradient(*inputs, gate, partial, query, place, band, tile)
            yield launch.variant(f"window_query_gradient{label}", hot=shape.hot)
            tile = pinned(KEY_TILES, key, value)
            launch = key_gradient(*inputs, gate, key[None], value[None], place, band, tile)
            yield launch.variant(f"window_key_gradient{label}", hot=shape.hot)
