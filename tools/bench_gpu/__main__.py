"""Measure Trisparse on a GPU: ceilings, the whole op and its parts beside full attention, and decode steps.

    PYTHONPATH=src python tools/bench_gpu                       # everything, benchmarks/results/gpu/
    PYTHONPATH=src python tools/bench_gpu --kinds decode --lengths 65536 --shapes 64/4x192/128
    PYTHONPATH=src python tools/bench_gpu --rehearse            # tiny, on the CPU: shows only that it runs

Each call is checked first: rows, gradients and ids against the fp64 reference. What fails gets no times.
When the minutes are over, the rest is left out; the same command then measures what the tables do not have.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch

sys.path.append(str(Path(__file__).parents[1] / "lent_gpu"))

from attention import DIRECTIONS, AttentionBench
from budget import Budget
from ceilings import ceilings
from clock import Clock, CudaClock, RehearsalClock
from compilations import compilations
from decode import DecodeBench
from say import say
from tables import Tables

from trisparse.backends import choose
from trisparse.bench.bandwidth import Bandwidth
from trisparse.bench.cases import Case
from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.rotation import MOST_CACHES

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu"
# what matters most comes first, here and below
SHAPES = {
    "64/4x128/128": (64, 4, 128, 128),
    "64/4x192/128": (64, 4, 192, 128),
    "32/8x128/128": (32, 8, 128, 128),
}
LENGTHS = (65536, 8192, 32768, 131072, 16384, 4096)
BATCHES = (1, 16, 4)
KINDS = ("attention", "decode")
REHEARSED_SHAPES = {"4/2x24/16": (4, 2, 24, 16)}
REHEARSED_LENGTHS = (192,)
REHEARSED_BATCHES = (1, 3)


def _cases(chosen: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """Kind and sizes of everything that is to be measured: all shapes at one length, then at the next."""
    shapes = REHEARSED_SHAPES if chosen.rehearse else SHAPES
    lengths = chosen.lengths or (REHEARSED_LENGTHS if chosen.rehearse else LENGTHS)
    batches = chosen.batches or (REHEARSED_BATCHES if chosen.rehearse else BATCHES)
    for tokens in lengths:
        for name in chosen.shapes or shapes:
            heads, groups, head_dim, value_dim = shapes[name]
            sizes = {"heads": heads, "groups": groups, "head_dim": head_dim, "value_dim": value_dim}
            if "attention" in chosen.kinds:
                yield "attention", Case(tokens=tokens, **sizes)
            if "decode" in chosen.kinds:
                yield from (("decode", DecodeCase(tokens=tokens, batch=batch, **sizes)) for batch in batches)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_gpu", description=(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="query heads/KV groups x head/value dim")
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--batches", nargs="+", type=int, help="of decode steps; attention has batch 1")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=["forward", "backward"])
    parser.add_argument("--samples", type=int, default=9, help="timings of each call")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each case and direction")
    parser.add_argument("--rows", type=int, default=8, help="rows compared with the reference")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins that may end later")
    parser.add_argument("--output", type=Path, help=f"folder of the tables; {RESULTS} unless rehearsing")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, by the torch backend")
    chosen = parser.parse_args(arguments)
    if chosen.rehearse and chosen.shapes:
        parser.error("--shapes: a rehearsal has a shape of its own")
    return chosen


def _measure_ceilings(clock: Clock, tables: Tables, device: str, small: bool) -> Bandwidth:
    found = {}
    for what, amount, unit in ceilings(clock, device, small):
        tables.add_ceiling(what, amount, unit)
        say(f"{what}: {amount:.1f} {unit}")
        found[what] = amount
    return Bandwidth(copy=found["copy"], read=found["read"])


def _benches(
    chosen: argparse.Namespace, backend: str, device: str, tables: Tables
) -> dict[str, AttentionBench | DecodeBench]:
    clock: Clock = RehearsalClock() if chosen.rehearse else CudaClock()
    bandwidth = _measure_ceilings(clock, tables, device, chosen.rehearse)
    attention = AttentionBench(
        backend=backend,
        device=device,
        clock=clock,
        tables=tables,
        directions=chosen.directions,
        samples=chosen.samples,
        seconds=chosen.seconds,
        rows=chosen.rows,
    )
    decode = DecodeBench(
        backend=backend,
        device=torch.device(device),
        clock=clock,
        tables=tables,
        bandwidth=bandwidth,
        samples=chosen.samples,
        seconds=chosen.seconds,
        most_caches=3 if chosen.rehearse else MOST_CACHES,
        least_steps=4 if chosen.rehearse else 16,
    )
    return {"attention": attention, "decode": decode}


def _measure(case: Case, kind: str, bench: AttentionBench | DecodeBench, tables: Tables) -> None:
    """One case, and how much of its time its kernels took to compile."""
    began = perf_counter()
    with compilations() as found:
        bench.measure(case)
    tables.add_compilations(case.name, kind, found, perf_counter() - began)
    say(f"{case.name} {kind}: {found.compiled} kernels compiled in {found.seconds:.1f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parse(arguments)
    budget = Budget(chosen.minutes)
    backend, device = ("torch", "cpu") if chosen.rehearse else ("triton", "cuda")
    try:
        # no other is asked for: the CPU's would be built, on time that is lent
        choose(backend, device)
    except NotImplementedError as error:
        say(f"bench_gpu: {error}; --rehearse runs without a GPU")
        return 2
    tables = Tables(
        chosen.output or (Path(tempfile.mkdtemp()) if chosen.rehearse else RESULTS), torch.device(device)
    )
    say(tables.describe_device())
    benches = _benches(chosen, backend, device, tables)
    left_out = 0
    for kind, case in _cases(chosen):
        bench = benches[kind]
        if bench.is_done(case):
            say(f"{case.name} {kind}: in the tables already")
        elif budget.allows(kind):
            with budget.spend(kind):
                _measure(case, kind, bench, tables)
        else:
            left_out += 1
            say(f"{case.name} {kind}: left out, the {chosen.minutes:g} minutes are over")
    say(f"tables in {tables.folder}")
    if left_out:
        say(f"{left_out} cases left out: the same command goes on with them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
