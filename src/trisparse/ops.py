"""The operators PyTorch knows us by: schemas, shapes for tracing, and dispatch to the backend's room.

One operator per stage and direction, the backend an argument; four for the whole op (forward, backward,
backward from the ids alone, decode), which only the backends in `backends.FUSED` have. Nothing here imports
Triton or starts a compiler. Operators have no autograd formula of their own: `autograd.py` routes the
gradients.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trisparse import backends
from trisparse.config import SparseConfig

_PLACE = "int[] sizes, float scale, Tensor? cu_seqlens, SymInt query_start, str backend"
_INPUTS = "Tensor query, Tensor key, Tensor value"
_SAVED = "Tensor out, Tensor lse"
_ALL = "Tensor query, " + ", ".join(
    f"Tensor {part}_{branch}" for branch in ("cmp", "slc", "win") for part in ("key", "value")
)
_SCHEMAS = {
    "compressed_forward": f"({_INPUTS}, {_PLACE}) -> (Tensor, Tensor)",
    "compressed_select_forward": f"({_INPUTS}, {_PLACE}) -> (Tensor, Tensor, Tensor)",
    "compressed_backward": f"(Tensor grad_out, {_INPUTS}, {_SAVED}, {_PLACE}) -> (Tensor, Tensor, Tensor)",
    "select_blocks": f"(Tensor query, Tensor key, {_PLACE}) -> Tensor",
    "selected_forward": f"({_INPUTS}, Tensor ids, {_PLACE}) -> (Tensor, Tensor)",
    "selected_backward": f"(Tensor grad_out, {_INPUTS}, Tensor ids, {_SAVED}, {_PLACE})"
    " -> (Tensor, Tensor, Tensor)",
    "window_forward": f"({_INPUTS}, {_PLACE}) -> (Tensor, Tensor)",
    "window_backward": f"(Tensor grad_out, {_INPUTS}, {_SAVED}, {_PLACE}) -> (Tensor, Tensor, Tensor)",
    "sparse_forward": f"({_ALL}, Tensor gates, bool save, {_PLACE}) -> (Tensor, Tensor, Tensor, Tensor)",
    "sparse_backward": f"(Tensor grad_out, {_ALL}, Tensor gates, Tensor branches, Tensor lse, Tensor ids, "
    f"{_PLACE}) -> ({', '.join(['Tensor'] * 8)})",
    "sparse_recompute_backward": f"(Tensor grad_out, {_ALL}, Tensor gates, Tensor ids, {_PLACE}) "
    f"-> ({', '.join(['Tensor'] * 8)})",
    "decode_forward": f"(Tensor query, Tensor? query_cmp, {_ALL.removeprefix('Tensor query, ')}, "
    "Tensor gates, Tensor starts, SymInt window_ring, int[] sizes, float scale, str backend) "
    "-> (Tensor, Tensor)",
}


def _run(name: str, *arguments: Any) -> Any:
    """Call function `name` of the backend's room. The last arguments are those of `_PLACE`."""
    *tensors, sizes, scale, cu_seqlens, query_start, backend = arguments
    return _run_in(backend, name, *tensors, _config(tuple(sizes)), scale, cu_seqlens, query_start)


def _run_decode(name: str, *arguments: Any) -> Any:
    """The same for the operator that has no `cu_seqlens` and no `query_start`."""
    *tensors, sizes, scale, backend = arguments
    return _run_in(backend, name, *tensors, _config(tuple(sizes)), scale)


def attend_with_ids(
    *tensors: Tensor, config: SparseConfig, scale: float, query_start: int, backend: str
) -> tuple[Tensor, Tensor]:
    """`sparse_forward` that saves nothing -> out and ids."""
    place = (config.as_ints(), scale, None, query_start, backend)
    with torch.no_grad():
        out, _, _, ids = torch.ops.trisparse.sparse_forward(*tensors, False, *place)
    return out, ids


def decode(
    *tensors: Tensor | None, window_ring: int, config: SparseConfig, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """`decode_forward` by way of the dispatcher."""
    with torch.no_grad():
        return torch.ops.trisparse.decode_forward(*tensors, window_ring, config.as_ints(), scale, backend)


def prepared_decode(
    *tensors: Tensor | None, window_ring: int, config: SparseConfig, scale: float, backend: str
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`decode_forward` for all tensors laid out as these, past the dispatcher: for where nobody watches.

    What the dispatcher, our argument checks and the filling of structures take is a tenth of a short step.
    """
    arguments = (window_ring, config, scale)
    prepare = getattr(backends.room(backend), "prepare_decode", None)
    prepared = prepare(*tensors, *arguments) if prepare else None
    return prepared or (lambda *others: _run_in(backend, "decode_forward", *others, *arguments))


def is_watched() -> bool:
    """Whether a compiler, mode, transform or profiler must see operators themselves."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch.autograd._profiler_enabled()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@cache
def _config(sizes: tuple[int, ...]) -> SparseConfig:
    """`SparseConfig.from_ints`, checked once: a decode step takes less time than some checks."""
    return SparseConfig.from_ints(list(sizes))


def _run_in(backend: str, name: str, *arguments: Any) -> Any:
    function, device = getattr(backends.room(backend), name), arguments[0].device.type
    with torch.no_grad():
        if not torch.is_autocast_enabled(device):
            return function(*arguments)
        # a caller's autocast region must not reach the arithmetic inside: spec 9 fixes its precision
        with torch.autocast(device, enabled=False):
            return function(*arguments)


def _attention_shapes(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
    return out, lse


def _ids_shape(query: Tensor, key: Tensor, sizes: list[int]) -> Tensor:
    num_selected = SparseConfig.from_ints(sizes).num_selected
    return query.new_empty((*query.shape[:2], key.shape[2], num_selected), dtype=torch.int32)


def _fake_forward(query: Tensor, _key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _attention_shapes(query, value)


def _fake_select_forward(
    query: Tensor, key: Tensor, value: Tensor, sizes: list[int], *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (*_attention_shapes(query, value), _ids_shape(query, key, sizes))


def _fake_select(query: Tensor, key: Tensor, sizes: list[int], *_: Any) -> Tensor:
    return _ids_shape(query, key, sizes)


def _fake_backward(
    _grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _fake_sparse_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, _, _, key_slc, value_slc, _, _, _, save, sizes, *_ = arguments
    out, lse = _attention_shapes(query, value_slc)
    kept = 3 if save else 0
    return (
        out,
        out.new_empty((kept, *out.shape)),
        lse.new_empty((kept, *lse.shape)),
        _ids_shape(query, key_slc, sizes),
    )


def _fake_sparse_backward(_grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[:8])


def _fake_decode(query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    _, _, _, key_slc, value_slc, *_ = arguments
    sizes = arguments[-3]
    return _attention_shapes(query, value_slc)[0], _ids_shape(query, key_slc, sizes)


_FAKES: dict[str, Callable[..., Any]] = {
    "compressed_forward": _fake_forward,
    "compressed_select_forward": _fake_select_forward,
    "compressed_backward": _fake_backward,
    "select_blocks": _fake_select,
    "selected_forward": _fake_forward,
    "selected_backward": _fake_backward,
    "window_forward": _fake_forward,
    "window_backward": _fake_backward,
    "sparse_forward": _fake_sparse_forward,
    "sparse_backward": _fake_sparse_backward,
    "sparse_recompute_backward": _fake_sparse_backward,
    "decode_forward": _fake_decode,
}

# the library object must live as long as the process: dropping it would unregister the operators
_LIBRARY = torch.library.Library("trisparse", "DEF")


def _register(name: str) -> None:
    run = _run_decode if name == "decode_forward" else _run

    def implementation(*arguments: Any) -> Any:
        return run(name, *arguments)

    _LIBRARY.define(name + _SCHEMAS[name])
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"trisparse::{name}", _FAKES[name], lib=_LIBRARY)


for _name in _SCHEMAS:
    _register(_name)
