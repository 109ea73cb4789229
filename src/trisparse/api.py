"""The five public functions, and one of our own: check the arguments, choose a backend, call it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trisparse import autograd, backends, validate
from trisparse.config import SparseConfig
from trisparse.reference import sparse_attention as reference


def _call(name: str, backend: str, tensors: tuple[Any, ...], *place: Any, **options: Any) -> Any:
    """Call function `name` of the reference, or of the operators with the chosen backend and `options`."""
    chosen = backends.choose(backend, tensors[0].device.type, tensors[0].dtype)
    if chosen != "reference":
        function: Callable[..., Any] = getattr(autograd, name)
        return function(*tensors, *place, backend=chosen, **options)
    # spec 9 fixes the precision: a caller's autocast region must not reach in
    with torch.autocast(tensors[0].device.type, enabled=False):
        return getattr(reference, name)(*tensors, *place)


def sparse_attention(
    query: Tensor,
    compressed: tuple[Tensor, Tensor],
    selected: tuple[Tensor, Tensor],
    window: tuple[Tensor, Tensor],
    gates: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
    recompute: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Native Sparse Attention: the gated sum of compressed, selected and window attention (eq. 5).

    Args:
        query: [B, Tq, H, D], at positions `query_start .. query_start + Tq - 1`.
        compressed: (key_cmp [B, C, G, D], value_cmp [B, C, G, E]), already compressed (eq. 7); C is exactly
            the number of blocks that T tokens have.
        selected: (key_slc [B, T, G, D], value_slc [B, T, G, E]), raw tokens.
        window: (key_win [B, T, G, D], value_win [B, T, G, E]), raw tokens; may be the same as `selected`.
        gates: [B, Tq, H, 3] for compressed, selected, window, already through their sigmoid.
        config: block sizes and counts.
        scale: factor of the scores; D ** -0.5 if None.
        cu_seqlens: int32 [N + 1], bounds of the documents packed into a batch of B = 1; each is computed as
            if it were alone, and compressed keys lie document after document.
        query_start: position of the first query row (with `cu_seqlens`, a row of the packed sequence).
        recompute: keep no branch outputs for the backward, which is [3, B, Tq, H, E] less memory, and compute
            them there again. The reference keeps everything.
        backend: "auto", "reference", "torch", "cpu" or "triton".

    Returns:
        [B, Tq, H, E] in the query's dtype. A branch adds 0 to a row in which it sees no key, and where its
        gate is 0, even if it is infinite or NaN there.

    Raises:
        TypeError, ValueError: an argument is wrong; the message begins with its name.
        NotImplementedError: a dtype, layout or backend that cannot run here.
        RuntimeError: a second derivative is asked for (not with "reference").
    """
    validate.sizes(config)
    validate.query_rows(query)
    validate.branches(query, compressed, selected, window)
    num_rows, num_tokens = query.shape[1], selected[0].shape[1]
    validate.same_length("key_win", window[0], num_tokens)
    validate.branch_gates(gates, query)
    validate.row_range(query_start, num_rows, num_tokens)
    bounds = validate.packed(cu_seqlens, query, num_tokens)
    validate.compressed_length(compressed[0], config, cu_seqlens, bounds, num_tokens)
    gates = validate.narrow_gates(gates, query)
    tensors = (query, tuple(compressed), tuple(selected), tuple(window), gates)
    place = (config, validate.softmax_scale(scale, query.shape[3]), cu_seqlens, query_start)
    return _call("sparse_attention", backend, tensors, *place, recompute=recompute)


def compressed_attention(
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention over the compressed blocks that end at or before each query.

    Arguments are those of `sparse_attention`, except that C may be larger than what the queries can see.

    Returns:
        out [B, Tq, H, E] in the query's dtype and lse [B, Tq, H], the natural log-sum-exp in fp32 (fp64 for
        fp64), not differentiable. A row that sees no block gives 0 and -inf.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as `sparse_attention`.
    """
    validate.sizes(config)
    validate.query_rows(query)
    validate.key_value("key_cmp", key_cmp, "value_cmp", value_cmp, query)
    scale = _check_compressed(query, key_cmp, config, scale, cu_seqlens, query_start)
    tensors = (query, key_cmp, value_cmp)
    return _call("compressed_attention", backend, tensors, config, scale, cu_seqlens, query_start)


def select_blocks(
    query: Tensor,
    key_cmp: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
    backend: str = "auto",
) -> Tensor:
    """The blocks of raw tokens that each query of each group reads (eq. 8-12).

    Arguments are those of `sparse_attention`, except that C may be larger than what the queries can see.

    Returns:
        ids int32 [B, Tq, G, S], ascending, -1 in empty slots last; forced blocks first come, then the highest
        scores, ties to the lower index. No gradient flows through them.

    Raises:
        TypeError, ValueError, NotImplementedError: as `sparse_attention`.
    """
    validate.sizes(config)
    validate.query_rows(query)
    validate.key_value("key_cmp", key_cmp, "key_cmp", key_cmp, query)
    scale = _check_compressed(query, key_cmp, config, scale, cu_seqlens, query_start)
    return _call("select_blocks", backend, (query, key_cmp), config, scale, cu_seqlens, query_start)


def attend_and_select(
    query: Tensor,
    key_cmp: Tensor,
    value_cmp: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`compressed_attention` and `select_blocks` from the same scores: out, lse and ids. Not public."""
    validate.sizes(config)
    validate.query_rows(query)
    validate.key_value("key_cmp", key_cmp, "value_cmp", value_cmp, query)
    scale = _check_compressed(query, key_cmp, config, scale, cu_seqlens, query_start)
    tensors = (query, key_cmp, value_cmp)
    return _call("attend_and_select", backend, tensors, config, scale, cu_seqlens, query_start)


def selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Attention over the raw tokens, not in the future, of the blocks named by `ids`.

    Args:
        key, value: [B, T, G, D], [B, T, G, E].
        ids: int32 or int64 [B, Tq, G, S], a set per row: order and repeats do not matter, and a value that
            names no block at or before the query (negative, past the last, in the future) adds nothing.

    The other arguments are those of `sparse_attention`.

    Returns:
        [B, Tq, H, E] in the query's dtype; 0 for a row without a usable id.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as `sparse_attention`.
    """
    scale = _check_tokens(query, key, value, config, scale, cu_seqlens, query_start)
    validate.block_ids(ids, query, key.shape[2])
    tensors = (query, key, value, ids)
    return _call("selected_attention", backend, tensors, config, scale, cu_seqlens, query_start)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    query_start: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Attention over exactly the last `config.window` tokens, the query's own included.

    `key` [B, T, G, D], `value` [B, T, G, E]; the other arguments are those of `sparse_attention`.

    Returns:
        [B, Tq, H, E] in the query's dtype.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as `sparse_attention`.
    """
    scale = _check_tokens(query, key, value, config, scale, cu_seqlens, query_start)
    tensors = (query, key, value)
    return _call("window_attention", backend, tensors, config, scale, cu_seqlens, query_start)


def gated_sum(gates: Tensor, branches: tuple[Tensor, ...]) -> Tensor:
    """Eq. 5 alone, for branches [B, T, H, E] that were computed apart; gates [B, T, H, len(branches)].

    Summed in at least fp32, returned in the branches' dtype. A gate of 0 takes its branch away even where
    that is infinite or NaN.
    """
    return autograd.gated_sum(gates, branches)


def _check_compressed(
    query: Tensor,
    key_cmp: Tensor,
    config: SparseConfig,
    scale: float | None,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> float:
    """What the two functions over compressed keys check alike; returns the scale to use."""
    validate.row_range(query_start, query.shape[1], None)
    bounds = validate.packed(cu_seqlens, query, None)
    if bounds is not None:
        validate.row_range(query_start, query.shape[1], bounds[-1])
    validate.compressed_length(key_cmp, config, cu_seqlens, bounds, None, query_start + query.shape[1])
    return validate.softmax_scale(scale, query.shape[3])


def _check_tokens(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    config: SparseConfig,
    scale: float | None,
    cu_seqlens: Tensor | None,
    query_start: int,
) -> float:
    """What the two functions over raw tokens check alike; returns the scale to use."""
    validate.sizes(config)
    validate.query_rows(query)
    validate.key_value("key", key, "value", value, query)
    validate.row_range(query_start, query.shape[1], key.shape[1])
    validate.packed(cu_seqlens, query, key.shape[1])
    return validate.softmax_scale(scale, query.shape[3])
