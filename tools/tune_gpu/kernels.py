"""Every kernel whose tile comes from a table: the table, and how to launch it with any tile."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from problem import Pair, Problem
from torch import Tensor
from trial import Trial

from trisparse.triton import band_forward, band_key_gradient, band_query_gradient, selected_query_gradient
from trisparse.triton.band_forward import Band
from trisparse.triton.compressed_backward import num_splits
from trisparse.triton.compressed_forward import TILES as COMPRESSED_TILES
from trisparse.triton.compressed_forward import block_band
from trisparse.triton.decode_compressed import TILES as STEP_COMPRESSED_TILES
from trisparse.triton.decode_compressed import compressed_launch
from trisparse.triton.decode_rows import DecodePlace, decode_place, new_block_weights
from trisparse.triton.decode_tokens import TILES as STEP_TOKENS_TILES
from trisparse.triton.decode_tokens import tokens_launch
from trisparse.triton.launch import PinnedTiles, Tile, memory_class, pinned, table_entry
from trisparse.triton.selected_backward import KEY_TILES, QUERY_TILES
from trisparse.triton.selected_forward import TILES as SELECTED_TILES
from trisparse.triton.selected_forward import forward_launch as selected_launch
from trisparse.triton.selected_key_gradient import PIECE_ROWS, add_pieces, key_gradient, split
from trisparse.triton.selection_primitives import empty_visits, token_tile, union_launch
from trisparse.triton.topn import TILES as TOPN_TILES
from trisparse.triton.topn import topn_launch
from trisparse.triton.window_forward import TILES as WINDOW_TILES
from trisparse.triton.window_forward import token_band

GRADIENT_KEYS_PER_WARP = 16


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel and the table of its tiles.

    Attributes:
        table: where the table stands, `module.NAME`.
        wide: what `pinned` is given, of a problem.
        trial: the launches of the kernel with a tile.
        keys: least and most keys of a tile that make sense.
        keys_by_warps: a tile has 16 keys for each warp, see `band_key_gradient.py`.
    """

    name: str
    table: str
    tiles: PinnedTiles
    wide: Callable[[Problem], tuple[Tensor, ...]]
    trial: Callable[[Problem, Tile], Trial]
    keys: tuple[int, int] = (32, 128)
    keys_by_warps: bool = False

    def pinned(self, problem: Problem) -> Tile:
        return pinned(self.tiles, *self.wide(problem))

    def entry(self, problem: Problem) -> str:
        """The entry of the table that the problem uses: memory class and most bytes of a row."""
        tensors = self.wide(problem)
        return f"{memory_class(tensors[0])} {table_entry(self.tiles, *tensors)[0]:g}"


def _band_forward(problem: Problem, pair: Pair, band: Band, tile: Tile) -> Trial:
    out, lse = problem.new_outputs()
    launch = band_forward.forward_launch(problem.query, *pair, out, lse, problem.place, band, tile)
    return Trial(main=launch, results=lambda: {"out": out, "lse": lse})


def compressed(problem: Problem, tile: Tile) -> Trial:
    return _band_forward(problem, problem.compressed, block_band(problem.place.config), tile)


def window(problem: Problem, tile: Tile) -> Trial:
    return _band_forward(problem, problem.window, token_band(problem.place.config), tile)


def select(problem: Problem, tile: Tile) -> Trial:
    ids = torch.empty_like(problem.ids)
    key, lse = problem.compressed[0], problem.compressed_outputs[1]
    launch = topn_launch(problem.query, key, lse, ids, None, problem.place, tile, 0)
    return Trial(main=launch, results=lambda: {"ids": ids})


def selected(problem: Problem, tile: Tile) -> Trial:
    query, pair, place = problem.query, problem.selected, problem.place
    tokens, tile = token_tile(query, pair[0], problem.slots, tile)
    visits = empty_visits(problem.slots, tokens, place)
    out, lse = problem.new_outputs()
    launch = selected_launch(query, *pair, out, lse, visits, place, tokens, tile)
    union = [union_launch(problem.slots, visits, tokens)] if tokens.tokens > 1 else []
    return Trial(before=union, main=launch, results=lambda: {"out": out, "lse": lse})


def compressed_query(problem: Problem, tile: Tile) -> Trial:
    """The first branch: nothing to add to, a sum in fp32."""
    sums = problem.new_rows(problem.case.head_dim, torch.float32)
    inputs = problem.query, *problem.compressed, problem.grad_out
    statistics = *problem.statistics(problem.compressed_outputs), problem.gate
    where = problem.place, block_band(problem.place.config), tile
    launch = band_query_gradient.query_gradient(*inputs, *statistics, None, sums, *where)
    return Trial(main=launch, results=lambda: {"d query": sums})


def window_query(problem: Problem, tile: Tile) -> Trial:
    """The last branch: adds to the sum, and rounds it."""
    sums = problem.new_rows(problem.case.head_dim)
    inputs = problem.query, *problem.window, problem.grad_out
    statistics = *problem.statistics(problem.window_outputs), problem.gate
    where = problem.place, token_band(problem.place.config), tile
    launch = band_query_gradient.query_gradient(*inputs, *statistics, problem.partial, sums, *where)
    return Trial(main=launch, results=lambda: {"d query": sums})


def selected_query(problem: Problem, tile: Tile) -> Trial:
    """The branch between: adds to the sum, in fp32."""
    sums = problem.new_rows(problem.case.head_dim, torch.float32)
    inputs = problem.query, *problem.selected, problem.grad_out
    statistics = *problem.statistics(problem.selected_outputs), problem.gate
    tokens, tile = token_tile(problem.query, inputs[1], problem.slots, tile)
    visits = empty_visits(problem.slots, tokens, problem.place)
    where = visits, problem.place, tokens, tile
    launch = selected_query_gradient.query_gradient(*inputs, *statistics, problem.partial, sums, *where)
    union = [union_launch(problem.slots, visits, tokens)] if tokens.tokens > 1 else []
    return Trial(before=union, main=launch, results=lambda: {"d query": sums})


def _band_key(problem: Problem, pair: Pair, outputs: Pair, band: Band, splits: int, tile: Tile) -> Trial:
    dtype = torch.float32 if splits > 1 else problem.case.dtype
    grads = [x.new_empty(splits, *x.shape, dtype=dtype) for x in pair]
    inputs = problem.query, *pair, problem.grad_out, *problem.statistics(outputs), problem.gate
    launch = band_key_gradient.key_gradient(*inputs, *grads, problem.place, band, tile)
    return Trial(main=launch, results=lambda: {"d key": grads[0].sum(dim=0), "d value": grads[1].sum(dim=0)})


def compressed_key(problem: Problem, tile: Tile) -> Trial:
    splits, band = num_splits(problem.case.tokens), block_band(problem.place.config)
    return _band_key(problem, problem.compressed, problem.compressed_outputs, band, splits, tile)


def window_key(problem: Problem, tile: Tile) -> Trial:
    band = token_band(problem.place.config)
    return _band_key(problem, problem.window, problem.window_outputs, band, 1, tile)


def selected_key(problem: Problem, tile: Tile) -> Trial:
    key, value = problem.selected
    grads = torch.empty_like(key), torch.empty_like(value)
    num_rows, block = problem.case.tokens, problem.place.config.select_block
    pieces = split(problem.index, num_rows, key, value, block, PIECE_ROWS)
    statistics = *problem.statistics(problem.selected_outputs), problem.gate
    inputs = problem.query, key, value, problem.grad_out, *statistics
    where = problem.index, pieces, PIECE_ROWS, problem.place, tile
    after = []
    if pieces is not None:
        after.append(add_pieces(*grads, problem.index, pieces, num_rows, problem.place))
    return Trial(
        main=key_gradient(*inputs, *grads, *where),
        after=after,
        results=lambda: {"d key": grads[0], "d value": grads[1]},
    )


def _last_row(problem: Problem) -> tuple[Tensor, DecodePlace]:
    """The query of the last token, and its place behind all others."""
    query = problem.query[:, -1:]
    last = problem.case.tokens - 1
    starts = query.new_full((problem.case.batch,), last, dtype=torch.int32)
    config, scale = problem.place.config, problem.place.scale
    return query, decode_place(query, problem.selected[1], starts, problem.case.tokens, config, scale)


def step_compressed(problem: Problem, tile: Tile) -> Trial:
    query, place = _last_row(problem)
    weights = new_block_weights(place, tile)

    def results() -> dict[str, Tensor]:
        own = slice(0, place.pieces.compressed)
        # what a tile's weights are relative to differs with the tiles
        references = weights.references.repeat_interleave(weights.blocks, dim=3)
        references = references[..., : weights.weights.shape[3]] - weights.references.amax(3, keepdim=True)
        absolute = weights.weights * references.exp2()
        return {"out": place.outs[own], "lse": place.lse[own], "weights": absolute}

    launch = compressed_launch(query, *problem.compressed, weights, place, tile)
    return Trial(main=launch, results=results)


def step_tokens(problem: Problem, tile: Tile) -> Trial:
    query, place = _last_row(problem)
    own = slice(place.pieces.compressed, None)
    ids = problem.ids[:, -1:].contiguous()
    ring = problem.case.tokens
    launch = tokens_launch(query, problem.selected, problem.window, ring, ids, place, tile)
    return Trial(main=launch, results=lambda: {"out": place.outs[own], "lse": place.lse[own]})


def _keys(problem: Problem) -> tuple[Tensor, ...]:
    return problem.selected


def _keys_alone(problem: Problem) -> tuple[Tensor, ...]:
    return problem.compressed[:1]


_BAND_QUERY = {"table": "band_query_gradient.QUERY_TILES", "tiles": band_query_gradient.QUERY_TILES}
_BAND_KEY = {
    "table": "band_key_gradient.KEY_TILES",
    "tiles": band_key_gradient.KEY_TILES,
    "keys": (64, 128),
    "keys_by_warps": True,
}

# the longest first, by their floors at 65,536 tokens
KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(name="compressed_key_gradient", wide=_keys, trial=compressed_key, **_BAND_KEY),
        Kernel(name="compressed_query_gradient", wide=_keys, trial=compressed_query, **_BAND_QUERY),
        Kernel(
            name="compressed_forward",
            table="compressed_forward.TILES",
            tiles=COMPRESSED_TILES,
            wide=_keys_alone,
            trial=compressed,
        ),
        Kernel(
            name="selected_key_gradient",
            table="selected_backward.KEY_TILES",
            tiles=KEY_TILES,
            wide=_keys,
            trial=selected_key,
            keys=(32, 64),
            keys_by_warps=True,
        ),
        Kernel(
            name="selected_query_gradient",
            table="selected_backward.QUERY_TILES",
            tiles=QUERY_TILES,
            wide=_keys,
            trial=selected_query,
            keys=(16, 64),
        ),
        Kernel(
            name="topn",
            table="topn.TILES",
            tiles=TOPN_TILES,
            wide=_keys_alone,
            trial=select,
            keys=(8, 64),
        ),
        Kernel(name="window_key_gradient", wide=_keys, trial=window_key, **_BAND_KEY),
        Kernel(
            name="selected_forward",
            table="selected_forward.TILES",
            tiles=SELECTED_TILES,
            wide=_keys,
            trial=selected,
            keys=(16, 64),
        ),
        Kernel(name="window_query_gradient", wide=_keys, trial=window_query, **_BAND_QUERY),
        Kernel(
            name="window_forward",
            table="window_forward.TILES",
            tiles=WINDOW_TILES,
            wide=_keys,
            trial=window,
        ),
        Kernel(
            name="decode_tokens",
            table="decode_tokens.TILES",
            tiles=STEP_TOKENS_TILES,
            wide=_keys,
            trial=step_tokens,
            keys=(16, 128),
        ),
        Kernel(
            name="decode_compressed",
            table="decode_compressed.TILES",
            tiles=STEP_COMPRESSED_TILES,
            wide=_keys,
            trial=step_compressed,
            keys=(16, 128),
        ),
    )
}
