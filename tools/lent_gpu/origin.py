"""Where rows come from: the columns that say so, and a file about the device beside the tables."""

import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

from trisparse.bench.table import environment
from trisparse.files import write_whole

ORIGIN = ["device", "torch", "triton", "commit", "date"]
# rows that agree in these were measured by the same code on the same device
SAME = ["device", "torch", "commit"]
UNKNOWN = "unknown"


def facts(device: torch.device | str) -> dict[str, str]:
    """The columns of `environment`, and Triton's version where a GPU has one.

    A checkout that was copied without its history has its commit from TRISPARSE_COMMIT.
    """
    known = {**environment(device), "triton": _triton_version()}
    if known["commit"] == UNKNOWN:
        known["commit"] = os.environ.get("TRISPARSE_COMMIT", UNKNOWN)
    return known


def same_code(row: Mapping[str, str], known: Mapping[str, str]) -> bool:
    """Was a row measured by this code on this device? Of an unknown commit nobody can tell."""
    return known["commit"] != UNKNOWN and all(row[name] == known[name] for name in SAME)


def describe_device(folder: Path, known: Mapping[str, str]) -> str:
    """What nvidia-smi says, written down; nothing is measured on a device that nobody named."""
    lines = [f"date: {datetime.now(UTC).isoformat(timespec='seconds')}"]
    lines += [f"{name}: {value}" for name, value in known.items()]
    text = "\n".join([*lines, "", _nvidia_smi()])
    write_whole(folder / "device.txt", text.encode())
    return text


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {type(error).__name__}"
    return done.stdout


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(getattr(triton, "__version__", "")) if torch.version.cuda else ""
