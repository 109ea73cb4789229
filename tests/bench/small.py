"""A case small enough for the quadratic reference, and wrong backends to put in the right one's place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trisparse import SparseConfig, api
from trisparse.bench.cases import Case

CONFIG = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=4,
    num_initial=1,
    num_local=1,
    window=24,
)
CASE = Case(tokens=160, heads=4, groups=2, head_dim=16, value_dim=24, dtype=torch.float32, config=CONFIG)
SIZES: dict[str, Any] = {
    "heads": 4,
    "groups": 2,
    "head_dim": 16,
    "value_dim": 24,
    "dtype": torch.float32,
    "config": CONFIG,
    "samples": 3,
    "seconds_per_case": 1.0,
}

right = api.sparse_attention
right_ids = api.select_blocks


def scaled(*arguments: Any, **options: Any) -> Tensor:
    return right(*arguments, **options) * 1.05


def swapped_heads(*arguments: Any, **options: Any) -> Tensor:
    return right(*arguments, **options)[:, :, [1, 0, 2, 3]]


def window_too_wide(*arguments: Any, **options: Any) -> Tensor:
    *tensors, config = arguments
    return right(*tensors, replace(config, window=config.window + 1), **options)


def not_a_number(*arguments: Any, **options: Any) -> Tensor:
    out = right(*arguments, **options).clone()
    out[0, -1, 0, 0] = float("nan")
    return out


WRONG: list[Callable[..., Tensor]] = [scaled, swapped_heads, window_too_wide, not_a_number]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        return tensor.clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return 2 * grad


def doubled_gradients(*arguments: Any, **options: Any) -> Tensor:
    return _Doubled.apply(right(*arguments, **options))


def worst_ids(*arguments: Any, **options: Any) -> Tensor:
    """Well-formed ids with the forced blocks in them, but the lowest free ones instead of the best."""
    ids = right_ids(*arguments, **options)
    own = torch.arange(ids.shape[1])[:, None] // CONFIG.select_block
    lowest = torch.arange(CONFIG.num_selected).expand(ids.shape[1], -1)
    chosen = torch.cat([lowest[:, :-1], own.clamp(min=CONFIG.num_selected - 1)], dim=1)
    chosen = chosen.masked_fill(chosen > own, -1)
    return chosen[None, :, None].expand_as(ids).to(torch.int32).contiguous()
