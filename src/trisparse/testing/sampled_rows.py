"""A few rows of a long sequence against the fp64 reference, which could never compute all of them.

The output is weighted by numbers that are zero outside of the sampled rows. Then the gradients of keys and
values depend on these rows alone, and the reference can give them whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trisparse import api
from trisparse.config import SparseConfig
from trisparse.reference.attend import attend
from trisparse.reference.sparse_attention import gated_sum
from trisparse.testing.budget import assert_within_budget

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One result three times, as `budget.assert_within_budget` takes it, whose arguments these are."""

    name: str
    actual: Tensor
    low: Tensor
    gold: Tensor
    gradient: bool
    cancelling: float

    def check(self) -> None:
        """Raise AssertionError unless `actual` is within its budget."""
        assert_within_budget(
            self.name,
            self.actual,
            self.low,
            self.gold,
            gradient=self.gradient,
            cancelling=self.cancelling,
        )


@dataclass(frozen=True, kw_only=True)
class Call:
    """An attention call and what the specification says of some of its rows.

    Attributes:
        names: of all tensors, those by row first.
        by_row: tensors [B, T, ...] of which an output row needs its own row only: query, gates.
        by_key: tensors [B, N, ...] of which it may need every row.
        run: (by_row, by_key) -> out [B, T, H, E].
        expect: (rows of by_row, by_key, which rows) -> those rows of out, in the tensors' dtype.
    """

    names: Sequence[str]
    by_row: Tensors
    by_key: Tensors
    run: Callable[[Tensors, Tensors], Tensor]
    expect: Callable[[Tensors, Tensors, slice], Tensor]


def sparse_call(tensors: Tensors, config: SparseConfig, backend: str) -> tuple[Call, Tensor]:
    """`sparse_attention` of one backend, and the ids [B, T, G, S] that it goes by.

    `tensors` are query, key and value of the compressed, selected and window branch, and gates.
    """
    query, *keys, gates = tensors
    with torch.no_grad():
        ids = api.select_blocks(query, keys[0], config, backend=backend)

    def run(by_row: Tensors, by_key: Tensors) -> Tensor:
        compressed, selected, window = by_key[0:2], by_key[2:4], by_key[4:6]
        return api.sparse_attention(
            by_row[0],
            (compressed[0], compressed[1]),
            (selected[0], selected[1]),
            (window[0], window[1]),
            by_row[1],
            config,
            backend=backend,
        )

    def expect(by_row: Tensors, by_key: Tensors, rows: slice) -> Tensor:
        query, gates = by_row
        # tokens after the last row cannot matter, nor can those before the first row's window
        seen = slice(0, rows.stop)
        near = slice(max(0, rows.start - config.window + 1), rows.stop)
        selected = [tensor[:, seen] for tensor in by_key[2:4]]
        window = [tensor[:, near] for tensor in by_key[4:6]]
        out_cmp, _ = api.compressed_attention(
            query, by_key[0], by_key[1], config, query_start=rows.start, backend="reference"
        )
        out_slc = api.selected_attention(
            query, selected[0], selected[1], ids[:, rows], config, query_start=rows.start, backend="reference"
        )
        out_win = api.window_attention(
            query, window[0], window[1], config, query_start=rows.start - near.start, backend="reference"
        )
        return gated_sum(out_cmp, out_slc, out_win, gates)

    names = ("query", "gates", "key_cmp", "value_cmp", "key_slc", "value_slc", "key_win", "value_win")
    call = Call(names=names, by_row=(query, gates), by_key=tuple(keys), run=run, expect=expect)
    return call, ids


def dense_call(
    query: Tensor, key: Tensor, value: Tensor, run: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Call:
    """Full causal attention by `run`; `query` [B, T, H, D], `key` [B, T, G, D], `value` [B, T, G, E]."""

    def expect(by_row: Tensors, by_key: Tensors, rows: slice) -> Tensor:
        (query,) = by_row
        key, value = (tensor[:, : rows.stop] for tensor in by_key)
        positions = torch.arange(rows.stop, device=query.device)
        visible = positions <= positions[rows, None]
        out, _ = attend(query, key, value, visible[None, None], query.shape[3] ** -0.5)
        return out.to(query.dtype)

    return Call(
        names=("query", "key", "value"),
        by_row=(query,),
        by_key=(key, value),
        run=lambda by_row, by_key: run(*by_row, *by_key),
        expect=expect,
    )


def sample_rows(tokens: int, count: int, seed: int = 0) -> list[slice]:
    """The first row, the last and others by chance, `count` in all, each a slice of its own."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.randperm(tokens, generator=generator)[: max(0, count - 2)].tolist()
    return [slice(row, row + 1) for row in sorted({0, tokens - 1, *others})]


def compare_rows(call: Call, places: Sequence[slice], *, gradients: bool) -> Iterator[Comparison]:
    """Output rows, and if asked for all gradients by a random sum of these rows, each beside the reference.

    Gradients of `by_row` tensors are those of the sampled rows together: that of a row which sees one key is
    zero but for rounding, and could not be compared alone.

    Raises:
        ValueError: `places` are not ascending or overlap.
    """
    if any(after.start < before.stop for before, after in pairwise(places)):
        raise ValueError(f"places: expected ascending rows without overlap, got {list(places)}")
    actual = _actual(call, places, gradients)
    results = [_expected(call, places, gradients, dtype) for dtype in _precisions(call)]
    terms = _cancelling(call)
    for name, *found in zip(_result_names(call, places, gradients), actual, *results, strict=True):
        got, low, gold = found
        cancels = name.startswith(("gradient of query", "gradient of key"))
        yield Comparison(
            name=name,
            actual=got,
            low=low.to(got.dtype),
            gold=gold,
            gradient="gradient" in name,
            cancelling=terms if cancels else 0.0,
        )


def _cancelling(call: Call) -> float:
    """How large a term grad_out . value * key * scale of d query, or its twin of d key, can be."""
    named = dict(zip(call.names, (*call.by_row, *call.by_key), strict=True))
    keys = [named[name] for name in named if name.startswith(("query", "key")) and named[name].numel()]
    values = [named[name] for name in named if name.startswith("value") and named[name].numel()]
    largest_key = max(key.abs().amax().item() for key in keys)
    largest_value = max(value.float().norm(dim=-1).amax().item() for value in values)
    # the weights of the output are at most 1
    grad_out = values[0].shape[-1] ** 0.5
    return float(named["query"].shape[-1] ** -0.5 * largest_key * largest_value * grad_out)


def _precisions(call: Call) -> tuple[torch.dtype, torch.dtype]:
    return call.by_row[0].dtype, torch.float64


def _result_names(call: Call, places: Sequence[slice], gradients: bool) -> list[str]:
    spans = [f"rows {place.start}-{place.stop - 1}" for place in places]
    names = [f"out, {span}" for span in spans]
    if gradients:
        count = len(call.by_row)
        names += [f"gradient of {name}, sampled rows" for name in call.names[:count]]
        names += [f"gradient of {name}" for name in call.names[count:]]
    return names


def _weights(place: slice, like: Tensor) -> Tensor:
    """Numbers that bf16 holds exactly, so that every precision differentiates the same sum."""
    shape = (like.shape[0], place.stop - place.start, *like.shape[2:])
    numbers = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(place.start))
    return (numbers / 8).to(like)


def _actual(call: Call, places: Sequence[slice], gradients: bool) -> list[Tensor]:
    if not gradients:
        with torch.no_grad():
            out = call.run(call.by_row, call.by_key)
        return [out[:, place] for place in places]
    by_row, by_key = (_leaves(tensors) for tensors in (call.by_row, call.by_key))
    out = call.run(by_row, by_key)
    weights = torch.zeros_like(out)
    for place in places:
        weights[:, place] = _weights(place, out)
    grads = torch.autograd.grad(out, (*by_row, *by_key), weights)
    rows = [torch.cat([grad[:, place] for place in places], dim=1) for grad in grads[: len(by_row)]]
    return [*(out.detach()[:, place] for place in places), *rows, *grads[len(by_row) :]]


def _expected(call: Call, places: Sequence[slice], gradients: bool, dtype: torch.dtype) -> list[Tensor]:
    """The same by the reference, one slice of rows after the other, so that one slice's memory is enough."""
    by_key = _leaves(tuple(tensor.to(dtype) for tensor in call.by_key))
    # the shares of many rows are added in a wider format: low is to round once, as a kernel does
    wide = torch.promote_types(dtype, torch.float32)
    sums = [torch.zeros_like(tensor, dtype=wide) for tensor in by_key] if gradients else []
    outs: list[Tensor] = []
    row_grads: list[Tensors] = []
    for place in places:
        by_row = _leaves(tuple(tensor[:, place].to(dtype) for tensor in call.by_row))
        with torch.set_grad_enabled(gradients):
            out = call.expect(by_row, by_key, place)
        outs.append(out.detach())
        if gradients:
            grads = torch.autograd.grad(out, (*by_row, *by_key), _weights(place, out))
            row_grads.append(grads[: len(by_row)])
            for total, grad in zip(sums, grads[len(by_row) :], strict=True):
                total += grad
    return [*outs, *(torch.cat(grads, dim=1) for grads in zip(*row_grads, strict=True)), *sums]


def _leaves(tensors: Tensors) -> Tensors:
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)
