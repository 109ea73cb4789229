"""Window branch, forward: each query row attends the last `window` tokens, its own included (spec 6)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.band_forward import Band, forward_launch
from trisparse.triton.launch import PinnedTiles, Place, Tile, call_place, pinned, rowwise
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.variants import KernelVariant

# chosen by what compiles without spilling registers
TILES: PinnedTiles = {
    "large": ((640, Tile(128, 64, 8, 2)), (float("inf"), Tile(32, 32, 8, 1))),
    "medium": ((640, Tile(128, 64, 8, 2)), (float("inf"), Tile(32, 32, 8, 1))),
    "small": (
        (512, Tile(128, 32, 8, 2)),
        (640, Tile(32, 32, 4, 1)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
}


def token_band(config: SparseConfig) -> Band:
    """A token is complete at its own position, and seen for `window` positions."""
    return Band(1, 1, config.window)


def attend_window(query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, place: Place) -> None:
    """Fill contiguous `out` [B, Tq, H, E] and `lse` [B, Tq, H]."""
    query, key, value = rowwise(query), rowwise(key), rowwise(value)
    tile = pinned(TILES, key, value)
    forward_launch(query, key, value, out, lse, place, token_band(place.config), tile).run()


def window_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """Spec 6: query [B, Tq, H, D], key [B, T, G, D], value [B, T, G, E].

    Returns:
        out [B, Tq, H, E] in the query's dtype and lse [B, Tq, H], natural, fp32; 0 and -inf for a row that
        sees no token.
    """
    sizes = {"num_rows": query.shape[1], "query_start": query_start, "num_tokens": key.shape[1]}
    place = call_place(config, scale, cu_seqlens, **sizes)
    out, lse = place.new_results(query, value.shape[3])
    attend_window(query, key, value, out, lse, place)
    return out, lse


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, place, query, key, value in shape_cases(TOKENS):
        out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        tile = pinned(TILES, key, value)
        launch = forward_launch(query, key, value, out, lse, place, token_band(place.config), tile)
        yield launch.variant(f"window_forward[{shape.label}]", hot=shape.hot)
