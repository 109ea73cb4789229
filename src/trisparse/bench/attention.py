"""The attention benchmark: our backends against PyTorch's full attention, as rows of attention.csv."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse.bench.cases import Case, Tensors
from trisparse.bench.contender import Contender, contender
from trisparse.bench.gate import Gate
from trisparse.bench.part import PARTS, Part
from trisparse.bench.peak import peak_bytes
from trisparse.bench.row import finished_row
from trisparse.bench.table import environment
from trisparse.bench.timing import time_interleaved
from trisparse.config import SparseConfig
from trisparse.report.measurement import ATTENTION_COLUMNS, BASELINE
from trisparse.report.rows import Rows

DIRECTIONS = ("forward", "backward", "forward+backward")


def run(
    lengths: Iterable[int],
    *,
    heads: int = 16,
    groups: int = 1,
    head_dim: int = 128,
    value_dim: int = 128,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    backends: Sequence[str] = ("auto",),
    parts: bool = False,
    directions: Sequence[str] = ("forward", "backward"),
    baseline_limit: int | None = None,
    samples: int = 9,
    seconds_per_case: float = 20.0,
    config: SparseConfig | None = None,
    device: torch.device | str = "cpu",
    on_row: Callable[[dict[str, str]], None] | None = None,
) -> Rows:
    """Measure one attention call per length, direction and backend, and the baseline "sdpa" beside them.

    A backend is checked against the fp64 reference first; one that fails gets a row with gate `fail` and no
    times. Backward is one `torch.autograd.grad` by all inputs, alone or after the forward it needs. The
    column `peak_mib` is the most memory that such a call held beyond what was there before, results included,
    where the system tells. The op takes compressed keys, so the time of a compressor (eq. 7) is not included;
    nor are projections, gates and rotary embedding.

    Args:
        lengths: tokens of each case; an iterator is asked for the next one when the last is measured.
        backends: names as `sparse_attention` takes them; "sdpa" comes first whether named or not.
        parts: beside each backend also measure its parts alone (`part.PARTS`), as "cpu:window".
        directions: some of "forward", "backward", "forward+backward".
        baseline_limit: "sdpa" is left out of longer cases, in which it may take hours; None for no limit.
        samples, seconds_per_case: a case is timed that often, or until that time is spent.
        on_row: called with each row as soon as there is one.

    Returns:
        Rows with the columns `measurement.ATTENTION_COLUMNS`, in that order.

    Raises:
        TypeError, ValueError: an argument is wrong.
        NotImplementedError: a backend that cannot run here.
    """
    _check(directions, samples)
    cases: Iterable[Case] = (
        Case(
            tokens=tokens,
            heads=heads,
            groups=groups,
            head_dim=head_dim,
            value_dim=value_dim,
            batch=batch,
            dtype=dtype,
            config=config or SparseConfig(),
        )
        for tokens in lengths
    )
    if isinstance(lengths, Sequence):
        # a wrong one is to be named before anything runs
        cases = list(cases)
    bench = _Bench(
        _contenders(backends, torch.device(device).type, dtype, parts),
        Gate(torch.device(device)),
        math.inf if baseline_limit is None else baseline_limit,
        samples,
        seconds_per_case,
    )
    rows: Rows = []
    for case in cases:
        for direction in directions:
            for row in bench.measure(case, direction):
                rows.append(row)
                if on_row:
                    on_row(row)
    return rows


def _check(directions: Sequence[str], samples: int) -> None:
    for direction in directions:
        if direction not in DIRECTIONS:
            raise ValueError(f"directions: expected some of {', '.join(DIRECTIONS)}, got {direction!r}")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")


def _contenders(backends: Sequence[str], device: str, dtype: torch.dtype, parts: bool) -> list[Contender]:
    """The baseline, then each backend once, "auto" by the name of its choice, then their parts."""
    if isinstance(backends, str):
        raise TypeError(f"backends: expected a sequence of names, got the string {backends!r}")
    found = [contender(name, device, dtype) for name in (BASELINE, *backends)]
    names = dict.fromkeys(each.name for each in found if each.name != BASELINE)
    found += [Part(name, part) for name in names for part in PARTS if parts]
    return list({each.name: each for each in found}.values())


@dataclass(frozen=True)
class _Bench:
    contenders: list[Contender]
    gate: Gate
    baseline_limit: float
    samples: int
    seconds: float

    def measure(self, case: Case, direction: str) -> Rows:
        """A row per contender; those that passed their check are timed in turns."""
        gradients = direction != "forward"
        contenders = [
            each
            for each in self.contenders
            if (each.differentiable or not gradients)
            and (each.name != BASELINE or case.tokens <= self.baseline_limit)
        ]
        verdicts = {each.name: self.gate.judge(each, case, gradients=gradients) for each in contenders}
        calls = {
            each.name: _prepare(each, case, direction, self.gate.device)
            for each in contenders
            if verdicts[each.name].passed
        }
        peaks: dict[str, int | None] = {}

        def first(name: str, call: Callable[[], object]) -> None:
            peaks[name] = peak_bytes(call, self.gate.device)

        device = self.gate.device
        times = time_interleaved(calls, self.samples, self.seconds, device=device, first=first)
        shared = {"direction": direction, **case.setting(), **environment(self.gate.device)}
        return [
            finished_row(
                {
                    "case": case.name,
                    "backend": each.name,
                    "instructions": each.instructions(case.dtype),
                    "peak_mib": _mebibytes(peaks.get(each.name)),
                    **shared,
                },
                verdicts[each.name],
                times.get(each.name, []),
                ATTENTION_COLUMNS,
            )
            for each in contenders
        ]


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f}"


def _prepare(each: Contender, case: Case, direction: str, device: torch.device) -> Callable[[], object]:
    tensors = each.inputs(case, device)
    if direction == "forward":
        return lambda: _forward(each, tensors, case.config)
    leaves = tuple(tensor.requires_grad_() for tensor in tensors)
    # as the output lies in memory, so that no call pays for a copy of it
    grad_out = torch.randn_like(_forward(each, leaves, case.config))
    if direction == "forward+backward":
        return lambda: torch.autograd.grad(each.attend(leaves, case.config), leaves, grad_out)
    out = each.attend(leaves, case.config)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def _forward(each: Contender, tensors: Tensors, config: SparseConfig) -> Tensor:
    with torch.no_grad():
        return each.attend(tensors, config)
