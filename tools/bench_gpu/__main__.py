"""Measure Trisparse on a GPU: ceilings, then the whole op and its parts beside full attention.

    PYTHONPATH=src python tools/bench_gpu                       # everything, benchmarks/results/gpu/
    PYTHONPATH=src python tools/bench_gpu --lengths 65536 --shapes 64/4x192/128
    PYTHONPATH=src python tools/bench_gpu --rehearse            # tiny, on the CPU: shows only that it runs

Each call is checked first: rows and gradients against the fp64 reference. What fails gets no times.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ceilings import ceilings
from clock import Clock, CudaClock, RehearsalClock
from contenders import Contender, dense, draw, parts, sparse
from tables import Tables
from torch import Tensor

import trisparse
from trisparse.bench.cases import Case
from trisparse.bench.chosen import selection_ratio
from trisparse.bench.gate import error_ratio
from trisparse.config import SparseConfig
from trisparse.testing.sampled_rows import Call, compare_rows, sample_rows

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu"
SHAPES = {
    "64/4x192/128": (64, 4, 192, 128),
    "64/4x128/128": (64, 4, 128, 128),
    "32/8x128/128": (32, 8, 128, 128),
}
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
_PEAK_OF = {
    "forward": "forward",
    "backward": "forward+backward",
    "forward+backward": "forward+backward",
}
DIRECTIONS = tuple(_PEAK_OF)
REHEARSED_SHAPES = {"4/2x24/16": (4, 2, 24, 16)}
REHEARSED_LENGTHS = (192,)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How everything is measured."""

    backend: str
    device: str
    clock: Clock
    tables: Tables
    directions: Sequence[str]
    samples: int
    seconds: float
    rows: int

    def measure(self, case: Case) -> None:
        """All contenders of one case: check, memory, times."""
        tensors = draw(case, self.device)
        whole, ids = sparse(tensors, case, self.backend)
        rows = sample_rows(case.tokens, self.rows)
        chosen = _selection(tensors, ids, case.config, rows)
        ratios = {}
        checked = []
        for contender in (whole, *dense(tensors, self.device == "cpu")):
            ratio = self._judge(case, contender, rows)
            if ratio is None:
                continue
            checked.append(contender)
            ratios[contender.name] = max(ratio, chosen) if contender is whole else ratio
        for direction in self.directions:
            self._time(case, direction, checked, ratios)
            if direction != "forward+backward":
                self._time(case, direction, list(parts(tensors, ids, case, self.backend)), ratios)

    def _judge(self, case: Case, contender: Contender, rows: list[slice]) -> float | None:
        """The worst error over what is allowed; None if it cannot run here at all."""
        assert contender.call is not None
        gradients = self.directions != ["forward"]
        try:
            ratio = _worst_ratio(contender.call, rows, gradients)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            if contender.name == self.backend and not isinstance(error, torch.OutOfMemoryError):
                raise
            _say(f"{case.name} {contender.name}: left out, {str(error).splitlines()[0]}")
            return None
        _say(f"{case.name} {contender.name}: error {ratio:.3g} of what is allowed")
        return ratio

    def _time(
        self, case: Case, direction: str, contenders: Sequence[Contender], ratios: dict[str, float]
    ) -> None:
        if direction != "forward":
            contenders = [each for each in contenders if each.differentiable]
        calls, peaks = {}, {}
        for each in contenders:
            key = f"{each.name} {each.part}"
            if ratios.get(each.name, math.inf) > 1.0:
                continue
            try:
                # what a backward needs includes what its forward saved
                peaks[key] = self.clock.peak_bytes(_prepare(each, _PEAK_OF[direction]))
                calls[key] = _prepare(each, direction)
            except torch.OutOfMemoryError:
                calls.pop(key, None)
                _say(f"{case.name} {direction} {key}: out of memory")
        times = self.clock.time(calls, self.samples, self.seconds)
        for each in contenders:
            key = f"{each.name} {each.part}"
            ratio = ratios.get(each.name, math.inf)
            if key not in times and ratio <= 1.0:
                continue
            taken = times.get(key, [])
            self.tables.add(case, each.name, each.part, direction, taken, ratio, peaks.get(key))
            shown = f"{sorted(taken)[len(taken) // 2]:.3f} ms" if taken else "failed its check"
            _say(f"{case.name} {direction} {key}: {shown}")


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


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_gpu", description=(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="query heads/KV groups x head/value dim")
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=["forward", "backward"])
    parser.add_argument("--samples", type=int, default=9, help="timings of each call")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each case and direction")
    parser.add_argument("--rows", type=int, default=8, help="rows compared with the reference")
    parser.add_argument("--output", type=Path, help=f"folder of the tables; {RESULTS} unless rehearsing")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, by the torch backend")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parse(arguments)
    backend, device = ("torch", "cpu") if chosen.rehearse else ("triton", "cuda")
    reason = trisparse.available_backends()[backend]
    if reason is not None or (device == "cuda" and not torch.cuda.is_available()):
        _say(f"bench_gpu: {reason or 'no CUDA device'}; --rehearse runs without one")
        return 2
    shapes = REHEARSED_SHAPES if chosen.rehearse else SHAPES
    lengths = chosen.lengths or (REHEARSED_LENGTHS if chosen.rehearse else LENGTHS)
    folder = chosen.output or (Path(tempfile.mkdtemp()) if chosen.rehearse else RESULTS)
    bench = Bench(
        backend=backend,
        device=device,
        clock=RehearsalClock() if chosen.rehearse else CudaClock(),
        tables=Tables(folder, device),
        directions=chosen.directions,
        samples=chosen.samples,
        seconds=chosen.seconds,
        rows=chosen.rows,
    )
    _say(bench.tables.describe_device())
    for what, amount, unit in ceilings(bench.clock, device, chosen.rehearse):
        bench.tables.add_ceiling(what, amount, unit)
        _say(f"{what}: {amount:.1f} {unit}")
    for name in chosen.shapes or shapes:
        heads, groups, head_dim, value_dim = shapes[name]
        for tokens in lengths:
            bench.measure(
                Case(tokens=tokens, heads=heads, groups=groups, head_dim=head_dim, value_dim=value_dim)
            )
    _say(f"tables in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
