"""Runs an attention on a batch whose rows may begin with padding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def check_padding(padding: Sequence[int] | None, batch: int, num_tokens: int) -> list[int]:
    """Left-padding tokens of each row, 0 where `padding` is None.

    Raises:
        ValueError: not one number in 0 .. T per row.
    """
    counts = [0] * batch if padding is None else list(padding)
    if len(counts) != batch or any(not 0 <= count <= num_tokens for count in counts):
        raise ValueError(f"padding: expected {batch} numbers in 0 .. {num_tokens}, got {counts}")
    return counts


def without_padding(
    attend: Callable[[list[Tensor], slice], Tensor], tensors: list[Tensor], padding: Sequence[int]
) -> Tensor:
    """`attend` tokens [R, n, ...] of rows `slice`, all together or, if there is padding, row by row.

    `tensors` are [B, T, ...]; returns [B, T, H, E], where padding has 0.
    """
    if not any(padding):
        return attend(tensors, slice(0, len(padding)))
    outputs = []
    for row, skip in enumerate(padding):
        rows = slice(row, row + 1)
        out = attend([tensor[rows, skip:] for tensor in tensors], rows)
        outputs.append(pad(out, (0, 0, 0, 0, skip, 0)))
    return torch.cat(outputs)
