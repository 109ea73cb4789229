"""What each branch saves for its backward, and how its gradient is routed: the memory story on one page.

Every branch saves its inputs, its output and one log-sum-exp per row and head; scores and probabilities are
recomputed. Backward is first order only.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trisparse import (
    backends,
    ops,  # noqa: F401  (registers torch.ops.trisparse)
)
from trisparse.config import SparseConfig

Pair = tuple[Tensor, Tensor]


class Place(NamedTuple):
    """The arguments that follow the tensors in every operator of `ops.py`."""

    sizes: list[int]
    scale: float
    cu_seqlens: Tensor | None
    query_start: int
    backend: str


def _backward(branch: str, grad_out: Tensor, saved: list[Tensor], place: Place) -> tuple[Tensor, ...]:
    """Gradients of a branch's query, key and value."""
    with torch.no_grad():
        grads = getattr(torch.ops.trisparse, f"{branch}_backward")(grad_out, *saved, *place)
    return _first_order(grads, saved)


class _FirstOrderOnly(torch.autograd.Function):
    """The gradients as they are, but part of a graph in which a second derivative fails instead of vanishing.

    PyTorch's `once_differentiable` lets a second derivative pass silently where `grad_out` is a constant.
    """

    @staticmethod
    def forward(_: Any, _anchor: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(_: Any, *_grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "trisparse: expected a first derivative, got a second one; "
            "backend='reference' can be differentiated twice"
        )


def _first_order(grads: tuple[Tensor, ...], saved: list[Tensor]) -> tuple[Tensor, ...]:
    """`grads`, guarded where a graph of the backward is being made from `saved`."""
    anchor = next((x for x in saved if x.requires_grad), None)
    if anchor is None or not torch.is_grad_enabled():
        return grads
    return _FirstOrderOnly.apply(anchor, *grads)


class _Compressed(torch.autograd.Function):
    """out, lse and, if asked for, the ids of the selected blocks from the same scores."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, place: Place, with_ids: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ids = None
        if with_ids:
            out, lse, ids = torch.ops.trisparse.compressed_select_forward(query, key, value, *place)
            ctx.mark_non_differentiable(lse, ids)
        else:
            out, lse = torch.ops.trisparse.compressed_forward(query, key, value, *place)
            ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(query, key, value, out, lse, place.cu_seqlens)
        ctx.place = place._replace(cu_seqlens=None)
        return out, lse, ids

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        *saved, cu_seqlens = ctx.saved_tensors
        place = ctx.place._replace(cu_seqlens=cu_seqlens)
        grads = _backward("compressed", grad_out, saved, place)
        return (*grads, None, None)


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, ids: Tensor, place: Place) -> Tensor:
        out, lse = torch.ops.trisparse.selected_forward(query, key, value, ids, *place)
        ctx.save_for_backward(query, key, value, ids, out, lse, place.cu_seqlens)
        ctx.place = place._replace(cu_seqlens=None)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        *saved, cu_seqlens = ctx.saved_tensors
        place = ctx.place._replace(cu_seqlens=cu_seqlens)
        grads = _backward("selected", grad_out, saved, place)
        return (*grads, None, None)


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, place: Place) -> Tensor:
        out, lse = torch.ops.trisparse.window_forward(query, key, value, *place)
        ctx.save_for_backward(query, key, value, out, lse, place.cu_seqlens)
        ctx.place = place._replace(cu_seqlens=None)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        *saved, cu_seqlens = ctx.saved_tensors
        place = ctx.place._replace(cu_seqlens=cu_seqlens)
        grads = _backward("window", grad_out, saved, place)
        return (*grads, None)


class _Sparse(torch.autograd.Function):
    """The whole op in one operator; saves inputs, branch outputs, one log-sum-exp per branch, and the ids."""

    @staticmethod
    def forward(ctx: Any, place: Place, save: bool, *inputs: Tensor) -> Tensor:
        out, *kept = torch.ops.trisparse.sparse_forward(*inputs, save, *place)
        if save:
            ctx.save_for_backward(*inputs, *kept, place.cu_seqlens)
            ctx.place = place._replace(cu_seqlens=None)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        *saved, cu_seqlens = ctx.saved_tensors
        place = ctx.place._replace(cu_seqlens=cu_seqlens)
        return (None, None, *_backward("sparse", grad_out, saved, place))


class _SparseRecomputed(torch.autograd.Function):
    """The same, but the backward computes branch outputs and log-sum-exps again; saves inputs and ids."""

    @staticmethod
    def forward(ctx: Any, place: Place, *inputs: Tensor) -> Tensor:
        out, _, _, ids = torch.ops.trisparse.sparse_forward(*inputs, False, *place)
        ctx.save_for_backward(*inputs, ids, place.cu_seqlens)
        ctx.place = place._replace(cu_seqlens=None)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, ids, cu_seqlens = ctx.saved_tensors
        place = ctx.place._replace(cu_seqlens=cu_seqlens)
        return (None, *_backward("sparse_recompute", grad_out, [*inputs, ids], place))


def _gated(branch: Tensor, gate: Tensor) -> Tensor:
    """branch [..., E] * gate [...], 0 behind a gate of 0 even where the branch is infinite or NaN."""
    gate = gate.to(branch.dtype)[..., None]
    return (branch * gate).masked_fill_(gate == 0, 0)


class _GatedSum(torch.autograd.Function):
    """Eq. 5, summed in at least fp32; saves the branches as they came, not their wider copies."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, *branches: Tensor) -> Tensor:
        ctx.save_for_backward(gates, *branches)
        dtype = torch.promote_types(branches[0].dtype, torch.float32)
        total = _gated(branches[0].to(dtype), gates[..., 0])
        for index, branch in enumerate(branches[1:], start=1):
            total += _gated(branch.to(dtype), gates[..., index])
        # a conversion to what it is already would lose the gradients where torch.compile (2.11) traces it
        return total if total.dtype == branches[0].dtype else total.to(branches[0].dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        gates, *branches = ctx.saved_tensors
        dtype = torch.promote_types(branches[0].dtype, torch.float32)
        with torch.no_grad():
            grad_out, wide = grad_out.to(dtype), gates.to(dtype)
            grad_gates = [(grad_out * branch.to(dtype)).sum(dim=-1) for branch in branches]
            grads = [
                (grad_out * wide[..., index, None]).to(branch.dtype) for index, branch in enumerate(branches)
            ]
        return _first_order((torch.stack(grad_gates, dim=-1).to(gates.dtype), *grads), [gates, *branches])


def _place(
    config: SparseConfig, scale: float, cu_seqlens: Tensor | None, query_start: int, backend: str
) -> Place:
    return Place(config.as_ints(), scale, cu_seqlens, query_start, backend)


def compressed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """-> out [B, Tq, H, E], lse [B, Tq, H] (not differentiable)."""
    place = _place(config, scale, cu_seqlens, query_start, backend)
    out, lse, _ = _Compressed.apply(query, key, value, place, False)
    return out, lse


def select_blocks(
    query: Tensor,
    key: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    backend: str,
) -> Tensor:
    """-> ids int32 [B, Tq, G, S]; no gradient flows through selection (spec 4)."""
    place = _place(config, scale, cu_seqlens, query_start, backend)
    return torch.ops.trisparse.select_blocks(query.detach(), key.detach(), *place)


def attend_and_select(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> out, lse as `compressed_attention`, ids as `select_blocks`, from the same scores."""
    place = _place(config, scale, cu_seqlens, query_start, backend)
    return _Compressed.apply(query, key, value, place, True)


def selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    backend: str,
) -> Tensor:
    """-> out [B, Tq, H, E]."""
    place = _place(config, scale, cu_seqlens, query_start, backend)
    return _Selected.apply(query, key, value, ids, place)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    backend: str,
) -> Tensor:
    """-> out [B, Tq, H, E]."""
    place = _place(config, scale, cu_seqlens, query_start, backend)
    return _Window.apply(query, key, value, place)


def gated_sum(gates: Tensor, branches: tuple[Tensor, ...]) -> Tensor:
    """Eq. 5 for branches [B, T, H, E] and gates [B, T, H, len(branches)]."""
    return _GatedSum.apply(gates, *branches)


def sparse_attention(
    query: Tensor,
    compressed: tuple[Tensor, Tensor],
    selected: tuple[Tensor, Tensor],
    window: tuple[Tensor, Tensor],
    gates: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    recompute: bool,
    backend: str,
) -> Tensor:
    """-> out [B, Tq, H, E]; the ids are those of `select_blocks`, from the compressed branch's own scores."""
    place = _place(config, scale, cu_seqlens, query_start, backend)
    if backend in backends.FUSED:
        inputs = (query, *compressed, *selected, *window, gates)
        save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        if recompute and save:
            return _SparseRecomputed.apply(place, *inputs)
        return _Sparse.apply(place, save, *inputs)
    if recompute:
        apart = (place, query, compressed, selected, window, gates)
        return checkpoint(_sum_of_parts, *apart, use_reentrant=False)
    return _sum_of_parts(place, query, compressed, selected, window, gates)


def _sum_of_parts(
    place: Place, query: Tensor, compressed: Pair, selected: Pair, window: Pair, gates: Tensor
) -> Tensor:
    out_cmp, _, ids = _Compressed.apply(query, *compressed, place, True)
    out_slc = _Selected.apply(query, *selected, ids, place)
    out_win = _Window.apply(query, *window, place)
    return gated_sum(gates, (out_cmp, out_slc, out_win))
