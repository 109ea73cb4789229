"""What each kernel must compute and move, and the least time that takes on a GPU.

A floor, not a forecast: every attended pair is counted once and no masked one, every tensor crosses the
memory bus once. A kernel that comes near it has nothing left to gain.
"""

from dataclasses import dataclass, field

import torch

from trisparse.config import SparseConfig
from trisparse.triton.band_key_gradient import KEY_TILES as BAND_KEY_TILES
from trisparse.triton.band_query_gradient import QUERY_TILES as BAND_QUERY_TILES
from trisparse.triton.compressed_forward import TILES as COMPRESSED_TILES
from trisparse.triton.launch import PinnedTiles, Tile, assume_memory, pinned
from trisparse.triton.selected_backward import KEY_TILES as SELECTED_KEY_TILES
from trisparse.triton.topn import TILES as TOPN_TILES
from trisparse.triton.topn import phases_at_once
from trisparse.triton.window_forward import TILES as WINDOW_TILES

ELEMENT_BYTES = 2
LSE_BYTES = 4
ID_BYTES = 4
# a gate may be fp32 beside bf16 inputs; a delta, a gate's gradient and what decoding leaves unfinished are
FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one call on bf16 or fp16 tensors."""

    tokens: int
    batch: int = 1
    heads: int = 64
    groups: int = 4
    head_dim: int = 128
    value_dim: int = 128
    config: SparseConfig = field(default_factory=SparseConfig)

    @property
    def group(self) -> int:
        """Query heads of a KV group."""
        return self.heads // self.groups

    @property
    def rows(self) -> int:
        """Query rows of all heads."""
        return self.batch * self.tokens * self.heads


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one kernel needs.

    Attributes:
        flops: of matrix products; a multiply and an add are two.
        exponentials: one for each attended pair and head.
        hbm_bytes: inputs read once and outputs written once.
        l2_bytes: what its programs ask for, repeated reads included.
    """

    kernel: str
    flops: int
    exponentials: int
    hbm_bytes: int
    l2_bytes: int


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peaks of a GPU; `source` says where they are published, `l2_bandwidth` is None where it is not."""

    name: str
    flops: float
    exponentials: float
    hbm_bandwidth: float
    l2_bandwidth: float | None
    source: str


def _special_functions(multiprocessors: int, gigahertz: float) -> float:
    """Exponentials a second: 16 in each clock of a multiprocessor of capability 8.0 and 9.0."""
    return 16 * multiprocessors * gigahertz * 1e9


_GUIDE = "exponentials: CUDA C++ Programming Guide, throughput of native arithmetic instructions"
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="A100",
            flops=312e12,
            exponentials=_special_functions(108, 1.41),
            hbm_bandwidth=2.039e12,
            l2_bandwidth=5120 * 1.41e9,
            source=f"NVIDIA A100 data sheet, 80 GB SXM; L2: A100 architecture white paper; {_GUIDE}",
        ),
        Gpu(
            name="H100",
            flops=989.4e12,
            exponentials=_special_functions(132, 1.83),
            hbm_bandwidth=3.35e12,
            l2_bandwidth=None,
            source=f"NVIDIA H100 data sheet, SXM, dense; {_GUIDE}",
        ),
        Gpu(
            name="H200",
            flops=989.4e12,
            exponentials=_special_functions(132, 1.83),
            hbm_bandwidth=4.8e12,
            l2_bandwidth=None,
            source=f"NVIDIA H200 data sheet, SXM, dense; {_GUIDE}",
        ),
    )
}


def window_pairs(tokens: int, config: SparseConfig) -> int:
    """Pairs of a query token and a key it attends in the window branch."""
    full = max(0, tokens - config.window)
    rising = tokens - full
    return rising * (rising + 1) // 2 + full * config.window


def compressed_pairs(tokens: int, config: SparseConfig) -> int:
    """Pairs of a query token and a compressed block it sees."""
    return sum(config.num_compressed(token + 1) for token in range(tokens))


def selected_pairs(tokens: int, config: SparseConfig) -> int:
    """Pairs of a query token and a token of its selected blocks, its own block among them."""
    block, slots = config.select_block, config.num_selected
    total = 0
    for start in range(0, tokens, block):
        rows = min(block, tokens - start)
        earlier = min(start // block, slots - 1) * block
        total += rows * earlier + rows * (rows + 1) // 2
    return total


def dense_pairs(tokens: int) -> int:
    """Pairs of full causal attention."""
    return tokens * (tokens + 1) // 2


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The least time, in seconds, and what it is spent on."""

    seconds: float
    bound: str


def floor(cost: Cost, gpu: Gpu) -> Floor:
    """The least time of one kernel: its slowest resource, as if all others hid behind it."""
    times = {
        "tensor cores": cost.flops / gpu.flops,
        "exponentials": cost.exponentials / gpu.exponentials,
        "HBM": cost.hbm_bytes / gpu.hbm_bandwidth,
    }
    if gpu.l2_bandwidth is not None:
        times["L2"] = cost.l2_bytes / gpu.l2_bandwidth
    bound = max(times, key=lambda name: times[name])
    return Floor(seconds=times[bound], bound=bound)


def forward_costs(shape: Shape) -> list[Cost]:
    """The kernels of one forward call, in the order in which they run."""
    config, sizes = shape.config, Bytes(shape)
    compressed = compressed_pairs(shape.tokens, config)
    selected = selected_pairs(shape.tokens, config)
    window = window_pairs(shape.tokens, config)
    both = 2 * (shape.head_dim + shape.value_dim)
    outputs = sizes.out + sizes.lse
    tokens = sizes.query + outputs
    # the compressed branch chooses its tile by the key alone
    compressed_tile = hopper_tile(COMPRESSED_TILES, shape.head_dim)
    window_tile = hopper_tile(WINDOW_TILES, shape.head_dim, shape.value_dim)
    return [
        _walk("compressed_forward", shape, compressed, both, compressed_tile.rows, sizes.compressed, tokens),
        _score(shape, compressed),
        _walk("selected_forward", shape, selected, both, shape.group, sizes.raw, tokens + sizes.ids),
        _walk("window_forward", shape, window, both, window_tile.rows, sizes.raw, tokens),
        stream("combine_forward", 3 * sizes.out + sizes.gates + sizes.out),
    ]


def backward_costs(shape: Shape) -> list[Cost]:
    """The kernels of one backward call."""
    sizes, config = Bytes(shape), shape.config
    costs = [stream("combine_backward", 4 * sizes.out + 2 * sizes.gates + 3 * sizes.lse)]
    # each row's query, gradient of the output, log-sum-exp, delta and gate
    inputs = sizes.query + sizes.out + 2 * sizes.lse + sizes.gates // 3
    # d query is added up in fp32, branch by branch; the last one rounds it
    total = sizes.query * FP32_BYTES // ELEMENT_BYTES
    # scores and their gradients again, then d query
    flops = 2 * (2 * shape.head_dim + shape.value_dim)
    dims = shape.head_dim, shape.value_dim

    compressed, keys = compressed_pairs(shape.tokens, config), sizes.compressed
    rows = hopper_tile(BAND_QUERY_TILES, *dims).rows
    costs.append(_walk("compressed_query_gradient", shape, compressed, flops, rows, keys, inputs + total))
    tile = hopper_tile(BAND_KEY_TILES, *dims)
    costs.append(_key_gradient("compressed", shape, compressed, tile.keys, keys, inputs))

    selected, moved = selected_pairs(shape.tokens, config), inputs + sizes.ids
    moved_twice = moved + 2 * total
    costs.append(
        _walk("selected_query_gradient", shape, selected, flops, shape.group, sizes.raw, moved_twice)
    )
    costs.append(stream("block_index", 2 * sizes.ids))
    tile = hopper_tile(SELECTED_KEY_TILES, *dims)
    costs.append(_key_gradient("selected", shape, selected, tile.keys, sizes.raw, moved))

    window, moved = window_pairs(shape.tokens, config), inputs + total + sizes.query
    rows = hopper_tile(BAND_QUERY_TILES, *dims).rows
    costs.append(_walk("window_query_gradient", shape, window, flops, rows, sizes.raw, moved))
    tile = hopper_tile(BAND_KEY_TILES, *dims)
    costs.append(_key_gradient("window", shape, window, tile.keys, sizes.raw, inputs))
    return costs


def hopper_tile(tiles: PinnedTiles, *dims: int) -> Tile:
    """The tile that a Hopper GPU pins for bf16 rows of these dims."""
    rows = (torch.empty(1, 1, 1, dim, dtype=torch.bfloat16, device="meta") for dim in dims)
    with assume_memory("large"):
        return pinned(tiles, *rows)


class Bytes:
    """Sizes of the tensors of one call."""

    def __init__(self, shape: Shape) -> None:
        element, config = ELEMENT_BYTES, shape.config
        channels = shape.head_dim + shape.value_dim
        per_group = shape.batch * shape.groups * element
        blocks = config.num_compressed(shape.tokens)
        self.query = shape.rows * shape.head_dim * element
        self.out = shape.rows * shape.value_dim * element
        self.lse = shape.rows * LSE_BYTES
        self.gates = shape.rows * 3 * FP32_BYTES
        self.raw = shape.tokens * channels * per_group
        self.compressed = blocks * channels * per_group
        self.key_cmp = blocks * shape.head_dim * per_group
        self.ids = shape.batch * shape.tokens * shape.groups * config.num_selected * ID_BYTES


def stream(kernel: str, moved: int) -> Cost:
    """A kernel that reads and writes each row once."""
    return Cost(kernel=kernel, flops=0, exponentials=0, hbm_bytes=moved, l2_bytes=moved)


def _walk(kernel: str, shape: Shape, pairs: int, flops: int, sharing: int, keys: int, moved: int) -> Cost:
    """A kernel whose programs own query rows and walk over keys, read once for `sharing` rows.

    `flops` are those of a pair, `keys` the bytes of keys and values, `moved` those of all else. In the
    selected branch the heads of a group share a key; tokens of small groups do too, as far as they choose
    alike, which no shape says.
    """
    all_pairs = pairs * shape.batch * shape.heads
    channels = shape.head_dim + shape.value_dim
    repeated = all_pairs * channels * ELEMENT_BYTES // max(sharing, shape.group)
    return Cost(
        kernel=kernel,
        flops=all_pairs * flops,
        exponentials=all_pairs,
        hbm_bytes=keys + moved,
        l2_bytes=repeated + moved,
    )


def _score(shape: Shape, pairs: int) -> Cost:
    """Scores and top-n: a tile of tokens meets each tile of keys head by head, and reads its queries anew."""
    sizes = Bytes(shape)
    all_pairs = pairs * shape.batch * shape.heads
    keys = hopper_tile(TOPN_TILES, shape.head_dim).keys * phases_at_once(shape.config)
    queries = all_pairs * shape.head_dim * ELEMENT_BYTES // keys
    return Cost(
        kernel="topn",
        flops=all_pairs * 2 * shape.head_dim,
        exponentials=all_pairs,
        hbm_bytes=sizes.key_cmp + sizes.query + sizes.lse + sizes.ids,
        l2_bytes=queries + sizes.ids,
    )


def _key_gradient(branch: str, shape: Shape, pairs: int, sharing: int, keys: int, moved: int) -> Cost:
    """Scores and their gradients again, then d key and d value: 4 D + 4 E flops a pair.

    A program owns `sharing` keys, for which it reads each query's row once.
    """
    all_pairs = pairs * shape.batch * shape.heads
    channels = shape.head_dim + shape.value_dim
    row_bytes = channels * ELEMENT_BYTES + 3 * FP32_BYTES
    return Cost(
        kernel=f"{branch}_key_gradient",
        flops=all_pairs * 4 * channels,
        exponentials=all_pairs,
        hbm_bytes=2 * keys + moved,
        l2_bytes=2 * keys + all_pairs * row_bytes // sharing,
    )
