"""The files of a run: attention.csv and decode.csv as figures read them, and what has no column there."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from compilations import Compilations
from origin import ORIGIN, describe_device, facts, same_code

from trisparse.bench.cases import Case, dtype_name
from trisparse.bench.table import append_rows
from trisparse.files import write_whole
from trisparse.report import decode
from trisparse.report.measurement import ATTENTION_COLUMNS, TIMES
from trisparse.report.rows import read_rows

SETTING = ["tokens", "heads", "groups", "head_dim", "value_dim", "dtype", "batch"]
PARTS = ["case", "backend", "part", "direction", *SETTING, *TIMES, "samples", "peak_mib", "gate", *ORIGIN]
# every form of every step; decode.csv has the fastest of each backend
FORMS = [*decode.COLUMNS, "launch", "triton"]
CEILINGS = ["what", "amount", "unit", *ORIGIN]
COMPILE = ["case", "kind", "compiled", "loaded", "compile_seconds", "case_seconds", *ORIGIN]


class Tables:
    """Rows are written as soon as there are any: one that ends early keeps what it has, the next goes on."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.facts = facts(device)
        self._earlier = {name: self._measured(name) for name in ("attention.csv", "decode.csv")}

    def _measured(self, name: str) -> set[tuple[str, str]]:
        """Case and direction of what earlier runs of this commit measured on this device."""
        path = self.folder / name
        rows = read_rows(path) if path.is_file() else []
        return {(row["case"], row["direction"]) for row in rows if same_code(row, self.facts)}

    def has(self, name: str, case: str, direction: str) -> bool:
        """Whether an earlier run ended this case: its rows were written to the table of this name."""
        return (case, direction) in self._earlier[name]

    def describe_device(self) -> str:
        """What is known of the device, written down beside the tables."""
        return describe_device(self.folder, self.facts)

    def add_ceiling(self, what: str, amount: float, unit: str) -> None:
        row = {"what": what, "amount": f"{amount:.1f}", "unit": unit, **self.facts}
        _append(self.folder / "ceilings.csv", CEILINGS, [row])

    def add_compilations(self, case: str, kind: str, found: Compilations, seconds: float) -> None:
        """What a case that took `seconds` in all was the first to compile."""
        row = {
            "case": case,
            "kind": kind,
            "compiled": str(found.compiled),
            "loaded": str(found.loaded),
            "compile_seconds": f"{found.seconds:.3f}",
            "case_seconds": f"{seconds:.3f}",
            **self.facts,
        }
        _append(self.folder / "compile.csv", COMPILE, [row])

    def add(
        self,
        case: Case,
        name: str,
        part: str,
        direction: str,
        milliseconds: Sequence[float],
        worst_ratio: float,
        peak_bytes: int | None,
    ) -> dict[str, str]:
        """One timed call, a row of parts.csv; without times where its check failed."""
        passed = worst_ratio <= 1.0
        spread = (median(milliseconds), min(milliseconds), max(milliseconds)) if passed else ()
        times = [f"{time:.4f}" for time in spread] or [""] * len(TIMES)
        row = {
            "case": case.name,
            "backend": name,
            "part": part,
            "direction": direction,
            **{column: str(getattr(case, column)) for column in SETTING},
            "dtype": dtype_name(case.dtype),
            **dict(zip(TIMES, times, strict=True)),
            "samples": str(len(milliseconds)),
            "peak_mib": "" if peak_bytes is None else f"{peak_bytes / 2**20:.1f}",
            "gate": "pass" if passed else "fail",
            "worst_ratio": f"{worst_ratio:.3g}",
            "instructions": "",
            **self.facts,
        }
        _append(self.folder / "parts.csv", PARTS, [row])
        return row

    def finish(self, rows: Sequence[dict[str, str]]) -> None:
        """All whole calls of one case and direction, when their parts are written too."""
        append_rows(
            self.folder / "attention.csv", [{name: row[name] for name in ATTENTION_COLUMNS} for row in rows]
        )

    def add_decode(self, every: Sequence[dict[str, str]], best: Sequence[dict[str, str]]) -> None:
        """The steps of one case: in every form, and in the best of each backend."""
        commit = {"commit": self.facts["commit"]}
        forms = [{**row, **commit, "triton": self.facts["triton"]} for row in every]
        append_rows(self.folder / "decode_forms.csv", forms, FORMS)
        append_rows(self.folder / "decode.csv", [{**row, **commit} for row in best], decode.COLUMNS)


def _append(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    if path.is_file():
        kept = path.read_text(encoding="utf-8")
        if kept.splitlines()[:1] != [",".join(columns)]:
            raise ValueError(f"path: expected the header {', '.join(columns)} in {path}; write elsewhere")
        text.write(kept)
    else:
        table.writeheader()
    table.writerows(rows)
    write_whole(path, text.getvalue().encode())
