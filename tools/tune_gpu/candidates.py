"""Which tiles are tried: the pinned one, then those a step away from it that the kernel can take."""

from collections.abc import Callable, Iterator
from typing import Any

from kernels import GRADIENT_KEYS_PER_WARP, Kernel
from problem import Problem

from trisparse.triton.launch import LEAST_WIDTH, Tile

# what fits into registers and shared memory is for the compiler to say
_MOST_ROWS, _MOST_STAGES = 256, 4
# four warps share one of Hopper's products, and more than eight leave each too few registers
_LEAST_WARPS, _MOST_WARPS = 2, 8

# the most promising first: what hides loads, then how the work is cut
_STEPS: tuple[Callable[[Tile], Tile], ...] = (
    lambda tile: tile._replace(num_stages=tile.num_stages + 1),
    lambda tile: tile._replace(rows=tile.rows // 2, num_warps=tile.num_warps // 2),
    lambda tile: tile._replace(rows=tile.rows // 2),
    lambda tile: tile._replace(rows=tile.rows * 2),
    lambda tile: tile._replace(num_stages=tile.num_stages - 1),
    lambda tile: tile._replace(num_warps=tile.num_warps // 2),
    lambda tile: tile._replace(keys=tile.keys // 2, num_stages=tile.num_stages + 1),
    lambda tile: tile._replace(keys=tile.keys * 2),
    lambda tile: tile._replace(keys=tile.keys // 2),
    lambda tile: tile._replace(num_warps=tile.num_warps * 2),
    lambda tile: tile._replace(rows=tile.rows // 2, num_warps=tile.num_warps // 2, num_stages=3),
)
# where keys go with warps
_KEY_STEPS: tuple[Callable[[Tile], Tile], ...] = (
    lambda tile: tile._replace(rows=tile.rows * 2),
    lambda tile: _narrow(tile),
    lambda tile: tile._replace(num_stages=tile.num_stages + 1),
    lambda tile: _narrow(tile)._replace(rows=tile.rows * 2),
    lambda tile: tile._replace(num_stages=tile.num_stages - 1),
    lambda tile: tile._replace(rows=tile.rows // 2, num_stages=tile.num_stages + 1),
    lambda tile: tile._replace(rows=tile.rows // 2),
    lambda tile: _narrow(tile)._replace(num_stages=tile.num_stages + 1),
)


def _narrow(tile: Tile) -> Tile:
    return tile._replace(keys=tile.keys // 2, num_warps=tile.num_warps // 2)


def is_possible(kernel: Kernel, tile: Tile) -> bool:
    """Whether a tile keeps the rules of its kernel."""
    least, most = kernel.keys
    return (
        LEAST_WIDTH <= tile.rows <= _MOST_ROWS
        and least <= tile.keys <= most
        and _LEAST_WARPS <= tile.num_warps <= _MOST_WARPS
        and 1 <= tile.num_stages <= _MOST_STAGES
        and (not kernel.keys_by_warps or tile.keys == GRADIENT_KEYS_PER_WARP * tile.num_warps)
    )


def candidates(kernel: Kernel, problem: Problem) -> Iterator[tuple[Tile, Tile]]:
    """The pinned tile, then others, each with the first one that is the same to the kernel, mostly itself.

    `problem` needs no memory.
    """
    pinned = kernel.pinned(problem)
    first: dict[Any, Tile] = {}
    steps = _KEY_STEPS if kernel.keys_by_warps else _STEPS
    possible = [tile for step in steps if is_possible(kernel, tile := step(pinned))]
    for tile in dict.fromkeys([pinned, *possible]):
        yield tile, first.setdefault(kernel.trial(problem, tile).identity, tile)
