"""The whole op for the newest tokens of rows of different length, against a cache with room to spare."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from trisparse import api, backends, ops, validate
from trisparse.config import SparseConfig
from trisparse.invariance import is_batch_invariant

Pair = tuple[Tensor, Tensor]

# more new tokens than this are a prefill, for which the other GPU kernels are made
_GPU_ROWS = 64

# calls that passed every check but that of the values in `starts`, and their scale and backend: decoding
# repeats one for each token, and with cold caches checking it anew takes longer than some of its kernels
_PASSED: dict[tuple[Any, ...], tuple[float, str]] = {}
_MOST_PASSED = 1000
_OPTIONS = (SparseConfig, bool, str, float, int, type(None))


def sparse_decode(
    query: Tensor,
    compressed: Pair,
    selected: Pair,
    window: Pair,
    gates: Tensor,
    starts: Tensor,
    config: SparseConfig,
    *,
    window_ring: bool = False,
    query_cmp: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`sparse_attention` (eq. 5) of each row's n newest tokens, at `starts[b] .. starts[b] + n - 1`.

    A row's result does not depend on the other rows by a bit. What lies in the cache behind a row's tokens
    does not matter, whatever it is. There is no gradient.

    Args:
        query: [B, n, H, D].
        compressed: (key_cmp [B, Rc, G, D], value_cmp [B, Rc, G, E]), room for compressed blocks.
        selected: (key_slc [B, R, G, D], value_slc [B, R, G, E]), room for raw tokens, the new ones included.
        window: (key_win, value_win): as `selected`, or with `window_ring` [B, Rw, G, *].
        gates: [B, n, H, 3].
        starts: int32 [B] on the query's device. A row that starts below 0 takes no part.
        window_ring: the token at position s lies in slot s % Rw of `window`; Rw is a multiple of 64 and at
            least config.window - 1 + n.
        query_cmp: [B, n, H, D], what the compressed branch and the selection use instead of `query`.
        scale, backend: as in `sparse_attention`.

    Returns:
        out [B, n, H, E] in the query's dtype, and ids int32 [B, n, G, S] as `select_blocks` returns them.
        A row that takes no part gets 0 and -1.

    Raises:
        TypeError, ValueError, NotImplementedError: as `sparse_attention`; on a CPU also for starts that do
            not fit the room. On a GPU these are not looked at, but nothing outside the tensors is touched.
    """
    scale, chosen = _check(
        query, compressed, selected, window, gates, starts, config, window_ring, scale, backend
    )
    if query_cmp is not None:
        validate.query_like("query_cmp", query_cmp, query)
    if not _has_kernels(chosen, query.shape[1]):
        tensors = (query, gates, *compressed, *selected, *window)
        if not len(query):
            return query.new_empty(*query.shape[:3], selected[1].shape[3]), starts.new_empty(
                *query.shape[:2], selected[0].shape[2], config.num_selected
            )
        parts = []
        for row, start in enumerate(starts.tolist()):
            alone = [x[row : row + 1] for x in tensors]
            alone_cmp = None if query_cmp is None else query_cmp[row : row + 1]
            parts.append(_one_row(alone, alone_cmp, start, config, window_ring, scale, chosen))
        return torch.cat([out for out, _ in parts]), torch.cat([ids for _, ids in parts])
    return ops.decode(
        query,
        query_cmp,
        *compressed,
        *selected,
        *window,
        gates,
        starts,
        window_ring=window[0].shape[1] if window_ring else 0,
        config=config,
        scale=scale,
        backend=chosen,
    )


def _has_kernels(backend: str, num_rows: int) -> bool:
    """Whether its operator takes so many new tokens at once. The CPU's takes any, in either mode."""
    few = num_rows <= _GPU_ROWS and not is_batch_invariant()
    return backend == "cpu" or (backend == "triton" and few)


def _check(
    query: Tensor,
    compressed: Pair,
    selected: Pair,
    window: Pair,
    gates: Tensor,
    starts: Tensor,
    config: SparseConfig,
    window_ring: bool,
    scale: float | None,
    backend: str,
) -> tuple[float, str]:
    """-> the scale, and the backend that runs."""
    # with its type: True would pass for 1.0
    options = (config, window_ring, scale, backend)
    signature = _signature((query, gates, starts), (compressed, selected, window), options)
    found = _PASSED.get(signature) if signature else None
    if found is None:
        _check_shapes(query, compressed, selected, window, gates, starts, config, window_ring)
        found = (
            validate.softmax_scale(scale, query.shape[3]),
            backends.choose(backend, query.device.type, query.dtype),
        )
        if signature:
            if len(_PASSED) >= _MOST_PASSED:
                _PASSED.clear()
            _PASSED[signature] = found
    validate.row_starts(starts, query, selected[0].shape[1], compressed[0].shape[1], config)
    return found


def _signature(
    tensors: tuple[Tensor, ...], pairs: tuple[Pair, ...], options: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """What is checked but for values; None where that may be no call at all, or is not worth it."""
    if torch.compiler.is_compiling() or not all(type(option) in _OPTIONS for option in options):
        return None
    for pair in pairs:
        if type(pair) is not tuple or len(pair) != 2:
            return None
        tensors += pair
    facts: list[Any] = [(type(option), option) for option in options]
    for each in tensors:
        if type(each) is not Tensor or each.is_nested:
            return None
        facts += each.shape, each.dtype, each.device, each.layout
    return tuple(facts)


def _check_shapes(
    query: Tensor,
    compressed: Pair,
    selected: Pair,
    window: Pair,
    gates: Tensor,
    starts: Tensor,
    config: SparseConfig,
    window_ring: bool,
) -> None:
    validate.sizes(config)
    if not isinstance(window_ring, bool):
        raise TypeError(f"window_ring: expected True or False, got {window_ring!r}")
    validate.query_rows(query)
    validate.branches(query, compressed, selected, window)
    validate.branch_gates(gates, query)
    num_rows, room = query.shape[1], selected[0].shape[1]
    if window_ring:
        validate.ring("key_win", window[0], config.window - 1 + num_rows)
    else:
        validate.same_length("key_win", window[0], room)
    validate.start_per_row(starts, query)


def _one_row(
    tensors: list[Tensor],
    query_cmp: Tensor | None,
    start: int,
    config: SparseConfig,
    window_ring: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """One row of the batch by the public functions, over exactly its own tokens."""
    query, gates, key_cmp, value_cmp, key_slc, value_slc, key_win, value_win = tensors
    if start < 0:
        shape = (*query.shape[:2], key_slc.shape[2], config.num_selected)
        ids = torch.full(shape, -1, dtype=torch.int32, device=query.device)
        return query.new_zeros(*query.shape[:3], value_slc.shape[3]), ids
    stop = start + query.shape[1]
    first = max(0, start - config.window + 1)
    slots = torch.arange(first, stop, device=query.device)
    if window_ring:
        slots = slots % key_win.shape[1]
    blocks = config.num_compressed(stop)
    compressed = (key_cmp[:, :blocks], value_cmp[:, :blocks])
    selected = (key_slc[:, :stop], value_slc[:, :stop])
    near = (key_win[:, slots], value_win[:, slots])
    place: dict[str, Any] = {"query_start": start, "scale": scale, "backend": backend}
    first_query = query if query_cmp is None else query_cmp
    ids = api.select_blocks(first_query, compressed[0], config, **place)
    if query_cmp is None and is_batch_invariant():
        # the very call of the whole forward; tokens before the window are not seen
        key_win, value_win = (pad(x, (0, 0, 0, 0, first, 0)) for x in near)
        window = (key_win, value_win)
        return api.sparse_attention(query, compressed, selected, window, gates, config, **place), ids
    out_cmp, _ = api.compressed_attention(first_query, *compressed, config, **place)
    out_slc = api.selected_attention(query, *selected, ids, config, **place)
    place["query_start"] = start - first
    out_win = api.window_attention(query, *near, config, **place)
    return api.gated_sum(gates, (out_cmp, out_slc, out_win)), ids
