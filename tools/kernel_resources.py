"""Compile every variant of every Triton kernel without a GPU and write down what the binaries use.

python tools/kernel_resources.py                          # benchmarks/results/kernel_resources.csv
python tools/kernel_resources.py --targets sm_90 --match window --output -

Rows of the output file that are still those of the kernels as they are now are kept and not compiled again.
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import triton

from trisparse.files import write_whole
from trisparse.report.rows import read_rows
from trisparse.triton.resources import (
    TARGETS,
    Resources,
    Target,
    all_variants,
    fingerprint,
    inspect,
    targets_of,
)
from trisparse.triton.variants import KernelVariant
from trisparse.version import __version__

COLUMNS = [
    "module",
    "variant",
    "target",
    "num_warps",
    "num_stages",
    "registers",
    "spilled_bytes",
    "loop_spills",
    "shared_bytes",
    "tensor_core",
    "repeated",
    "half_dots",
    "reduced_dots",
    "loads_16",
    "loads_8",
    "loads_4",
    "loads_narrow",
    "status",
    "fingerprint",
    "triton",
    "trisparse",
]
# what compiles alike: the fingerprint and the target
Key = tuple[str, str]
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
        "loop_spills": str(found.loop_spills),
        "shared_bytes": str(found.shared_bytes),
        "tensor_core": " ".join(f"{name}:{count}" for name, count in found.tensor_core.items()),
        "repeated": str(found.repeated),
        "half_dots": str(found.half_dots),
        "reduced_dots": str(found.reduced_dots),
        "loads_16": str(loads.get(16, 0)),
        "loads_8": str(loads.get(8, 0)),
        "loads_4": str(loads.get(4, 0)),
        "loads_narrow": str(loads.get(2, 0) + loads.get(1, 0)),
    }


def known_rows(path: Path) -> dict[Key, dict[str, str]]:
    """What an earlier run of this version of Triton measured, by what compiles alike."""
    rows = read_rows(path) if path.is_file() else []
    return {
        (row["fingerprint"], row["target"]): row
        for row in rows
        if row.keys() >= set(COLUMNS)
        and row["fingerprint"]
        and row["triton"] == triton.__version__
        and row["registers"]
    }


def rows_of(
    targets: Sequence[str], match: str, known: Mapping[Key, dict[str, str]], processes: int, seconds: float
) -> Iterator[dict[str, str]]:
    """A row per variant and target, in the order of their names; one that fails says so in `status`.

    No targets are those on which a launch may choose the variant. What is `known` is not compiled.
    """
    wanted = [(module, variant) for module, variant in all_variants() if match in variant.name]
    jobs: dict[Key, Future[Resources]] = {}
    rows: list[tuple[Key, dict[str, str]]] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for module, variant in sorted(wanted, key=lambda pair: (pair[0], pair[1].name)):
            for target in [TARGETS[name] for name in targets] or targets_of(variant):
                key = fingerprint(variant), target.name
                rows.append((key, _facts(module, variant, target, key)))
                if key not in known and key not in jobs:
                    jobs[key] = pool.submit(_inspect_named, variant.name, target.name)
        for key, facts in rows:
            found = {**known[key], **facts} if key in known else {**facts, **_outcome(jobs[key], seconds)}
            found["status"] = found.get("failure") or _verdict(found, TARGETS[key[1]])
            yield {column: found.get(column, "") for column in COLUMNS}


def _facts(module: str, variant: KernelVariant, target: Target, key: Key) -> dict[str, str]:
    """What is known before anything is compiled."""
    return {
        "module": module,
        "variant": variant.name,
        "target": target.name,
        "num_warps": str(variant.num_warps),
        "num_stages": str(variant.num_stages),
        "fingerprint": key[0],
        "triton": triton.__version__,
        "trisparse": __version__,
    }


def _verdict(row: Mapping[str, str], target: Target) -> str:
    return "ok" if int(row["shared_bytes"]) <= target.shared_bytes else "too much shared memory"


def _outcome(job: Future[Resources], seconds: float) -> dict[str, str]:
    """The numbers of a binary, or why there are none."""
    try:
        return _numbers(job.result(timeout=seconds))
    except (TimeoutError, BrokenProcessPool, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        return {"failure": f"{type(error).__name__}: {lines[-1]}"}
    except Exception as error:  # the compiler's own, which share no base class
        return {"failure": type(error).__name__}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, default=[], help="else those of each variant"
    )
    parser.add_argument("--match", default="", help="only variants whose name contains this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=300.0, help="longest wait for one result")
    parser.add_argument("--output", default=str(DEFAULT), help="CSV file, or - for standard output")
    parser.add_argument("--afresh", action="store_true", help="compile what the file has, too")
    chosen = parser.parse_args(arguments)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    failed = 0
    known = {} if chosen.afresh or chosen.output == "-" else known_rows(Path(chosen.output))
    for row in rows_of(chosen.targets, chosen.match, known, chosen.processes, chosen.seconds):
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
