"""Compressed branch, backward: d query by tiles of rows, d key and d value by tiles of compressed blocks."""

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.band_backward import fill_query_gradient, key_gradients, new_gradients
from trisparse.triton.band_key_gradient import KEY_TILES, key_gradient
from trisparse.triton.band_query_gradient import QUERY_TILES, query_gradient
from trisparse.triton.combine import row_sums
from trisparse.triton.compressed_forward import block_band, compressed_place
from trisparse.triton.launch import pinned
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.variants import KernelVariant

# all later rows see a block, and there are few tiles of blocks: too few programs to fill a GPU
_ROWS_PER_SPLIT = 1024
_MOST_SPLITS = 8


def num_splits(num_rows: int) -> int:
    """Programs that share the rows of one tile of blocks: depends on the length alone, not on the batch."""
    return max(1, min(_MOST_SPLITS, triton.cdiv(num_rows, _ROWS_PER_SPLIT)))


def compressed_backward(
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
    """The gradients of `compressed_forward`, shaped and typed like query, key, value.

    A block that no row sees gets 0, and so does a row that sees no block.
    """
    place = compressed_place(query, key, config, scale, cu_seqlens, query_start)
    grad_query = place.new_rows(query, *query.shape)
    delta = row_sums(grad_out, out)
    inputs = grad_out, query, key, value, lse.contiguous(), delta, None
    band = block_band(place.config)
    fill_query_gradient(*inputs, None, grad_query, place, band)
    return grad_query, *key_gradients(*inputs, place, band, num_splits(query.shape[1]))


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, place, query, key, value in shape_cases(SparseConfig().num_compressed(TOKENS)):
        grad_out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        band = block_band(place.config)
        inputs = query, key, value, grad_out, lse, lse
        total = query.new_empty(query.shape, dtype=torch.float32)
        for name, gate, out, splits in (("", None, query, 1), (",gated", lse, total, 8)):
            label = f"[{shape.label}{name}]"
            tile = pinned(QUERY_TILES, key, value)
            launch = query_gradient(*inputs, gate, None, out, place, band, tile)
            yield launch.variant(f"compressed_query_gradient{label}", hot=shape.hot)
            tile = pinned(KEY_TILES, key, value)
            grads = new_gradients(key, value, splits, zero=False)
            launch = key_gradient(*inputs, gate, *grads, place, band, tile)
            yield launch.variant(f"compressed_key_gradient{label}", hot=shape.hot)
