"""What each kernel of a decode step must compute and move: one new token for each row of the batch.

Counted as in `cost.py`, whose floors hold here too. What it costs to start a kernel is in none of them.
"""

from dataclasses import replace

from trisparse.triton.cost import ELEMENT_BYTES, FP32_BYTES, Bytes, Cost, Shape, hopper_tile, stream
from trisparse.triton.decode_rows import Pieces, cut
from trisparse.triton.decode_scores import TILES as SCORE_TILES


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
    pieces = cut(config, 1, shape.tokens, compressed)
    token_pieces = pieces.selected + pieces.window
    return [
        _attend("decode_compressed", shape, compressed, both, pieces.compressed),
        _score(shape, pieces, scores),
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


def _attend(kernel: str, shape: Shape, seen: int, flops: int, pieces: int, others: int = 0) -> Cost:
    """Each key is read once for all heads of its group, the query once for each piece."""
    row, pairs = _one_token(shape), seen * shape.batch * shape.heads
    channels = shape.head_dim + shape.value_dim
    keys = seen * shape.batch * shape.groups * channels * ELEMENT_BYTES
    moved = keys + pieces * _piece_bytes(row) + others
    return Cost(
        kernel=kernel,
        flops=pairs * flops,
        exponentials=pairs,
        hbm_bytes=moved + row.query,
        l2_bytes=moved + pieces * row.query,
    )


def _score(shape: Shape, pieces: Pieces, scores: int) -> Cost:
    """The keys in front of a selection block are met once more for it.

    Keys count as read from HBM, though what the compressed branch has left of them in the L2 cache is not.
    """
    config, row, keys = shape.config, _one_token(shape), Bytes(shape).key_cmp
    ratio = config.select_block // config.compress_stride
    overlap = config.compress_block // config.compress_stride
    programs = -(-config.num_select_blocks(shape.tokens) // hopper_tile(SCORE_TILES, shape.head_dim).keys)
    pairs = config.num_compressed(shape.tokens) * shape.batch * shape.heads
    inputs = row.query + pieces.compressed * row.lse
    return Cost(
        kernel="decode_scores",
        flops=pairs * 2 * shape.head_dim,
        exponentials=pairs,
        hbm_bytes=keys + inputs + scores,
        l2_bytes=keys * (ratio + overlap - 1) // ratio + programs * inputs + scores,
    )
