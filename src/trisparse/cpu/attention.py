"""The branches by the native kernels. Results are made here and filled there."""

import ctypes

import torch
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.cpu.decode import decode_forward, prepare_decode  # noqa: F401 part of the room
from trisparse.cpu.library import library
from trisparse.cpu.problem import BRANCHES, DATA_TYPES, Problem, empty_ids
from trisparse.cpu.run import run


def instructions_for(dtype: torch.dtype) -> str:
    """The instruction set that computes in `dtype`: the one in use, or the next that takes it."""
    function = library(dtype).functions.trisparse_instructions_for
    function.restype = ctypes.c_char_p
    return function(DATA_TYPES[dtype]).decode()


def _native_ids(ids: Tensor) -> Tensor:
    """int32 ids in one piece; an id that int32 cannot hold names no block."""
    if ids.dtype != torch.int32:
        ids = ids.masked_fill((ids < 0) | (ids >= 2**31), -1).to(torch.int32)
    return ids.contiguous()


def _results(query: Tensor, value_dim: int) -> tuple[Tensor, Tensor]:
    """Memory for output and log-sum-exp; the kernels write every row, empty ones too."""
    shape = query.shape[:3]
    return query.new_empty(*shape, value_dim), query.new_empty(shape, dtype=torch.float32)


def _forward(
    branch: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    ids: Tensor | None = None,
    select: bool = False,
) -> tuple[Tensor, Tensor]:
    out, lse = _results(query, value.shape[3])
    problem = Problem(query, key.shape[2], value.shape[3], config, scale, cu_seqlens, query_start)
    problem.give_branch(branch, key=key, value=value, out=out, log_sum_exp=lse)
    if ids is not None:
        problem.give("ids", ids)
    problem.structure.select = select
    run("forward", problem)
    return out, lse


def compressed_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """-> out [B, Tq, H, E] in the query's dtype, lse fp32 [B, Tq, H]."""
    return _forward("compressed", query, key, value, config, scale, cu_seqlens, query_start)


def compressed_select_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> out [B, Tq, H, E], lse [B, Tq, H], ids int32 [B, Tq, G, S] from one pass over the scores."""
    ids = empty_ids(query, key, config)
    out, lse = _forward(
        "compressed", query, key, value, config, scale, cu_seqlens, query_start, ids=ids, select=True
    )
    return out, lse, ids


def select_blocks(
    query: Tensor,
    key: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> Tensor:
    """-> ids int32 [B, Tq, G, S], bit for bit those of `compressed_select_forward`."""
    ids = empty_ids(query, key, config)
    problem = Problem(query, key.shape[2], 1, config, scale, cu_seqlens, query_start)
    problem.give_branch("compressed", key=key)
    problem.give("ids", ids)
    problem.structure.select = True
    run("forward", problem)
    return ids


def selected_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """-> out [B, Tq, H, E] in the query's dtype, lse fp32 [B, Tq, H]."""
    return _forward(
        "selected", query, key, value, config, scale, cu_seqlens, query_start, ids=_native_ids(ids)
    )


def window_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """-> out [B, Tq, H, E] in the query's dtype, lse fp32 [B, Tq, H]."""
    return _forward("window", query, key, value, config, scale, cu_seqlens, query_start)


def _give_branches(
    problem: Problem, pairs: tuple[tuple[Tensor, Tensor], ...], branches: Tensor, lse: Tensor
) -> None:
    """Keys and values of all branches, and where their results go; nowhere if `branches` is empty."""
    for index, (branch, (key, value)) in enumerate(zip(BRANCHES, pairs, strict=True)):
        kept = {"out": branches[index], "log_sum_exp": lse[index]} if len(branches) else {}
        problem.give_branch(branch, key=key, value=value, **kept)


def sparse_forward(
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    gates: Tensor,
    save: bool,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole op -> out [B, Tq, H, E], branches [3, B, Tq, H, E], lse [3, B, Tq, H], ids [B, Tq, G, S].

    Without `save`, nothing is kept for a backward: branches and lse are empty.
    """
    batch, rows, heads, _ = query.shape
    value_dim = value_cmp.shape[3]
    kept = len(BRANCHES) if save else 0
    out = query.new_empty(batch, rows, heads, value_dim)
    branches = query.new_empty(kept, batch, rows, heads, value_dim)
    lse = query.new_empty((kept, batch, rows, heads), dtype=torch.float32)
    ids = empty_ids(query, key_slc, config)
    problem = Problem(query, key_slc.shape[2], value_dim, config, scale, cu_seqlens, query_start)
    pairs = ((key_cmp, value_cmp), (key_slc, value_slc), (key_win, value_win))
    _give_branches(problem, pairs, branches, lse)
    for name, tensor in (("gates", gates), ("out", out), ("ids", ids)):
        problem.give(name, tensor)
    problem.structure.select = True
    run("forward", problem)
    return out, branches, lse, ids


def _branches_again(
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor]:
    """The branches [3, B, Tq, H, E] and lse [3, B, Tq, H] of `sparse_forward`, bit for bit, from its ids."""
    shape, value_dim = query.shape[:3], value_cmp.shape[3]
    branches = query.new_empty(len(BRANCHES), *shape, value_dim)
    lse = query.new_empty((len(BRANCHES), *shape), dtype=torch.float32)
    problem = Problem(query, key_slc.shape[2], value_dim, config, scale, cu_seqlens, query_start)
    pairs = ((key_cmp, value_cmp), (key_slc, value_slc), (key_win, value_win))
    _give_branches(problem, pairs, branches, lse)
    problem.give("ids", _native_ids(ids))
    run("forward", problem)
    return branches, lse


def _gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Zeros in one piece: tokens that no row sees are not visited."""
    return tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _backward(
    branch: str,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value = _gradients(query, key, value)
    problem = Problem(query, key.shape[2], value.shape[3], config, scale, cu_seqlens, query_start)
    problem.give_branch(
        branch, key=key, value=value, out=out, log_sum_exp=lse, grad_key=grad_key, grad_value=grad_value
    )
    problem.give("grad_out", grad_out)
    problem.give("grad_query", grad_query)
    if ids is not None:
        problem.give("ids", ids)
    run("backward", problem)
    return grad_query, grad_key, grad_value


def compressed_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients shaped and typed like query, key, value."""
    return _backward(
        "compressed", grad_out, query, key, value, out, lse, config, scale, cu_seqlens, query_start
    )


def selected_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients shaped and typed like query, key, value."""
    return _backward(
        "selected",
        grad_out,
        query,
        key,
        value,
        out,
        lse,
        config,
        scale,
        cu_seqlens,
        query_start,
        ids=_native_ids(ids),
    )


def window_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients shaped and typed like query, key, value."""
    return _backward("window", grad_out, query, key, value, out, lse, config, scale, cu_seqlens, query_start)


def sparse_backward(
    grad_out: Tensor,
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    gates: Tensor,
    branches: Tensor,
    lse: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, ...]:
    """-> gradients of query, the six keys and values, gates; nothing is kept per branch but two row sums."""
    pairs = (key_cmp, value_cmp, key_slc, value_slc, key_win, value_win)
    grads = _gradients(query, *pairs, gates)
    problem = Problem(query, key_slc.shape[2], value_cmp.shape[3], config, scale, cu_seqlens, query_start)
    for index, branch in enumerate(BRANCHES):
        problem.give_branch(
            branch,
            key=pairs[2 * index],
            value=pairs[2 * index + 1],
            out=branches[index],
            log_sum_exp=lse[index],
            grad_key=grads[1 + 2 * index],
            grad_value=grads[2 + 2 * index],
        )
    given = {"grad_out": grad_out, "gates": gates, "ids": ids, "grad_query": grads[0], "grad_gates": grads[7]}
    for name, tensor in given.items():
        problem.give(name, tensor)
    run("backward", problem)
    return grads


def sparse_recompute_backward(
    grad_out: Tensor,
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    key_slc: Tensor,
    value_slc: Tensor,
    key_win: Tensor,
    value_win: Tensor,
    gates: Tensor,
    ids: Tensor,
    config: SparseConfig,
    scale: float,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> tuple[Tensor, ...]:
    """The gradients of `sparse_backward`, bit for bit, from the ids alone: branches are computed again."""
    inputs = query, key_cmp, value_cmp, key_slc, value_slc, key_win, value_win
    where = config, scale, cu_seqlens, query_start
    branches, lse = _branches_again(*inputs, ids, *where)
    return sparse_backward(grad_out, *inputs, gates, branches, lse, ids, *where)
