"""Tables of times: where their rows were measured, and how new ones are added."""

import csv
import io
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from trisparse.files import write_whole
from trisparse.report.measurement import ATTENTION_COLUMNS
from trisparse.version import __version__

FLAGS = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]
_PACKAGE = Path(__file__).parents[1]


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """The columns that say where and by what a time was taken."""
    device = torch.device(device)
    facts = _processor_facts()
    named = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else named,
        "threads": str(torch.get_num_threads()),
        "cpu_flags": " ".join(flag for flag in FLAGS if flag in flags),
        "torch": torch.__version__,
        "trisparse": __version__,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor_facts() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first, _, _ = path.read_text(encoding="utf-8").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _commit() -> str:
    """The short commit of the checkout the package runs from, or `unknown`."""
    # an installed package may lie below a checkout of something else
    if not _git("ls-files", "--error-unmatch", "version.py"):
        return "unknown"
    return _git("rev-parse", "--short", "HEAD") or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def append_rows(
    path: Path | str, rows: Sequence[dict[str, str]], columns: Sequence[str] = ATTENTION_COLUMNS
) -> None:
    """Add `rows` to the CSV file at `path`, which is created if it is missing; rows in it stay as they are.

    The file is replaced in one step: a crash leaves the old one.

    Raises:
        ValueError: a row's columns are not `columns`, the file has another header, or one of its
            rows was cut off.
    """
    path = Path(path)
    for row in rows:
        if list(row) != list(columns):
            raise ValueError(f"rows: expected columns {', '.join(columns)}, got {', '.join(row)}")
    kept = path.read_text(encoding="utf-8") if path.is_file() else ""
    if kept.strip():
        _require_table(path, kept, columns)
    else:
        kept = _as_csv([columns])
    ending = "" if kept.endswith("\n") else "\n"
    added = _as_csv([list(row.values()) for row in rows])
    write_whole(path, (kept + ending + added).encode())


def _require_table(path: Path, text: str, columns: Sequence[str]) -> None:
    header, *lines = [line for line in csv.reader(io.StringIO(text)) if line]
    if header != list(columns):
        raise ValueError(
            f"path: expected the header {', '.join(columns)} in {path}, got {', '.join(header)}; "
            "write to a new file"
        )
    for number, line in enumerate(lines, start=2):
        if len(line) != len(columns):
            raise ValueError(
                f"path: expected {len(columns)} fields in row {number} of {path}, got {len(line)}; "
                "a measurement that was cut off leaves such a row: remove it"
            )


def _as_csv(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
