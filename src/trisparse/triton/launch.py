"""From tensors to a kernel launch: layouts, head tiles, pinned tiles; and the same launch as a variant.

A launcher builds a `Launch` from its tensors and runs it. The compile gate builds the same launches from
tensors on the "meta" device and never runs them, so what it compiles is what a launch specialises.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from trisparse.config import SparseConfig
from trisparse.triton import primitives
from trisparse.triton.sequences import PackedSequences, packed_sequences
from trisparse.triton.sizes import cut_sizes
from trisparse.triton.variants import (
    AMPERE_SHARED_BYTES,
    CONSUMER_SHARED_BYTES,
    HOPPER_SHARED_BYTES,
    KernelVariant,
)

# a dot product needs at least 16 rows, columns and terms
LEAST_WIDTH = 16

# the interpreter runs programs one after another: few large tiles, and nothing to fit into
INTERPRETED = not isinstance(primitives.load_parts, triton.JITFunction)

_SHARED_BYTES = {
    "large": HOPPER_SHARED_BYTES,
    "medium": AMPERE_SHARED_BYTES,
    "small": CONSUMER_SHARED_BYTES,
}
NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Everything about a call that is not one of its tensors."""

    config: SparseConfig
    scale: float
    query_start: int
    packed: PackedSequences | None

    def new_rows(self, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for numbers of query rows, which kernels fill.

        On a GPU nobody looks whether documents cover all rows; those outside of them, which no program
        visits, have 0.
        """
        memory = like.new_empty(shape, dtype=dtype or like.dtype)
        return memory if self.packed is None else memory.zero_()

    def new_results(self, query: Tensor, value_dim: int) -> tuple[Tensor, Tensor]:
        """Memory for an output [B, Tq, H, E] and its log-sum-exp [B, Tq, H], -inf outside of documents."""
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        if self.packed is not None:
            lse.fill_(-torch.inf)
        return self.new_rows(query, *query.shape[:3], value_dim), lse


def call_place(
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    *,
    num_rows: int,
    query_start: int,
    num_tokens: int | None = None,
    num_blocks: int | None = None,
) -> Place:
    """The place of a call of Tq = `num_rows` rows; a length it has no tensor for, T or C, is None.

    Here a config enters the room, but for that of a decode step.
    """
    config = cut_sizes(config, max(query_start + num_rows, num_tokens or 0))
    packed = packed_sequences(
        cu_seqlens,
        config,
        num_rows=num_rows,
        query_start=query_start,
        num_tokens=num_tokens,
        num_blocks=num_blocks,
    )
    return Place(config=config, scale=scale, query_start=query_start, packed=packed)


class Tile(NamedTuple):
    """One pinned configuration: rows of queries (tokens x heads), keys, warps, pipeline stages."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


# memory class -> (most bytes of the rows that `pinned` is given, tile); the last one takes what is wider
PinnedTiles = Mapping[str, tuple[tuple[float, Tile], ...]]

_assumed_memory = "large"


@contextmanager
def assume_memory(name: str) -> Iterator[None]:
    """Inside, launches on the "meta" device are those of a GPU of this memory class."""
    global _assumed_memory
    before, _assumed_memory = _assumed_memory, name
    try:
        yield
    finally:
        _assumed_memory = before


@cache
def _memory_of_gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    # AMD's runtime knows no larger opt-in size
    default = properties.shared_memory_per_block
    shared = getattr(properties, "shared_memory_per_block_optin", default)
    return next((name for name, size in _SHARED_BYTES.items() if shared >= size), "small")


def memory_class(tensor: Tensor) -> str:
    """ "large", "medium" or "small": how much shared memory a program has where `tensor` lies."""
    if tensor.device.type == "cuda":
        return _memory_of_gpu(tensor.device.index or 0)
    return _assumed_memory


def pinned(tiles: PinnedTiles, *tensors: Tensor) -> Tile:
    """The tile for rows of these tensors: depends on dtype, dims and device, never on a length or a batch."""
    tile = table_entry(tiles, *tensors)[1]
    return tile._replace(rows=64, keys=32) if INTERPRETED else tile


def table_entry(tiles: PinnedTiles, *tensors: Tensor) -> tuple[float, Tile]:
    """The entry of `tiles` for rows of these tensors: most bytes of a row, and the tile."""
    row_bytes = sum(padded(x.shape[3]) * x.element_size() for x in tensors)
    choices = tiles[memory_class(tensors[0])]
    return next((entry for entry in choices if row_bytes <= entry[0]), choices[-1])


def split_dim(dim: int) -> tuple[int, int]:
    """`dim` as the sum of at most two powers of two, padded as little as that allows: 192 -> 128, 64."""
    whole = max(LEAST_WIDTH, triton.next_power_of_2(dim))
    half = whole // 2
    rest = max(LEAST_WIDTH, triton.next_power_of_2(dim - half)) if dim > half else 0
    return (half, rest) if half >= LEAST_WIDTH and half + rest < whole else (whole, 0)


def padded(dim: int) -> int:
    """How wide `dim` is in a kernel."""
    return sum(split_dim(dim))


def dim_constants(head_dim: int, value_dim: int) -> dict[str, int]:
    """The constexpr arguments that describe the two head dims."""
    (head_first, head_second), (value_first, value_second) = split_dim(head_dim), split_dim(value_dim)
    return {
        "HEAD_DIM": head_dim,
        "HEAD_FIRST": head_first,
        "HEAD_SECOND": head_second,
        "VALUE_DIM": value_dim,
        "VALUE_FIRST": value_first,
        "VALUE_SECOND": value_second,
    }


def heads_per_tile(heads_per_group: int, rows: int) -> int:
    """Heads side by side in a tile of `rows`: all of a group, padded to a power of two, if they fit."""
    return min(triton.next_power_of_2(heads_per_group), rows)


def fit_rows(tile: Tile, rows: int, tensor: Tensor) -> Tile:
    """`tile` with `rows` rows of numbers such as `tensor` has, and no more warps than these can divide."""
    # a tensor core's product of 16 rows does not divide among more; fp32 ones are not made by them
    on_tensor_cores = tensor.element_size() <= 2
    num_warps = 2 if rows == LEAST_WIDTH and on_tensor_cores else tile.num_warps
    return tile._replace(rows=rows, num_warps=num_warps)


def rowwise(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dim is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def stride_arguments(**tensors: Tensor | None) -> dict[str, int | None]:
    """`NAME_stride_b`, `_t` and `_h` of each [B, T, H, ...] tensor; None for a tensor that is not there."""
    return {
        f"{name}_stride_{letter}": None if tensor is None else tensor.stride(dim)
        for name, tensor in tensors.items()
        for dim, letter in enumerate("bth")
    }


def attention_arguments(query: Tensor, key: Tensor, value: Tensor, place: Place) -> dict[str, Any]:
    """The arguments of every kernel that attends keys [B, N, G, D] from rows [B, Tq, H, D]."""
    return {
        "query": query,
        "key": key,
        "value": value,
        **stride_arguments(query=query, key=key, value=value),
        "num_rows": query.shape[1],
        "query_start": place.query_start,
        "groups": key.shape[2],
        "score_scale": place.scale * primitives.LOG2_E.value,
    }


def gradient_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    gate: Tensor | None,
    place: Place,
) -> dict[str, Any]:
    """The arguments of every kernel that differentiates such attention."""
    return {
        **attention_arguments(query, key, value, place),
        "grad": grad_out,
        "lse": lse,
        "delta": delta,
        "gate": gate,
        **stride_arguments(grad=grad_out, gate=gate),
        "scale": place.scale,
    }


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel, its arguments by name, and how many programs run it."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    tile: Tile

    def run(self) -> None:
        """Start the programs, on the device of the tensors.

        Raises:
            NotImplementedError: the head dims need more shared memory than the GPU has.
        """
        if self.programs == 0:
            return
        device = next(x.device for x in self.arguments.values() if isinstance(x, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            try:
                self.kernel[(self.programs,)](
                    **self.arguments,
                    **self.constants,
                    num_warps=self.tile.num_warps,
                    num_stages=self.tile.num_stages,
                )
            except OutOfResources as error:
                raise NotImplementedError(f"query: head dims too large for this GPU: {error}") from error

    def variant(self, name: str, *, hot: bool = True) -> KernelVariant:
        """What `run` would compile."""
        absent = {key: None for key, value in self.arguments.items() if value is None}
        return KernelVariant(
            name=name,
            function=self.kernel,
            signature={key: _kind(value) for key, value in self.arguments.items()}
            | dict.fromkeys(self.constants, "constexpr"),
            constants=self.constants | absent,
            num_warps=self.tile.num_warps,
            num_stages=self.tile.num_stages,
            hot=hot,
            shared_limit=_SHARED_BYTES[_assumed_memory],
        )


def _kind(value: Any) -> str:
    """The type of an argument, as a kernel's signature names it."""
    if value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return "*" + NAMES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
