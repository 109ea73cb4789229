"""The decode benchmark: one step of NSA against a cache beside full attention, as rows of decode.csv."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse.bench.bandwidth import Bandwidth, measure_bandwidth
from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.gate import Verdict
from trisparse.bench.rotation import caches_needed, rotate
from trisparse.bench.step import Step
from trisparse.bench.step_contender import StepContender, step_contenders
from trisparse.bench.step_gate import judge_step
from trisparse.bench.step_row import TimedStep
from trisparse.bench.timing import time_interleaved
from trisparse.bench.traffic import token_bytes
from trisparse.config import SparseConfig
from trisparse.report.rows import Rows

# calls of each form before the fastest is taken
TRIALS = 9


def run(
    lengths: Sequence[int],
    *,
    batches: Sequence[int] = (1,),
    heads: int = 64,
    groups: int = 4,
    head_dim: int = 128,
    value_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    new_tokens: int = 1,
    ragged: bool = False,
    backends: Sequence[str] = ("auto",),
    samples: int = 30,
    seconds_per_case: float = 20.0,
    config: SparseConfig | None = None,
    device: torch.device | str = "cpu",
    on_row: Callable[[dict[str, str]], None] | None = None,
) -> Rows:
    """Measure one decode step per batch size and length: "sdpa", "dense" and each backend, in turns.

    "sdpa" is PyTorch's full attention in the form that a few trial calls find fastest (column `form`),
    "dense" is full attention by our own kernels, and a backend is the whole of `sparse_decode`: scores,
    selection and three branches. What makes keys, values and gates is in none of these times: projections,
    rotary embedding, the compressor (eq. 7; a block every `compress_stride` tokens), the append to the cache.

    Steps rotate over several caches (column `caches`), so that no cache is found in the processor's own.
    A step is checked against the fp64 reference first; one that fails gets gate `fail` and no times.

    Args:
        lengths: tokens of a row, the new ones included.
        batches: rows of a batch.
        new_tokens: tokens of each row that attend at once.
        ragged: beside each batch of more than one row, measure one of rows of B different lengths.
        backends: names as `sparse_decode` takes them; "sdpa" and "dense" come first whether named or not.
        samples, seconds_per_case: a case is timed that often, or until that time is spent.
        on_row: called with each row as soon as there is one.

    Returns:
        Rows with the columns `report.decode.COLUMNS`, in that order.

    Raises:
        TypeError, ValueError: an argument is wrong.
        NotImplementedError: a backend that cannot run here.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    cases = [
        DecodeCase(
            tokens=tokens,
            batch=batch,
            heads=heads,
            groups=groups,
            head_dim=head_dim,
            value_dim=value_dim,
            dtype=dtype,
            new_tokens=new_tokens,
            ragged=unequal,
            config=config or SparseConfig(),
        )
        for batch in batches
        for tokens in lengths
        for unequal in ([False, True] if ragged and batch > 1 else [False])
    ]
    device = torch.device(device)
    contenders = step_contenders(backends, device.type, dtype)
    bench = _Bench(contenders, device, samples, seconds_per_case, measure_bandwidth(device))
    rows: Rows = []
    for case in cases:
        for row in bench.measure(case):
            rows.append(row)
            if on_row:
                on_row(row)
    return rows


@dataclass(frozen=True)
class _Bench:
    contenders: list[StepContender]
    device: torch.device
    samples: int
    seconds: float
    bandwidth: Bandwidth

    def measure(self, case: DecodeCase) -> Rows:
        """A row per contender; those that passed their check are timed in turns."""
        entries = [_Entry.of(each, case, self.device) for each in self.contenders]
        held = sum(entry.steps[0].nbytes() for entry in entries)
        caches = caches_needed(self._round_bytes(case), held)
        for entry in entries:
            entry.steps += [entry.steps[0].elsewhere(case, seed) for seed in range(1, caches)]
            self._choose_form(entry)
        verdicts = [judge_step(entry.contender, entry.steps[0], case, entry.form) for entry in entries]
        calls = {
            entry.contender.name: rotate(entry.calls(entry.form))
            for entry, verdict in zip(entries, verdicts, strict=True)
            if verdict.passed
        }
        times = time_interleaved(calls, self.samples, self.seconds, device=self.device)
        return [
            self._row(entry, verdict, times.get(entry.contender.name, []))
            for entry, verdict in zip(entries, verdicts, strict=True)
        ]

    def _round_bytes(self, case: DecodeCase) -> int:
        tokens = [each.tokens_read(length, case) for each in self.contenders for length in case.lengths]
        return sum(tokens) * token_bytes(case)

    def _choose_form(self, entry: "_Entry") -> None:
        """Keep the form whose fastest trial is fastest; there is nothing to try where there is one form."""
        if len(entry.forms) > 1:
            trials = {form: rotate(entry.calls(form)) for form in entry.forms}
            times = time_interleaved(trials, TRIALS, self.seconds, device=self.device)
            entry.form = min(times, key=lambda form: min(times[form]))

    def _row(self, entry: "_Entry", verdict: Verdict, seconds: Sequence[float]) -> dict[str, str]:
        timed = TimedStep(
            contender=entry.contender,
            case=entry.case,
            form=entry.form,
            ids=entry.ids() if verdict.passed else None,
            verdict=verdict,
            seconds=seconds,
            caches=len(entry.steps),
        )
        return timed.row(self.device, self.bandwidth)


@dataclass
class _Entry:
    """A contender in one case: its steps, each with a cache of its own, and the form that counts."""

    contender: StepContender
    case: DecodeCase
    steps: list[Step]
    forms: Sequence[str]
    form: str

    @classmethod
    def of(cls, contender: StepContender, case: DecodeCase, device: torch.device) -> "_Entry":
        forms = contender.forms(case)
        return cls(contender, case, [contender.step(case, device)], forms, forms[0])

    def calls(self, form: str) -> list[Callable[[], Tensor]]:
        """A call per cache."""
        return [self.contender.prepare(step, self.case, form) for step in self.steps]

    def ids(self) -> Tensor | None:
        return self.contender.select(self.steps[0], self.case)
