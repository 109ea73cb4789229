"""Compressed branch, forward: each query row attends the compressed blocks that are complete (spec 1, 2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.band_forward import Band, forward_launch
from trisparse.triton.launch import PinnedTiles, Place, Tile, call_place, pinned, rowwise
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.variants import KernelVariant

# chosen by what compiles without spilling registers, and by the key alone: `compressed_lse`, which knows no
# values, must choose the same tile
TILES: PinnedTiles = {
    "large": ((384, Tile(128, 64, 8, 2)), (float("inf"), Tile(32, 32, 8, 1))),
    "medium": ((384, Tile(128, 64, 8, 2)), (float("inf"), Tile(32, 32, 8, 1))),
    "small": (
        (256, Tile(128, 32, 8, 2)),
        (384, Tile(32, 32, 4, 1)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
}


def block_band(config: SparseConfig) -> Band:
    """A block is complete at its last token, and seen from then on."""
    return Band(config.compress_stride, config.compress_block, None)


def attend_compressed(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, place: Place
) -> None:
    """Fill contiguous `out` [B, Tq, H, E] and `lse` [B, Tq, H]."""
    query, key, value = rowwise(query), rowwise(key), rowwise(value)
    tile = pinned(TILES, key)
    forward_launch(query, key, value, out, lse, place, block_band(place.config), tile).run()


def compressed_lse(query: Tensor, key: Tensor, place: Place) -> Tensor:
    """The `lse` [B, Tq, H] of `attend_compressed` for any value, bit for bit.

    The keys stand in for the values: a kernel without the second product would be free to lay out the scores,
    and with them the order of their sum, in another way.
    """
    out = query.new_empty(query.shape)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    attend_compressed(query, key, key, out, lse, place)
    return lse


def compressed_place(
    query: Tensor,
    key: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Place:
    """The place of a call that has compressed keys only."""
    sizes = {"num_rows": query.shape[1], "query_start": query_start, "num_blocks": key.shape[1]}
    return call_place(config, scale, cu_seqlens, **sizes)


def compressed_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """Spec 2: query [B, Tq, H, D], key [B, C, G, D], value [B, C, G, E].

    Returns:
        out [B, Tq, H, E] in the query's dtype and lse [B, Tq, H], natural, fp32; 0 and -inf for a row that
        sees no block.
    """
    place = compressed_place(query, key, config, scale, cu_seqlens, query_start)
    out, lse = place.new_results(query, value.shape[3])
    attend_compressed(query, key, value, out, lse, place)
    return out, lse


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    blocks = SparseConfig().num_compressed(TOKENS)
    for shape, place, query, key, value in shape_cases(blocks):
        out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        tile = pinned(TILES, key)
        launch = forward_launch(query, key, value, out, lse, place, block_band(place.config), tile)
        yield launch.variant(f"compressed_forward[{shape.label}]", hot=shape.hot)
