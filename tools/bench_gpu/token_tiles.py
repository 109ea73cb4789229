"""The selected branch of groups too small for a tensor core: by tiles of several tokens, and of one.

A tile of one token has as many rows as a group has heads, and is padded to the 16 that a product takes:
public kernels do so, and with 4 heads three quarters of each product are padding. Both contenders here are
our kernel, start from the same ids and differ in the tile alone; that of several tokens pays for its union of
ids.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from contenders import Contender
from say import say
from torch import Tensor

import trisparse
from trisparse.bench.cases import Case
from trisparse.bench.gate import error_ratio, row_ratio
from trisparse.config import SparseConfig
from trisparse.testing.sampled_rows import Tensors

ONE, SEVERAL = "selected, one token a tile", "selected, several tokens a tile"

# rows of a tile, no fewer than a tensor core's product takes
_LEAST_ROWS = 16
# tokens that are compared at once: a copy in float64 of all would be several GB
_COMPARED = 8192


def token_tiles(tensors: Tensors, ids: Tensor, case: Case, backend: str) -> Iterator[Contender]:
    """Both contenders, forward, where a token's heads leave rows of a tile empty."""
    if case.heads // case.groups >= _LEAST_ROWS:
        return
    if backend != "triton":
        say(f"{case.name} {ONE}: left out, backend {backend} has no tiles of tokens")
        return
    query, _, _, key, value = tensors[:5]
    several, one = (partial(attend, ids=ids, config=case.config, one_token=each) for each in (False, True))
    for part, forward in ((SEVERAL, several), (ONE, one)):
        yield Contender(
            name=backend,
            part=part,
            leaves=(query, key, value),
            forward=forward,
            differentiable=False,
            check=_check_of(part, forward, (query, key, value), ids, case.config),
        )


def attend(leaves: Tensors, *, ids: Tensor, config: SparseConfig, one_token: bool) -> Tensor:
    """The selected branch's output [B, T, H, E]; `leaves` are query, key and value."""
    # a rehearsal has no Triton
    from trisparse.triton.block_index import used_slots
    from trisparse.triton.launch import pinned
    from trisparse.triton.selected_forward import TILES, forward_launch, selected_place
    from trisparse.triton.selection_primitives import token_tile, visits_of

    query, key, value = leaves
    place = selected_place(query, key, config, query.shape[3] ** -0.5, None, 0)
    ids = used_slots(ids, place)
    tile = pinned(TILES, key, value)
    if one_token:
        # no more rows than a token's heads: `token_tile` pads them
        tile = tile._replace(rows=query.shape[2] // key.shape[2])
    tokens, tile = token_tile(query, key, ids, tile)
    out = query.new_empty(*query.shape[:3], value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    visits = visits_of(ids, tokens, place)
    forward_launch(query, key, value, out, lse, visits, place, tokens, tile).run()
    return out


def _check_of(
    part: str, forward: Callable[[Tensors], Tensor], leaves: Tensors, ids: Tensor, config: SparseConfig
) -> Callable[[Sequence[slice]], float]:
    def check(rows: Sequence[slice]) -> float:
        ratio = worst_ratio(forward(leaves), leaves, ids, config, rows)
        say(f"{part}: error {ratio:.3g} of what is allowed")
        return ratio

    return check


def worst_ratio(
    out: Tensor, leaves: Tensors, ids: Tensor, config: SparseConfig, rows: Sequence[slice]
) -> float:
    """The worst error of `out` over what is allowed: everywhere beside the public function, and beside the
    fp64 reference in the sampled `rows`, where that function is the one to be about as good as."""
    query, key, value = leaves
    usual = trisparse.selected_attention(query, key, value, ids, config, backend="triton")
    ratios = []
    for start, stop in pairwise([*range(0, out.shape[1], _COMPARED), out.shape[1]]):
        low = usual[:, start:stop]
        ratios.append(error_ratio(out[:, start:stop], low, low.double()))
    for row in rows:
        seen = key[:, : row.stop].double(), value[:, : row.stop].double()
        gold = trisparse.selected_attention(
            query[:, row].double(), *seen, ids[:, row], config, query_start=row.start, backend="reference"
        )
        ratios.append(row_ratio(out[:, row], usual[:, row], gold))
    return max(ratios)
