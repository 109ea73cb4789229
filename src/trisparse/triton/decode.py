"""Decoding: the whole op for the newest tokens of rows of different length, against a cache.

Five launches of fixed size, none of which depends on what `starts` holds: nothing waits for the device, and
all can be captured into a graph.
"""

from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.decode_compressed import attend_compressed_pieces
from trisparse.triton.decode_join import join_pieces
from trisparse.triton.decode_rows import decode_place
from trisparse.triton.decode_scores import score_blocks
from trisparse.triton.decode_tokens import attend_token_pieces
from trisparse.triton.decode_topn import choose_blocks
from trisparse.triton.launch import rowwise


def decode_forward(
    query: Tensor,
    query_cmp: Tensor | None,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    gates: Tensor,
    starts: Tensor,
    window_ring: int,
    config: SparseConfig,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Eq. 5 for each row's newest tokens: arguments as `trisparse.decode.sparse_decode` takes them.

    Returns:
        out [B, n, H, E] in the query's dtype and ids int32 [B, n, G, S], ascending, -1 last; 0 and -1 for a
        row whose start is below 0.
    """
    query, gates = rowwise(query), rowwise(gates)
    first = query if query_cmp is None else rowwise(query_cmp)
    compressed, selected, window = (
        (rowwise(key), rowwise(value))
        for key, value in ((key_cmp, value_cmp), (key_slc, value_slc), (key_win, value_win))
    )
    room = key_slc.shape[1]
    place = decode_place(query, value_slc, starts, room, config, scale)
    weights = attend_compressed_pieces(first, *compressed, place)
    ids = choose_blocks(score_blocks(weights, compressed[0], place), place)
    # by position, slots never wrap: no position is past the last one
    ring = window_ring or key_win.shape[1]
    attend_token_pieces(query, selected, window, ring, ids, place)
    return join_pieces(query, gates, key_cmp.shape[1], place), ids
