"""What takes a decode step: a backend of our op, full attention by our kernels, or by PyTorch's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from trisparse import api, backends
from trisparse.bench.chosen import selection_ratio
from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.expected import dense_rows, first_in_window, sparse_rows
from trisparse.bench.sdpa_forms import FORMS, RAGGED_FORMS, row_by_row
from trisparse.bench.step import Step, dense_step, sparse_step
from trisparse.bench.traffic import dense_bytes, sparse_bytes
from trisparse.decode import sparse_decode
from trisparse.report.decode import DENSE
from trisparse.report.measurement import BASELINE

Call = Callable[[], Tensor]


class StepContender(Protocol):
    """A decode step by one implementation, and its specification."""

    @property
    def name(self) -> str:
        """What the column `backend` calls it."""

    def instructions(self, dtype: torch.dtype) -> str:
        """The instruction set of the CPU kernels that compute in `dtype`; empty if none do."""

    def forms(self, case: DecodeCase) -> Sequence[str]:
        """The ways to make the call, of which the fastest counts."""

    def step(self, case: DecodeCase, device: torch.device) -> Step:
        """The tensors it takes."""

    def prepare(self, step: Step, case: DecodeCase, form: str) -> Call:
        """The call that is timed -> [B, n, H, E]; masks are made here, outside the time."""

    def select(self, step: Step, case: DecodeCase) -> Tensor | None:
        """The ids [B, n, G, S] behind the call, or None if it chooses nothing."""

    def selection_ratio(self, step: Step, ids: Tensor | None, case: DecodeCase, row: int) -> float:
        """How far the ids of this row are from the best ones; at most 1 is right."""

    def expect(self, step: Step, ids: Tensor | None, case: DecodeCase, row: int) -> Tensor:
        """The reference's [1, n, H, E] for a row taken out of its batch, in the step's dtype."""

    def tokens_read(self, tokens: int, case: DecodeCase) -> int:
        """Tokens of a row of `tokens` that each query reads, as the paper's Table 4 counts them."""

    def bytes_read(self, case: DecodeCase, ids: Tensor | None) -> int:
        """Bytes of the cache that the call must read."""


@dataclass(frozen=True)
class SparseStep:
    """`sparse_decode` with one backend: scores, selection and the three branches."""

    name: str

    def instructions(self, dtype: torch.dtype) -> str:
        return backends.cpu_instructions(dtype) if self.name == "cpu" else ""

    def forms(self, _: DecodeCase) -> Sequence[str]:
        return [""]

    def step(self, case: DecodeCase, device: torch.device) -> Step:
        return sparse_step(case, device)

    def prepare(self, step: Step, case: DecodeCase, _: str) -> Call:
        starts = _starts(step, case)
        return lambda: self._decode(step, case, starts)[0]

    def select(self, step: Step, case: DecodeCase) -> Tensor:
        return self._decode(step, case, _starts(step, case))[1]

    def _decode(self, step: Step, case: DecodeCase, starts: Tensor) -> tuple[Tensor, Tensor]:
        key_cmp, value_cmp, key_slc, value_slc, key_win, value_win = step.cache
        return sparse_decode(
            step.query,
            (key_cmp, value_cmp),
            (key_slc, value_slc),
            (key_win, value_win),
            step.gates,
            starts,
            case.config,
            window_ring=True,
            backend=self.name,
        )

    def selection_ratio(self, step: Step, ids: Tensor | None, case: DecodeCase, row: int) -> float:
        assert ids is not None
        keys = step.cache[0][:, : case.config.num_compressed(case.lengths[row])]
        return selection_ratio(ids[row : row + 1], step.query, keys, case.config, case.starts[row])

    def expect(self, step: Step, ids: Tensor | None, case: DecodeCase, row: int) -> Tensor:
        assert ids is not None
        config, start, length = case.config, case.starts[row], case.lengths[row]
        blocks = config.num_compressed(length)
        key_cmp, value_cmp, key_slc, value_slc, key_win, value_win = step.cache
        positions = torch.arange(first_in_window(start, config), length, device=ids.device)
        slots = positions % key_win.shape[1]
        return sparse_rows(
            step.query,
            step.gates,
            (key_cmp[:, :blocks], value_cmp[:, :blocks]),
            (key_slc[:, :length], value_slc[:, :length]),
            (key_win[:, slots], value_win[:, slots]),
            ids[row : row + 1],
            config,
            start,
        )

    def tokens_read(self, tokens: int, case: DecodeCase) -> int:
        return case.config.tokens_read(tokens)

    def bytes_read(self, case: DecodeCase, ids: Tensor | None) -> int:
        assert ids is not None
        return sparse_bytes(case, ids)


class Full:
    """What full attentions share; a cache is two tensors [B, room, G, *]."""

    def select(self, _: Step, __: DecodeCase) -> None:
        return None

    def selection_ratio(self, _: Step, __: Tensor | None, ___: DecodeCase, ____: int) -> float:
        return 0.0

    def step(self, case: DecodeCase, device: torch.device) -> Step:
        return dense_step(case, device)

    def expect(self, step: Step, _: Tensor | None, case: DecodeCase, row: int) -> Tensor:
        key, value = (tensor[:, : case.lengths[row]] for tensor in step.cache)
        return dense_rows(step.query, key, value, case.starts[row])

    def tokens_read(self, tokens: int, _: DecodeCase) -> int:
        return tokens

    def bytes_read(self, case: DecodeCase, _: Tensor | None) -> int:
        return dense_bytes(case)


@dataclass(frozen=True)
class DenseStep(Full):
    """Full attention by our own kernels: a window as wide as the context. The form is the backend."""

    backend: str
    name: str = DENSE

    def instructions(self, dtype: torch.dtype) -> str:
        return backends.cpu_instructions(dtype) if self.backend == "cpu" else ""

    def forms(self, _: DecodeCase) -> Sequence[str]:
        return [self.backend]

    def prepare(self, step: Step, case: DecodeCase, form: str) -> Call:
        if case.ragged:
            return row_by_row([self._call(step.row(row), case, row, form) for row in range(case.batch)])
        return self._call(step, case, 0, form)

    def _call(self, step: Step, case: DecodeCase, row: int, backend: str) -> Call:
        """Rows as long as row `row` of the case."""
        key, value = (tensor[:, : case.lengths[row]] for tensor in step.cache)
        config = replace(case.config, window=case.lengths[row])
        start = case.starts[row]
        return lambda: api.window_attention(
            step.query, key, value, config, query_start=start, backend=backend
        )


@dataclass(frozen=True)
class SdpaStep(Full):
    """PyTorch's `scaled_dot_product_attention` over a cache [B, G, room, *]: the baseline."""

    name: str = BASELINE

    def instructions(self, _: torch.dtype) -> str:
        return ""

    def forms(self, case: DecodeCase) -> Sequence[str]:
        return [*FORMS, *RAGGED_FORMS] if case.ragged else list(FORMS)

    def step(self, case: DecodeCase, device: torch.device) -> Step:
        step = super().step(case, device)
        key, value = step.cache
        # the fused kernels want D = E: zero channels, as a cache for them would hold
        value = pad(value, (0, max(0, case.head_dim - case.value_dim)))
        # a head's keys in one piece, as SDPA likes them best
        cache = tuple(tensor.transpose(1, 2).contiguous() for tensor in (key, value))
        for row, length in enumerate(case.lengths):
            for tensor in cache:
                # unlike ours, it looks at what is masked: inf would become NaN
                tensor[row, :, length:] = 0.0
        return Step(step.query, step.gates, cache)

    def prepare(self, step: Step, case: DecodeCase, form: str) -> Call:
        if form in RAGGED_FORMS:
            alone = [replace(case, batch=1, ragged=False, tokens=length) for length in case.lengths]
            plain = RAGGED_FORMS[form]
            return row_by_row([self.prepare(step.row(i), each, plain) for i, each in enumerate(alone)])
        key, value = (tensor[:, :, : case.tokens] for tensor in step.cache)
        return FORMS[form](step.query, key, value, _visible(step, case), case.value_dim)

    def expect(self, step: Step, ids: Tensor | None, case: DecodeCase, row: int) -> Tensor:
        key, value = (tensor.transpose(1, 2) for tensor in step.cache)
        plain = Step(step.query, step.gates, (key, value[..., : case.value_dim]))
        return super().expect(plain, ids, case, row)


def _starts(step: Step, case: DecodeCase) -> Tensor:
    return torch.tensor(case.starts, dtype=torch.int32, device=step.query.device)


def _visible(step: Step, case: DecodeCase) -> Tensor | None:
    """bool [B, 1, n, T], or None where every new token sees every key."""
    if case.new_tokens == 1 and not case.ragged:
        return None
    device = step.query.device
    own = _starts(step, case)[:, None] + torch.arange(case.new_tokens, device=device)
    return (torch.arange(case.tokens, device=device) <= own[..., None])[:, None]


def step_contenders(names: Sequence[str], device: str, dtype: torch.dtype) -> list[StepContender]:
    """The two full attentions, then each backend once, "auto" by the name of its choice.

    Raises:
        TypeError, ValueError, NotImplementedError: as the argument `backend` of `sparse_attention`.
    """
    if isinstance(names, str):
        raise TypeError(f"backends: expected a sequence of names, got the string {names!r}")
    wanted = [name for name in names if name not in (BASELINE, DENSE)]
    chosen = dict.fromkeys(backends.choose(name, device, dtype) for name in wanted)
    dense = DenseStep(backends.choose("auto", device, dtype))
    return [SdpaStep(), dense, *(SparseStep(name) for name in chosen)]
