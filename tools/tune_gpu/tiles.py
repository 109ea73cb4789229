"""The table of tiles, a row for each that was tried, written at once: a run that ends early keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from kernels import Kernel
from origin import ORIGIN, same_code
from problem import Problem

from trisparse.bench.cases import Case
from trisparse.bench.table import append_rows
from trisparse.report.rows import Rows, read_rows
from trisparse.triton.launch import Tile

TILE = ["rows", "keys", "num_warps", "num_stages"]
SETTING = ["kernel", "table", "entry", "shape", "tokens", "dtype"]
FOUND = ["registers", "spilled_bytes", "median_ms", "pinned_ms", "ratio", "worst_ratio", "gate", "status"]
COLUMNS = [*SETTING, *TILE, "pinned", *FOUND, *ORIGIN]

_BYTES_OF_SPILL = 4


@dataclass(kw_only=True)
class Outcome:
    """What was found about a tile; `status` says why there is nothing, if there is not."""

    status: str = "ok"
    compiled: Any = None
    worst_ratio: float | None = None
    times: list[float] = field(default_factory=list)
    pinned_times: list[float] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, str]:
        found = dict.fromkeys(FOUND, "") | {"status": self.status}
        if self.compiled is not None:
            found["registers"] = str(self.compiled.n_regs)
            found["spilled_bytes"] = str(self.compiled.n_spills * _BYTES_OF_SPILL)
        if self.worst_ratio is not None:
            found["worst_ratio"] = f"{self.worst_ratio:.3g}"
            found["gate"] = "pass" if self.worst_ratio <= 1.0 else "fail"
        if self.times:
            own, pinned = median(self.times), median(self.pinned_times)
            times = {"median_ms": f"{own:.4f}", "pinned_ms": f"{pinned:.4f}", "ratio": f"{own / pinned:.4f}"}
            found |= times
        return found


def shape_name(case: Case) -> str:
    """Query heads / KV groups x head dim / value dim."""
    return f"{case.heads}/{case.groups}x{case.head_dim}/{case.value_dim}"


class Tiles:
    """The rows of the file that were measured by the code as it is now, on this device."""

    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self.path, self._facts = path, facts
        rows = read_rows(path) if path.is_file() else []
        self.rows: Rows = [row for row in rows if same_code(row, facts)]

    def find(self, kernel: Kernel, problem: Problem, tile: Tile) -> dict[str, str] | None:
        """The row of a tile, if it was tried."""
        wanted = self._setting(kernel, problem, tile)
        found = (row for row in self.rows if all(row[name] == value for name, value in wanted.items()))
        return next(found, None)

    def add(self, kernel: Kernel, problem: Problem, tile: Tile, outcome: Outcome) -> dict[str, str]:
        return self._append(
            {
                **self._setting(kernel, problem, tile),
                "pinned": "yes" if tile == kernel.pinned(problem) else "no",
                **outcome.columns,
                **{name: self._facts[name] for name in ORIGIN},
            }
        )

    def add_same(self, row: dict[str, str], tile: Tile) -> dict[str, str]:
        """A tile that is to its kernel what that of `row` is."""
        same = ", ".join(row[name] for name in TILE)
        own = {name: str(size) for name, size in zip(TILE, tile, strict=True)}
        return self._append({**row, **own, "pinned": "no", "status": f"the same kernel as ({same})"})

    def _append(self, row: dict[str, str]) -> dict[str, str]:
        self.rows.append(row)
        append_rows(self.path, [row], COLUMNS)
        return row

    def _setting(self, kernel: Kernel, problem: Problem, tile: Tile) -> dict[str, str]:
        case = problem.case.setting()
        return {
            "kernel": kernel.name,
            "table": kernel.table,
            "entry": kernel.entry(problem),
            "shape": shape_name(problem.case),
            "tokens": case["tokens"],
            "dtype": case["dtype"],
            **{name: str(size) for name, size in zip(TILE, tile, strict=True)},
        }
