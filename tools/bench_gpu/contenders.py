"""What is timed: our whole op and its parts, and the full attentions that are at hand."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

import trisparse
from trisparse.bench.cases import QUERY_SPREAD, Case
from trisparse.testing.sampled_rows import Call, Tensors, dense_call, sparse_call

# query, key, value of [B, T, heads, dim] -> out [B, T, H, E]
Dense = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A function of `leaves`; `call` is how it is checked, or None for a part of a call that was.

    A part that the whole does not contain has a `check`: sampled rows -> worst error over what is allowed.
    """

    name: str
    part: str
    leaves: Tensors
    forward: Callable[[Tensors], Tensor]
    call: Call | None = None
    check: Callable[[Sequence[slice]], float] | None = None
    differentiable: bool = True


def draw(case: Case, device: str) -> Tensors:
    """Query, key and value of the three branches, gates, as `sparse_attention` takes them."""
    generator = torch.Generator(device=device).manual_seed(0)

    def normal(tokens: int, heads: int, dim: int) -> Tensor:
        shape = (case.batch, tokens, heads, dim)
        return torch.randn(shape, generator=generator, device=device, dtype=case.dtype)

    tensors = [normal(case.tokens, case.heads, case.head_dim) * QUERY_SPREAD]
    for length in (case.config.num_compressed(case.tokens), case.tokens, case.tokens):
        tensors.append(normal(length, case.groups, case.head_dim))
        tensors.append(normal(length, case.groups, case.value_dim))
    tensors.append(normal(case.tokens, case.heads, 3).sigmoid())
    return tuple(tensors)


def sparse(tensors: Tensors, case: Case, backend: str) -> tuple[Contender, Tensor]:
    """The whole op, and the ids it goes by."""
    call, ids = sparse_call(tensors, case.config, backend)
    count = len(call.by_row)
    contender = Contender(
        name=backend,
        part="whole",
        leaves=(*call.by_row, *call.by_key),
        forward=lambda leaves: call.run(leaves[:count], leaves[count:]),
        call=call,
    )
    return contender, ids


def parts(tensors: Tensors, ids: Tensor, case: Case, backend: str) -> Iterator[Contender]:
    """The public functions that the whole op consists of."""
    query, key_cmp, value_cmp, key_slc, value_slc, key_win, value_win, _ = tensors
    config = case.config

    def compressed(leaves: Tensors) -> Tensor:
        query, key, value = leaves
        return trisparse.compressed_attention(query, key, value, config, backend=backend)[0]

    def select(leaves: Tensors) -> Tensor:
        query, key = leaves
        return trisparse.select_blocks(query, key, config, backend=backend)

    def selected(leaves: Tensors) -> Tensor:
        query, key, value = leaves
        return trisparse.selected_attention(query, key, value, ids, config, backend=backend)

    def window(leaves: Tensors) -> Tensor:
        query, key, value = leaves
        return trisparse.window_attention(query, key, value, config, backend=backend)

    for part, leaves, forward in (
        ("compressed", (query, key_cmp, value_cmp), compressed),
        ("select_blocks", (query, key_cmp), select),
        ("selected", (query, key_slc, value_slc), selected),
        ("window", (query, key_win, value_win), window),
    ):
        yield Contender(
            name=backend,
            part=part,
            leaves=leaves,
            forward=forward,
            differentiable=part != "select_blocks",
        )


def dense(tensors: Tensors, rehearsal: bool) -> Iterator[Contender]:
    """Full causal attention over the selected branch's keys: PyTorch's kernels, and FlashAttention 3."""
    query, key, value = tensors[0], tensors[3], tensors[4]
    runs: dict[str, Dense]
    if rehearsal:
        runs = {"sdpa": lambda *heads: _sdpa(None, *heads)}
    else:
        runs = {
            "sdpa": lambda *heads: _sdpa(SDPBackend.FLASH_ATTENTION, *heads),
            "cudnn": lambda *heads: _sdpa(SDPBackend.CUDNN_ATTENTION, *heads),
        }
    flash = _flash_attention_3()
    if flash is not None:
        runs["fa3"] = flash
    for name, run in runs.items():
        yield _full(name, run, query, key, value)


def _full(name: str, run: Dense, query: Tensor, key: Tensor, value: Tensor) -> Contender:
    return Contender(
        name=name,
        part="whole",
        leaves=(query, key, value),
        forward=lambda leaves: run(*leaves),
        call=dense_call(query, key, value, run),
    )


def _sdpa(backend: SDPBackend | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, T, H, D] in and out; the flash kernels want D = E, so that a shorter value is padded for them."""
    value_dim = value.shape[3]
    if backend != SDPBackend.CUDNN_ATTENTION:
        value = pad(value, (0, query.shape[3] - value_dim))
    with nullcontext() if backend is None else sdpa_kernel(backend):
        out = scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            enable_gqa=True,
        )
    return out.transpose(1, 2)[..., :value_dim]


def _flash_attention_3() -> Dense | None:
    try:
        function = importlib.import_module("flash_attn_interface").flash_attn_func
    except ImportError:
        return None

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = function(query, key, value, causal=True)
        # some versions return the log-sum-exp too
        return out[0] if isinstance(out, tuple) else out

    return run
