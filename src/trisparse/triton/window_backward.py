"""Window branch, backward: d query by tiles of rows, d key and d value by tiles of tokens."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.band_backward import fill_query_gradient, key_gradients
from trisparse.triton.band_key_gradient import KEY_TILES, key_gradient
from trisparse.triton.band_query_gradient import QUERY_TILES, query_gradient
from trisparse.triton.combine import row_sums
from trisparse.triton.launch import call_place, pinned
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.variants import KernelVariant
from trisparse.triton.window_forward import token_band


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
    sizes = {"num_rows": query.shape[1], "query_start": query_start, "num_tokens": key.shape[1]}
    place = call_place(config, scale, cu_seqlens, **sizes)
    grad_query = place.new_rows(query, *query.shape)
    delta = row_sums(grad_out, out)
    inputs = grad_out, query, key, value, lse.contiguous(), delta, None
    band = token_band(place.config)
    fill_query_gradient(*inputs, None, grad_query, place, band)
    return grad_query, *key_gradients(*inputs, place, band)


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
