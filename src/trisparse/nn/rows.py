"""Runs an attention row by row, where the rows of a batch have different lengths."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from trisparse.nn.cache import BatchCache, RowCache


def check_padding(padding: Sequence[int] | None, batch: int, num_tokens: int) -> list[int]:
    """Left-padding tokens of each row, 0 where `padding` is None.

    Raises:
        ValueError: not one number in 0 .. T per row.
    """
    counts = [0] * batch if padding is None else list(padding)
    if len(counts) != batch or any(not 0 <= count <= num_tokens for count in counts):
        raise ValueError(f"padding: expected {batch} numbers in 0 .. {num_tokens}, got {counts}")
    return counts


def each_row(
    attend: Callable[[list[Tensor], RowCache | None], Tensor],
    tensors: Sequence[Tensor],
    padding: Sequence[int],
    cache: BatchCache | None,
) -> Tensor:
    """`attend` each row's tokens [1, n, ...] without its padding; padding rows of the result are 0.

    `tensors` are [B, T, ...]; returns [B, T, H, E].
    """
    batch, num_tokens = tensors[0].shape[:2]
    rows: Sequence[RowCache | None] = [None] * batch
    if cache is not None:
        cache.reserve(batch, [num_tokens - skip for skip in padding])
        rows = cache.rows
    outputs = []
    for index, (skip, row) in enumerate(zip(padding, rows, strict=True)):
        out = attend([tensor[index : index + 1, skip:] for tensor in tensors], row)
        outputs.append(pad(out, (0, 0, 0, 0, skip, 0)))
    return torch.cat(outputs)
