"""The commands that make tables run, without a GPU, and write what they promise."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from trisparse.report import latency
from trisparse.report.rows import read_rows

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_gpu_benchmark_rehearses(tmp_path: Path) -> None:
    """Guards against minutes of a GPU lost to a misspelling: every table is written, and can be drawn."""
    run("tools/bench_gpu", "--rehearse", "--samples", "1", "--output", str(tmp_path))
    rows = read_rows(tmp_path / "attention.csv")
    assert {row["backend"] for row in rows} == {"torch", "sdpa"}
    assert {row["gate"] for row in rows} == {"pass"}
    assert len(latency.draw(rows).axes) == 2
    parts = {(row["part"], row["direction"]) for row in table(tmp_path / "parts.csv")}
    both = {
        (part, way)
        for part in ("whole", "compressed", "selected", "window")
        for way in ("forward", "backward")
    }
    assert parts == both | {("select_blocks", "forward")}
    assert [row["unit"] for row in table(tmp_path / "ceilings.csv")] == ["GB/s", "TFLOP/s"]
    assert "nvidia-smi" in (tmp_path / "device.txt").read_text(encoding="utf-8")


def test_gpu_benchmark_refuses_to_run_without_a_gpu() -> None:
    """Guards against CPU times in the tables of a GPU."""
    command = [sys.executable, "tools/bench_gpu"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "--rehearse runs without one" in done.stderr


@pytest.mark.parametrize("name", ["bench_gpu", "kernel_floors.py", "kernel_resources.py"])
def test_help_names_the_options(name: str) -> None:
    """Guards against a command that fails before it reads its arguments."""
    assert "--" in run(f"tools/{name}", "--help")


def test_floors_are_printed() -> None:
    """Guards against a table that the cost model no longer fits."""
    text = run("tools/kernel_floors.py", "--tokens", "4096", "--gpu", "A100")
    assert "selected_forward" in text
    assert "backward in all" in text


def test_resources_are_written(tmp_path: Path) -> None:
    """Guards against a table of binaries that loses rows, or hides a failure."""
    path = tmp_path / "resources.csv"
    run(
        "tools/kernel_resources.py",
        "--targets",
        "sm_90",
        "--match",
        "window_forward[bf16,d64",
        "--output",
        str(path),
    )
    (row,) = table(path)
    assert row["status"] == "ok"
    assert row["tensor_core"].startswith("HGMMA:")
    assert int(row["loads_16"]) > 0
