"""The check by sampled rows lets right results pass and finds each kind of wrong one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trisparse import SparseConfig
from trisparse.testing.inputs import Case, make_inputs
from trisparse.testing.sampled_rows import Call, compare_rows, dense_call, sample_rows, sparse_call

CONFIG = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=3,
    num_initial=1,
    num_local=1,
    window=20,
)
CASE = Case(name="rows", batch=2, tokens=150, heads=4, groups=2, head_dim=16, value_dim=24, config=CONFIG)
PLACES = [row for row in sample_rows(150, 7, seed=1) if not 100 <= row.start < 108]
PLACES = sorted([*PLACES, slice(100, 108)], key=lambda place: place.start)


def call_of(dtype: torch.dtype = torch.float32) -> Call:
    call, _ = sparse_call(make_inputs(CASE, dtype, 3).tensors, CONFIG, "torch")
    return call


def check(call: Call, gradients: bool = True) -> None:
    for found in compare_rows(call, PLACES, gradients=gradients):
        found.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_right_backend_passes(dtype: torch.dtype) -> None:
    """Guards against a reference of single rows that is not that of the whole."""
    check(call_of(dtype))
    names = [found.name for found in compare_rows(call_of(dtype), PLACES[:1], gradients=True)]
    rows = [f"gradient of {name}, sampled rows" for name in ("query", "gates")]
    assert names[:3] == ["out, rows 0-0", *rows]
    assert len(names) == 9


def spoil(call: Call, change: Callable[[Tensor], Tensor]) -> Call:
    def run(by_row: Any, by_key: Any) -> Tensor:
        return change(call.run(by_row, by_key))

    return replace(call, run=run)


class _DoubledKeys(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return torch.cat([grad[:, :96], 2 * grad[:, 96:112], grad[:, 112:]], dim=1)


@pytest.mark.parametrize(
    "change",
    [lambda out: 1.05 * out, lambda out: out[:, :, [1, 0, 2, 3]], lambda out: out.roll(1, dims=1)],
    ids=["scale", "heads", "rows"],
)
def test_wrong_output_is_found(change: Callable[[Tensor], Tensor]) -> None:
    """Guards against rows that are compared with themselves."""
    with pytest.raises(AssertionError, match="out, rows"):
        check(spoil(call_of(), change), gradients=False)


def test_gradient_of_one_block_twice_is_found() -> None:
    """Guards against gradients of keys that only the rows' own neighbourhood checks."""
    call = call_of()

    def run(by_row: Any, by_key: Any) -> Tensor:
        doubled = _DoubledKeys.apply(by_key[3])
        return call.run(by_row, (*by_key[:3], doubled, *by_key[4:]))

    with pytest.raises(AssertionError, match="gradient of value_slc"):
        check(replace(call, run=run))


def test_full_attention_is_checked_too() -> None:
    """Guards against a baseline that is timed unchecked, here one that sees the future."""
    inputs = make_inputs(CASE, torch.float32, 3)

    def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool = True) -> Tensor:
        heads = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2)

    check(dense_call(inputs.query, *inputs.selected, attend))
    with pytest.raises(AssertionError, match="out, rows"):
        check(dense_call(inputs.query, *inputs.selected, lambda *tensors: attend(*tensors, causal=False)))


def test_rows_sampled_twice_are_refused() -> None:
    """Guards against a gradient whose rows the reference counts twice."""
    with pytest.raises(ValueError, match="places: expected ascending rows without overlap"):
        list(compare_rows(call_of(), [slice(0, 64), slice(40, 41)], gradients=True))
