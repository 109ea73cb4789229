"""What decodes: a backend of our op, full attention by our kernels, and by PyTorch at its best."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trisparse import api, backends
from trisparse.bench.chosen import selection_ratio
from trisparse.bench.decode_case import Cache, DecodeCase
from trisparse.bench.gate import row_ratio
from trisparse.bench.timing import time_interleaved
from trisparse.decode import sparse_decode
from trisparse.reference.attend import attend
from trisparse.reference.sparse_attention import gated_sum
from trisparse.report.measurement import BASELINE

DENSE = "dense"
_TRIALS = 3


class DecodeContender(Protocol):
    """One way to attend the new tokens of a cache: -> [B, n, H, E]."""

    @property
    def name(self) -> str:
        """What the column `backend` calls it."""

    @property
    def form(self) -> str:
        """Which of several ways it goes; empty if there is one."""

    def attend(self, cache: Cache, case: DecodeCase) -> Tensor:
        """The call that is timed."""

    def tokens_read(self, case: DecodeCase) -> int:
        """Tokens whose keys and values a row reads."""

    def instructions(self, dtype: torch.dtype) -> str:
        """The instruction set of the CPU kernels that compute; empty if none do."""

    def worst_ratio(self, cache: Cache, case: DecodeCase) -> float:
        """Its error over what the budget allows; right if at most 1."""


def _kernels(backend: str, dtype: torch.dtype) -> str:
    return backends.cpu_instructions(dtype) if backend == "cpu" else ""


@dataclass(frozen=True)
class Sparse:
    """`sparse_decode`: scoring, selection, three branches and their gated sum."""

    name: str
    form: str = ""

    def attend(self, cache: Cache, case: DecodeCase) -> Tensor:
        return self._run(cache, case)[0]

    def _run(self, cache: Cache, case: DecodeCase) -> tuple[Tensor, Tensor]:
        tensors = (cache.query, cache.compressed, cache.tokens, cache.ring, cache.gates, cache.starts)
        return sparse_decode(*tensors, case.config, window_ring=True, backend=self.name)

    def tokens_read(self, case: DecodeCase) -> int:
        return case.sparse_tokens_read

    def instructions(self, dtype: torch.dtype) -> str:
        return _kernels(self.name, dtype)

    def worst_ratio(self, cache: Cache, case: DecodeCase) -> float:
        out, ids = self._run(cache, case)
        chosen = selection_ratio(ids, cache.query, cache.compressed[0], case.config, case.start)
        if not chosen <= 1.0:
            return chosen
        low, gold = (_expected(cache, case, ids, wide) for wide in (False, True))
        return max(chosen, row_ratio(out, low, gold))


def _expected(cache: Cache, case: DecodeCase, ids: Tensor, wide: bool) -> Tensor:
    """The reference's result for these ids, row by row; in fp64 if `wide`."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.double() if wide else tensor

    rows = []
    first = max(0, case.start - case.config.window + 1)
    slots = torch.arange(first, case.tokens, device=ids.device) % case.ring
    place: dict[str, Any] = {"query_start": case.start, "backend": "reference"}
    for row in range(case.batch):
        one = slice(row, row + 1)
        query, gates = cast(cache.query[one]), cast(cache.gates[one])
        key_cmp, value_cmp = (cast(x[one]) for x in cache.compressed)
        key, value = (cast(x[one]) for x in cache.tokens)
        key_win, value_win = (cast(x[one, slots]) for x in cache.ring)
        out_cmp, _ = api.compressed_attention(query, key_cmp, value_cmp, case.config, **place)
        out_slc = api.selected_attention(query, key, value, ids[one], case.config, **place)
        moved = place | {"query_start": case.start - first}
        out_win = api.window_attention(query, key_win, value_win, case.config, **moved)
        rows.append(gated_sum(out_cmp, out_slc, out_win, gates))
    return torch.cat(rows)


def _dense_ratio(out: Tensor, cache: Cache, case: DecodeCase) -> float:
    """The same for full attention."""
    positions = torch.arange(case.tokens, device=out.device)
    visible = positions <= positions[case.start :, None]

    def expected(row: int, wide: bool) -> Tensor:
        tensors = (cache.query, *cache.tokens)
        query, key, value = (x[row : row + 1].double() if wide else x[row : row + 1] for x in tensors)
        return attend(query, key, value, visible[None, None], case.head_dim**-0.5)[0].to(query.dtype)

    low, gold = (torch.cat([expected(row, wide) for row in range(case.batch)]) for wide in (False, True))
    return row_ratio(out, low, gold)


@dataclass(frozen=True)
class Dense:
    """Full attention by our kernels: a window as long as the context."""

    backend: str
    name: str = DENSE
    form: str = ""

    def attend(self, cache: Cache, case: DecodeCase) -> Tensor:
        everything = replace(case.config, window=case.tokens)
        return api.window_attention(
            cache.query, *cache.tokens, everything, query_start=case.start, backend=self.backend
        )

    def tokens_read(self, case: DecodeCase) -> int:
        return case.tokens

    def instructions(self, dtype: torch.dtype) -> str:
        return _kernels(self.backend, dtype)

    def worst_ratio(self, cache: Cache, case: DecodeCase) -> float:
        return _dense_ratio(self.attend(cache, case), cache, case)


def _mask(case: DecodeCase, device: torch.device) -> Tensor | None:
    """Which tokens the new ones see, bool [n, T]; None where that is all."""
    if case.new_tokens == 1:
        return None
    positions = torch.arange(case.tokens, device=device)
    return positions <= positions[case.start :, None]


def _by_groups(cache: Cache, case: DecodeCase) -> Tensor:
    """PyTorch's own grouped heads."""
    query, key, value = (x.transpose(1, 2) for x in (cache.query, *cache.tokens))
    mask = _mask(case, query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def _as_rows(cache: Cache, case: DecodeCase) -> Tensor:
    """A group's heads as further query rows: each key is read once for all of them."""
    heads = case.heads // case.groups
    query = cache.query.unflatten(2, (case.groups, heads)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    key, value = (x.transpose(1, 2) for x in cache.tokens)
    mask = _mask(case, query.device)
    mask = None if mask is None else mask.repeat(heads, 1)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.unflatten(2, (heads, case.new_tokens)).permute(0, 3, 1, 2, 4).flatten(2, 3)


FORMS: dict[str, Callable[[Cache, DecodeCase], Tensor]] = {"grouped": _by_groups, "heads as rows": _as_rows}


@dataclass(frozen=True)
class Sdpa:
    """PyTorch's `scaled_dot_product_attention` in one of FORMS."""

    form: str
    name: str = BASELINE

    def attend(self, cache: Cache, case: DecodeCase) -> Tensor:
        return FORMS[self.form](cache, case)

    def tokens_read(self, case: DecodeCase) -> int:
        return case.tokens

    def instructions(self, _: torch.dtype) -> str:
        return ""

    def worst_ratio(self, cache: Cache, case: DecodeCase) -> float:
        return _dense_ratio(self.attend(cache, case), cache, case)


def fastest_sdpa(caches: list[Cache], case: DecodeCase, device: torch.device) -> Sdpa:
    """The form that a few calls found fastest for this case."""

    def trial(form: str) -> Callable[[], object]:
        turns = iter(range(10**9))
        return lambda: FORMS[form](caches[next(turns) % len(caches)], case)

    times = time_interleaved({form: trial(form) for form in FORMS}, _TRIALS, 5.0, device=device)
    return Sdpa(min(times, key=lambda form: min(times[form])))
