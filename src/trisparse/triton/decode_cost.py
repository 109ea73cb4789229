"""What each kernel of a decode step must compute and move: one new token for each row of the batch.

Counted as in `cost.py`, whose floors hold here too. What it costs to start a kernel is in none of them.
"""

from dataclasses import replace

from trisparse.triton.cost import ELEMENT_BYTES, FP32_BYTES, Bytes, Cost, Shape, hopper_tile, stream
from trisparse.triton.decode_compressed import TILES
from trisparse.triton.decode_rows import cut


def decode_costs(shape: Shape) -> list[Cost]:
    """The kernels in the order in which they run; the new token is the last of `shape.tokens`."""
    config, row = shape.config, _one_token(shape)
    both = 2 * (shape.head_dim + shape.value_dim)
    blocks = config.num_select_blocks(shape.tokens)
    compressed = config.num_compressed(shape.tokens)
    # the newest block may be incomplete
    missing = blocks * config.select_block - shape.tokens
    raw = min(blocks, config.num_selected) * config.select_block - missing + min(config.window, shape.tokens)
    scores = shape.batch * shape.groups * blocks * FP32_BYTES
    pieces = cut(config, 1, shape.tokens)
    token_pieces = pieces.selected + pieces.window
    tile = min(hopper_tile(TILES, shape.head_dim, shape.value_dim).keys, pieces.blocks)
    tiles = -(-blocks // tile)
    weights = shape.batch * shape.heads * (blocks + tiles) * FP32_BYTES
    return [
        _attend(
            "decode_compressed",
            shape,
            compressed,
            both,
            pieces.compressed,
            weights,
            _keys_before(shape, compressed),
        ),
        _score(shape, tiles, pieces.compressed, weights, scores),
        stream("decode_topn", scores + row.ids),
        _attend("decode_tokens", shape, raw, both, token_pieces, others=row.ids),
        stream("decode_join", pieces.all * _piece_bytes(row) + row.gates + row.out),
    ]


def dense_decode_cost(shape: Shape) -> Cost:
    """The same step by full attention in one kernel, of which every key and value is read once."""
    row, pairs = _one_token(shape), shape.batch * shape.heads * shape.tokens
    moved = Bytes(shape).raw + row.query + row.out
    return Cost(
        kernel="full attention",
        flops=pairs * 2 * (shape.head_dim + shape.value_dim),
        exponentials=pairs,
        hbm_bytes=moved,
        l2_bytes=moved,
    )


def _one_token(shape: Shape) -> Bytes:
    """Sizes of all that has a row for each query."""
    return Bytes(replace(shape, tokens=1))


def _piece_bytes(row: Bytes) -> int:
    """An output in fp32 and a log-sum-exp of each head."""
    return row.out * FP32_BYTES // ELEMENT_BYTES + row.lse


def _keys_before(shape: Shape, compressed: int) -> int:
    """The keys in front of a selection block are met once more for it."""
    config = shape.config
    ratio = config.select_block // config.compress_stride
    overlap = config.compress_block // config.compress_stride
    return shape.batch * shape.groups * shape.head_dim * ELEMENT_BYTES * compressed * (overlap - 1) // ratio


def _attend(
    kernel: str, shape: Shape, seen: int, flops: int, pieces: int, others: int = 0, again: int = 0
) -> Cost:
    """Each key is read once for all heads of its group, the query once for each piece.

    `others` are further bytes, `again` those of keys that are read twice.
    """
    row, pairs = _one_token(shape), seen * shape.batch * shape.heads
    channels = shape.head_dim + shape.value_dim
    keys = seen * shape.batch * shape.groups * channels * ELEMENT_BYTES
    moved = keys + pieces * _piece_bytes(row) + others
    return Cost(
        kernel=kernel,
        flops=pairs * flops,
        exponentials=pairs,
        hbm_bytes=moved + row.query,
        l2_bytes=moved + again + pieces * row.query,
    )


def _score(shape: Shape, tiles: int, pieces: int, weights: int, scores: int) -> Cost:
    """A pass over what each head has of each block; each tile joins the log-sum-exps of the pieces."""
    joined = pieces * _one_token(shape).lse
    return Cost(
        kernel="decode_scores",
        flops=0,
        exponentials=tiles * shape.batch * shape.heads,
        hbm_bytes=weights + joined + scores,
        l2_bytes=weights + tiles * joined + scores,
    )
