"""The whole op and its parts beside full attention: check, peak memory, times of each direction."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from clock import Clock
from contenders import Contender, dense, draw, parts, sparse
from say import say
from tables import Tables
from token_tiles import token_tiles
from torch import Tensor

from trisparse.bench.cases import Case
from trisparse.bench.chosen import selection_ratio
from trisparse.bench.gate import error_ratio
from trisparse.config import SparseConfig
from trisparse.testing.sampled_rows import Call, compare_rows, sample_rows

_PEAK_OF = {
    "forward": "forward",
    "backward": "forward+backward",
    "forward+backward": "forward+backward",
}
DIRECTIONS = tuple(_PEAK_OF)

# a contender, and its worst error over what is allowed
Judged = tuple[Contender, float]


@dataclass(frozen=True, kw_only=True)
class AttentionBench:
    """How every attention is measured."""

    backend: str
    device: str
    clock: Clock
    tables: Tables
    directions: Sequence[str]
    samples: int
    seconds: float
    rows: int

    def is_done(self, case: Case) -> bool:
        return not self._missing(case)

    def _missing(self, case: Case) -> list[str]:
        """Directions without rows."""
        return [each for each in self.directions if not self.tables.has("attention.csv", case.name, each)]

    def measure(self, case: Case) -> None:
        """All contenders of one case: check, memory, times of the directions that have none."""
        tensors = draw(case, self.device)
        whole, ids = sparse(tensors, case, self.backend)
        rows = sample_rows(case.tokens, self.rows)
        judged = [
            (each, self._judge(case, each, rows)) for each in (whole, *dense(tensors, self.device == "cpu"))
        ]
        judged = [(each, ratio) for each, ratio in judged if ratio is not None]
        chosen = _selection(tensors, ids, case.config, rows)
        judged = [(each, max(ratio, chosen) if each is whole else ratio) for each, ratio in judged]
        # parts go by the check of their whole, and have no times without one
        ratio = next((ratio for each, ratio in judged if each is whole), math.inf)
        for direction in self._missing(case):
            timed = self._time(case, direction, judged)
            if direction != "forward+backward":
                all_parts = parts(tensors, ids, case, self.backend)
                self._time(case, direction, [(part, ratio) for part in all_parts])
            tiles = token_tiles(tensors, ids, case, self.backend) if direction == "forward" else ()
            if tiled := [(each, max(ratio, _check(each, rows))) for each in tiles]:
                self._time(case, direction, tiled)
            self.tables.finish(timed)

    def _judge(self, case: Case, contender: Contender, rows: list[slice]) -> float | None:
        """The worst error over what is allowed; None if it cannot run here at all."""
        assert contender.call is not None
        gradients = self.directions != ["forward"]
        try:
            ratio = _worst_ratio(contender.call, rows, gradients)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            if contender.name == self.backend and not isinstance(error, torch.OutOfMemoryError):
                raise
            say(f"{case.name} {contender.name}: left out, {str(error).splitlines()[0]}")
            return None
        say(f"{case.name} {contender.name}: error {ratio:.3g} of what is allowed")
        return ratio

    def _time(self, case: Case, direction: str, judged: Sequence[Judged]) -> list[dict[str, str]]:
        """A row of parts.csv each."""
        if direction != "forward":
            judged = [(each, ratio) for each, ratio in judged if each.differentiable]
        calls, peaks = {}, {}
        for each, ratio in judged:
            if ratio > 1.0:
                continue
            key = f"{each.name} {each.part}"
            try:
                # what a backward needs includes what its forward saved
                peaks[key] = self.clock.peak_bytes(_prepare(each, _PEAK_OF[direction]))
                calls[key] = _prepare(each, direction)
            except torch.OutOfMemoryError:
                calls.pop(key, None)
                say(f"{case.name} {direction} {key}: out of memory")
        times = self.clock.time(calls, self.samples, self.seconds)
        rows = []
        for each, ratio in judged:
            key = f"{each.name} {each.part}"
            if key not in times and ratio <= 1.0:
                continue
            taken = times.get(key, [])
            peak = peaks.get(key)
            rows.append(self.tables.add(case, each.name, each.part, direction, taken, ratio, peak))
            shown = f"{sorted(taken)[len(taken) // 2]:.3f} ms" if taken else "failed its check"
            say(f"{case.name} {direction} {key}: {shown}")
        return rows


def _check(contender: Contender, rows: list[slice]) -> float:
    """What a contender's own check finds; infinite if there is no memory for it."""
    assert contender.check is not None
    try:
        return contender.check(rows)
    except torch.OutOfMemoryError:
        say(f"{contender.name} {contender.part}: out of memory")
        return math.inf


def _prepare(contender: Contender, direction: str) -> Callable[[], object]:
    """The call to time. A backward starts from a graph that is kept."""
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return contender.forward(contender.leaves)

        return forward
    leaves = tuple(tensor.detach().requires_grad_() for tensor in contender.leaves)
    # as the output lies in memory, so that no call pays for a copy of it
    grad_out = torch.randn_like(contender.forward(leaves))
    if direction == "forward+backward":
        return lambda: torch.autograd.grad(contender.forward(leaves), leaves, grad_out)
    out = contender.forward(leaves)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def _worst_ratio(call: Call, rows: list[slice], gradients: bool) -> float:
    found = compare_rows(call, rows, gradients=gradients)
    ratios = [error_ratio(each.actual, each.low, each.gold, gradient=each.gradient) for each in found]
    return max(math.inf if math.isnan(ratio) else ratio for ratio in ratios)


def _selection(tensors: Sequence[Tensor], ids: Tensor, config: SparseConfig, rows: Sequence[slice]) -> float:
    """How far the chosen blocks of some rows are from the best ones, over what rounding allows."""
    query, key = tensors[:2]
    return max(selection_ratio(ids[:, row], query[:, row], key, config, row.start) for row in rows)
