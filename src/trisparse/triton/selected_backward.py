"""Selected branch, backward: d query by tiles of query tokens, d key and d value by blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.block_index import BlockIndex, invert, usable_ids, used_slots
from trisparse.triton.combine import row_sums
from trisparse.triton.launch import PinnedTiles, Place, Tile, pinned, rowwise
from trisparse.triton.selected_forward import selected_place
from trisparse.triton.selected_key_gradient import PIECE_ROWS, Pieces, add_pieces, key_gradient, split
from trisparse.triton.selected_query_gradient import query_gradient
from trisparse.triton.selection_primitives import empty_visits, token_tile, visits_of
from trisparse.triton.shapes import TOKENS, shape_cases
from trisparse.triton.variants import KernelVariant

# most rows and keys of a step, chosen by what compiles without spilling
QUERY_TILES: PinnedTiles = {
    "large": ((512, Tile(64, 64, 4, 2)), (640, Tile(64, 64, 8, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "medium": ((512, Tile(64, 32, 4, 2)), (640, Tile(64, 64, 8, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "small": ((512, Tile(64, 32, 4, 1)), (640, Tile(32, 32, 4, 1)), (float("inf"), Tile(16, 32, 8, 1))),
}
# (row, head) entries of a step and tokens of a block; 16 tokens for each warp, see `band_key_gradient.py`
KEY_TILES: PinnedTiles = {
    "large": (
        (256, Tile(64, 64, 4, 2)),
        (512, Tile(32, 64, 4, 2)),
        (640, Tile(16, 64, 4, 2)),
        (float("inf"), Tile(32, 32, 8, 1)),
    ),
    "medium": ((512, Tile(32, 64, 4, 2)), (640, Tile(16, 64, 4, 2)), (float("inf"), Tile(32, 32, 8, 1))),
    "small": ((512, Tile(32, 64, 4, 2)), (640, Tile(16, 64, 4, 2)), (float("inf"), Tile(32, 32, 8, 1))),
}


def selected_query_gradient(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    partial: Tensor | None,
    grad_query: Tensor,
    place: Place,
) -> None:
    """Fill `grad_query` as `selected_query_gradient.query_gradient` does; `ids` ascend, -1 last."""
    grad_out, query, key, value = rowwise(grad_out), rowwise(query), rowwise(key), rowwise(value)
    ids = used_slots(ids, place)
    tokens, tile = token_tile(query, key, ids, pinned(QUERY_TILES, key, value))
    inputs = query, key, value, grad_out, lse, delta, gate, partial, grad_query
    query_gradient(*inputs, visits_of(ids, tokens, place), place, tokens, tile).run()


def selected_key_gradients(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    place: Place,
    piece_rows: int = PIECE_ROWS,
) -> tuple[Tensor, Tensor]:
    """d key and d value; the arguments are those of `selected_query_gradient`.

    A list of more than `piece_rows` rows is split.
    """
    grad_out, query, key, value = rowwise(grad_out), rowwise(query), rowwise(key), rowwise(value)
    inputs = query, key, value, grad_out, lse, delta, gate
    # packed: whatever the bounds leave out has no program
    new = torch.empty if place.packed is None else torch.zeros
    grad_key = new(key.shape, dtype=key.dtype, device=key.device)
    grad_value = new(value.shape, dtype=value.dtype, device=value.device)
    index = invert(used_slots(ids, place), place, key.shape[1])
    pieces = split(index, query.shape[1], key, value, place.config.select_block, piece_rows)
    outputs = grad_key, grad_value, index, pieces
    key_gradient(*inputs, *outputs, piece_rows, place, pinned(KEY_TILES, key, value)).run()
    if pieces is not None:
        add_pieces(grad_key, grad_value, index, pieces, query.shape[1], place).run()
    return grad_key, grad_value


def selected_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `selected_forward`, shaped and typed like query, key, value.

    A token that no row sees gets 0.
    """
    place = selected_place(query, key, config, scale, cu_seqlens, query_start)
    grad_query = place.new_rows(query, *query.shape)
    delta = row_sums(grad_out, out)
    inputs = grad_out, query, key, value, usable_ids(ids, place), lse.contiguous(), delta, None
    selected_query_gradient(*inputs, None, grad_query, place)
    return grad_query, *selected_key_gradients(*inputs, place)


def _empty_index(query: Tensor, key: Tensor, select_block: int) -> tuple[BlockIndex, Pieces]:
    """A block index and its pieces, as tensors without memory."""
    num_blocks = key.shape[1] // select_block
    pairs = key.shape[0] * key.shape[2]
    index = BlockIndex(
        rows=query.new_empty(1, dtype=torch.int32),
        starts=query.new_empty(pairs * num_blocks + 1, dtype=torch.int64),
        num_blocks=num_blocks,
    )
    counts = query.new_empty(pairs, num_blocks, dtype=torch.int32)
    sums = query.new_empty(pairs, 1, select_block, 1, dtype=torch.float32)
    return index, Pieces(counts, counts, counts, sums, sums)


def variants() -> Iterator[KernelVariant]:
    """What the compile gate compiles."""
    for shape, place, query, key, value in shape_cases(TOKENS):
        block = place.config.select_block
        grad_out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        total = query.new_empty(query.shape, dtype=torch.float32)
        ids = query.new_empty(*query.shape[:2], key.shape[2], 16, dtype=torch.int32)
        tokens, query_tile = token_tile(query, key, ids, pinned(QUERY_TILES, key, value))
        visits = empty_visits(ids, tokens, place)
        index, pieces = _empty_index(query, key, block)
        inputs = query, key, value, grad_out, lse, lse
        for name, gate, partial in (("", None, None), (",gated", lse, total)):
            label = f"[{shape.label}{name}]"
            launch = query_gradient(*inputs, gate, partial, query, visits, place, tokens, query_tile)
            yield launch.variant(f"selected_query_gradient{label}", hot=shape.hot)
            outputs = key, value, index, pieces if gate is None else None
            launch = key_gradient(*inputs, gate, *outputs, PIECE_ROWS, place, pinned(KEY_TILES, key, value))
            yield launch.variant(f"selected_key_gradient{label}", hot=shape.hot)
        launch = add_pieces(key, value, index, pieces, TOKENS, place)
        yield launch.variant(f"selected_add_pieces[{shape.label}]")
