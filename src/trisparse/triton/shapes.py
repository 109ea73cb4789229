"""The shapes that the compile gate covers, as tensors without memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.launch import NAMES, Place, assume_memory, call_place

# enough for every loop and split of a kernel
TOKENS = 8192


class Shape(NamedTuple):
    """A shape that the compile gate must cover; `tensors` makes its inputs, which have no memory."""

    dtype: torch.dtype
    head_dim: int
    value_dim: int
    heads_per_group: int
    memory: str
    packed: bool = False

    @property
    def label(self) -> str:
        """Short and unique."""
        dims = f"d{self.head_dim},e{self.value_dim},m{self.heads_per_group}"
        return f"{NAMES[self.dtype]},{dims},{self.memory}{',packed' * self.packed}"

    @property
    def hot(self) -> bool:
        """Whether spilled registers are a fault: fp32 is there for comparisons, without tensor cores."""
        return self.dtype != torch.float32

    def tensors(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """query, key, value of TOKENS rows and `length` keys."""

        def empty(tokens: int, heads: int, dim: int) -> Tensor:
            return torch.empty(1, tokens, heads, dim, dtype=self.dtype, device="meta")

        query = empty(TOKENS, 4 * self.heads_per_group, self.head_dim)
        return query, empty(length, 4, self.head_dim), empty(length, 4, self.value_dim)

    def place(self, length: int) -> Place:
        """Where the tensors of `tensors(length)` lie, in the paper's settings."""
        config = SparseConfig()
        bounds = torch.empty(5, dtype=torch.int32, device="meta") if self.packed else None
        sizes = {"num_rows": TOKENS, "num_tokens": TOKENS, "num_blocks": length}
        return call_place(config, self.head_dim**-0.5, bounds, query_start=0, **sizes)


# dims and data types that are promised, in each class of shared memory
_PROMISED = tuple(
    Shape(dtype, *dims, 16, memory)
    for memory in ("large", "medium", "small")
    for dims in ((128, 128), (192, 128), (64, 64))
    for dtype in (torch.bfloat16, torch.float16)
)
# packed sequences, small groups, odd dims, fp32
_OTHERS = (
    Shape(torch.bfloat16, 192, 128, 16, "large", packed=True),
    Shape(torch.bfloat16, 128, 128, 4, "large"),
    Shape(torch.bfloat16, 64, 64, 4, "large"),
    Shape(torch.bfloat16, 60, 100, 3, "large"),
    Shape(torch.float16, 192, 128, 1, "large"),
    Shape(torch.float32, 128, 128, 4, "large"),
    Shape(torch.bfloat16, 128, 128, 4, "medium"),
    Shape(torch.bfloat16, 128, 128, 4, "small"),
    Shape(torch.float32, 192, 128, 2, "small"),
)
SHAPES = _PROMISED + _OTHERS


def shape_cases(length: int) -> Iterator[tuple[Shape, Place, Tensor, Tensor, Tensor]]:
    """Every shape with its place, query, key and value; its memory class is assumed until the next one."""
    for shape in SHAPES:
        with assume_memory(shape.memory):
            yield shape, shape.place(length), *shape.tensors(length)
