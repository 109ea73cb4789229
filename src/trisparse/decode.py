"""The whole op for the newest tokens of rows of different length, against a cache with room to spare."""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
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

# tensors and options that passed every check but that of the values in `starts`, and what does such a step:
# decoding repeats one for each token, and with cold caches checking it anew takes longer than some kernels
_Step = Callable[..., Pair]
_KNOWN: dict[tuple[Any, ...], _Step] = {}
_MOST_KNOWN = 1000
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
    pairs = (compressed, selected, window)
    options = (config, window_ring, scale, backend)
    signature = _signature((query, query_cmp, gates, starts), pairs, options)
    step = _KNOWN.get(signature) if signature else None
    if step is None:
        _check_shapes(query, query_cmp, compressed, selected, window, gates, starts, config, window_ring)
        if (narrow := validate.narrow_gates(gates, query)) is not gates:
            # the next call brings wide ones again: its step is not prepared
            gates, signature = narrow, None
        tensors = (query, query_cmp, *compressed, *selected, *window, gates, starts)
        facts: dict[str, Any] = {
            "window_ring": window[0].shape[1] if window_ring else 0,
            "config": config,
            "scale": validate.softmax_scale(scale, query.shape[3]),
            "backend": backends.choose(backend, query.device.type, query.dtype),
        }
        if not _has_kernels(facts["backend"], query.shape[1]):
            step = partial(_by_rows, **facts)
        elif signature:
            step = ops.prepared_decode(*tensors, **facts)
        else:
            step = partial(ops.decode, **facts)
        _remember(signature, step)
    if starts.is_cpu and not torch.compiler.is_compiling():
        values = _read(starts) if signature else starts.tolist()
        validate.row_starts(values, query, selected[0].shape[1], compressed[0].shape[1], config)
    return step(query, query_cmp, *compressed, *selected, *window, gates, starts)


def _read(starts: Tensor) -> Sequence[int]:
    """The values of a plain int32 tensor [B] on the CPU: `tolist` takes as long as some steps' selection."""
    if starts.numel() == 0 or starts.stride(0) != 1:
        return starts.tolist()
    return (ctypes.c_int32 * len(starts)).from_address(starts.data_ptr())[:]


def _remember(signature: tuple[Any, ...] | None, step: _Step) -> None:
    if signature:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[signature] = step


def _has_kernels(backend: str, num_rows: int) -> bool:
    """Whether its operator takes so many new tokens at once. The CPU's takes any, in either mode."""
    few = 0 < num_rows <= _GPU_ROWS and not is_batch_invariant()
    return backend == "cpu" or (backend == "triton" and few)


def _signature(
    tensors: tuple[Tensor | None, ...], pairs: tuple[Pair, ...], options: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """All of a call but addresses and values; None where that may be no call at all, or must be watched."""
    if ops.is_watched() or not all(type(option) in _OPTIONS for option in options):
        return None
    for pair in pairs:
        if type(pair) is not tuple or len(pair) != 2:
            return None
        tensors += pair
    # with their types: True would pass for 1 and for 1.0
    facts: list[Any] = [is_batch_invariant(), *map(type, options), *options]
    for each in tensors:
        if each is None:
            facts.append(None)
            continue
        if type(each) is not Tensor or each.layout is not torch.strided or each.is_nested:
            return None
        if each.is_neg():
            # its memory has the other signs
            return None
        facts += each.shape, each.stride(), each.dtype, each.device
    return tuple(facts)


def _check_shapes(
    query: Tensor,
    query_cmp: Tensor | None,
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
    if query_cmp is not None:
        validate.query_like("query_cmp", query_cmp, query)


@torch.no_grad()
def _by_rows(
    *tensors: Tensor | None, window_ring: int, config: SparseConfig, scale: float, backend: str
) -> Pair:
    """Each row of the batch alone, for backends without kernels for the step."""
    *rows, starts = tensors
    query, _, _, _, key_slc, value_slc, *_ = rows
    assert starts is not None and query is not None and key_slc is not None and value_slc is not None
    if not len(query):
        ids_shape = (*query.shape[:2], key_slc.shape[2], config.num_selected)
        return query.new_empty(*query.shape[:3], value_slc.shape[3]), starts.new_empty(ids_shape)
    place = (window_ring, config, scale, backend)
    values = starts.tolist()
    if backend == "triton" and len(set(values)) == 1:
        # its kernels give a row the same bits whatever is beside it; matrix products of PyTorch's do not
        return _attend(rows, values[0], *place)
    parts = []
    for row, start in enumerate(values):
        alone = [None if x is None else x[row : row + 1] for x in rows]
        parts.append(_attend(alone, start, *place))
    return torch.cat([out for out, _ in parts]), torch.cat([ids for _, ids in parts])


def _attend(
    tensors: Sequence[Any],
    start: int,
    window_ring: int,
    config: SparseConfig,
    scale: float,
    backend: str,
) -> Pair:
    """Rows that all start at `start`, by the ops of a whole forward, over exactly their own tokens."""
    query, query_cmp, key_cmp, value_cmp, key_slc, value_slc, key_win, value_win, gates = tensors
    if start < 0:
        shape = (*query.shape[:2], key_slc.shape[2], config.num_selected)
        ids = torch.full(shape, -1, dtype=torch.int32, device=query.device)
        return query.new_zeros(*query.shape[:3], value_slc.shape[3]), ids
    stop = start + query.shape[1]
    first = max(0, start - config.window + 1)
    near: slice | Tensor = slice(first, stop)
    if 0 < window_ring < stop:
        near = torch.arange(first, stop, device=query.device) % window_ring
    blocks = config.num_compressed(stop)
    compressed = (key_cmp[:, :blocks], value_cmp[:, :blocks])
    selected = (key_slc[:, :stop], value_slc[:, :stop])
    window = (key_win[:, near], value_win[:, near])
    if query_cmp is None and (is_batch_invariant() or (first == 0 and backend in backends.FUSED)):
        # the very call of the whole forward; tokens before the window are not seen
        if first:
            window = (pad(window[0], (0, 0, 0, 0, first, 0)), pad(window[1], (0, 0, 0, 0, first, 0)))
        return _whole(query, compressed, selected, window, gates, start, config, scale, backend)
    place: dict[str, Any] = {"query_start": start, "scale": scale, "backend": backend}
    first_query = query if query_cmp is None else query_cmp
    out_cmp, _, ids = api.attend_and_select(first_query, *compressed, config, **place)
    out_slc = api.selected_attention(query, *selected, ids, config, **place)
    place["query_start"] = start - first
    out_win = api.window_attention(query, *window, config, **place)
    return api.gated_sum(gates, (out_cmp, out_slc, out_win)), ids


def _whole(
    query: Tensor,
    compressed: Pair,
    selected: Pair,
    window: Pair,
    gates: Tensor,
    start: int,
    config: SparseConfig,
    scale: float,
    backend: str,
) -> Pair:
    """`sparse_attention` and the ids that it used."""
    if backend in backends.FUSED:
        return ops.attend_with_ids(
            query,
            *compressed,
            *selected,
            *window,
            gates,
            config=config,
            scale=scale,
            query_start=start,
            backend=backend,
        )
    place: dict[str, Any] = {"query_start": start, "scale": scale, "backend": backend}
    ids = api.select_blocks(query, compressed[0], config, **place)
    return api.sparse_attention(query, compressed, selected, window, gates, config, **place), ids
