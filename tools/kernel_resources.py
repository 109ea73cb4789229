"""Compile every variant of every Triton kernel without a GPU and write down what the binaries use.

python tools/kernel_resources.py                          # benchmarks/results/kernel_resources.csv
python tools/kernel_resources.py --targets sm_90 --match window --output -
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import triton

from trisparse.files import write_whole
from trisparse.triton.resources import TARGETS, Resources, all_variants, home_of, inspect
from trisparse.version import __version__

COLUMNS = [
    "module",
    "variant",
    "target",
    "num_warps",
    "num_stages",
    "registers",
    "spilled_bytes",
    "shared_bytes",
    "tensor_core",
    "half_dots",
    "reduced_dots",
    "loads_16",
    "loads_8",
    "loads_4",
    "loads_narrow",
    "status",
    "triton",
    "trisparse",
]
DEFAULT = Path(__file__).parents[1] / "benchmarks" / "results" / "kernel_resources.csv"


def _inspect_named(name: str, target: str) -> Resources:
    """In a process of its own: a crash of the compiler ends that, and not the table."""
    variants = {variant.name: variant for _, variant in all_variants()}
    return inspect(variants[name], TARGETS[target])


def _numbers(found: Resources) -> dict[str, str]:
    loads = found.loads
    return {
        "registers": str(found.registers),
        "spilled_bytes": str(found.spilled_bytes),
        "shared_bytes": str(found.shared_bytes),
        "tensor_core": " ".join(f"{name}:{count}" for name, count in found.tensor_core.items()),
        "half_dots": str(found.half_dots),
        "reduced_dots": str(found.reduced_dots),
        "loads_16": str(loads.get(16, 0)),
        "loads_8": str(loads.get(8, 0)),
        "loads_4": str(loads.get(4, 0)),
        "loads_narrow": str(loads.get(2, 0) + loads.get(1, 0)),
    }


def rows_of(targets: Sequence[str], match: str, processes: int, seconds: float) -> Iterator[dict[str, str]]:
    """A row per variant and target, in the order of their names; one that fails says so in `status`.

    No targets are the one that each variant is made for.
    """
    wanted = [(module, variant) for module, variant in all_variants() if match in variant.name]
    jobs: list[tuple[dict[str, str], Future[Resources]]] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for module, variant in sorted(wanted, key=lambda pair: (pair[0], pair[1].name)):
            for target in targets or [home_of(variant).name]:
                known = {
                    "module": module,
                    "variant": variant.name,
                    "target": target,
                    "num_warps": str(variant.num_warps),
                    "num_stages": str(variant.num_stages),
                    "triton": triton.__version__,
                    "trisparse": __version__,
                }
                jobs.append((known, pool.submit(_inspect_named, variant.name, target)))
        for known, job in jobs:
            numbers, status = _outcome(job, seconds)
            row = {**known, **numbers, "status": status}
            yield {column: row.get(column, "") for column in COLUMNS}


def _outcome(job: Future[Resources], seconds: float) -> tuple[dict[str, str], str]:
    try:
        return _numbers(job.result(timeout=seconds)), "ok"
    except (TimeoutError, BrokenProcessPool, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        return {}, f"{type(error).__name__}: {lines[-1]}"
    except Exception as error:  # the compiler's own, which share no base class
        return {}, f"{type(error).__name__}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=[], help="else each variant's own")
    parser.add_argument("--match", default="", help="only variants whose name contains this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=300.0, help="longest wait for one result")
    parser.add_argument("--output", default=str(DEFAULT), help="CSV file, or - for standard output")
    chosen = parser.parse_args(arguments)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    failed = 0
    for row in rows_of(chosen.targets, chosen.match, chosen.processes, chosen.seconds):
        table.writerow(row)
        failed += row["status"] != "ok"
        sys.stderr.write(f"{row['variant']} {row['target']}: {row['status']}\n")
    if chosen.output == "-":
        sys.stdout.write(text.getvalue())
    else:
        write_whole(Path(chosen.output), text.getvalue().encode())
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
