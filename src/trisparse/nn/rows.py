"""Runs an attention on a batch whose rows may begin with padding."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def check_padding(padding: Any, batch: int, num_tokens: int) -> list[int]:
    """Left-padding tokens of each row, 0 where `padding` is None.

    Raises:
        TypeError: no sequence of ints.
        ValueError: not one number in 0 .. T per row.
    """
    if padding is not None and not isinstance(padding, Iterable):
        raise TypeError(f"padding: expected a list of ints, got {type(padding).__name__}")
    counts = [0] * batch if padding is None else list(padding)
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"padding: expected ints, got {type(count).__name__} {count!r}")
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
