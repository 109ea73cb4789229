"""The commands that make tables run, without a GPU, and write what they promise."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toys
import triton

from trisparse.bench.sdpa_forms import FORMS
from trisparse.report import decode, latency
from trisparse.report.rows import read_rows
from trisparse.triton.resources import TARGETS, inspect

ROOT = Path(__file__).parents[2]


# as the package of this name takes them; "fa2" wants D = E, and is wrong here
FLASH_ATTENTION = """
import torch
from torch.nn.functional import scaled_dot_product_attention

def flash_attn_func(query, key, value, causal):
    rows, keys, values = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(rows, keys, values, is_causal=causal, enable_gqa=True).transpose(1, 2)

def flash_attn_with_kvcache(query, key, value, *, cache_seqlens, causal):
    assert query.shape[1] == 1 and causal and cache_seqlens.dtype == torch.int32
    assert EQUAL is False or key.shape[3] == value.shape[3]
    parts = []
    for row, length in enumerate(cache_seqlens.tolist()):
        alone = query[row : row + 1], key[row : row + 1, :length], value[row : row + 1, :length]
        parts.append(flash_attn_func(*alone, causal=False))
    return torch.cat(parts) * (1.05 if EQUAL else 1.0)
"""


def run(*arguments: str, packages: Path | None = None) -> str:
    """What a command prints; modules in the folder `packages` come before others."""
    paths = [str(path) for path in (packages, ROOT / "src") if path]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rehearse(folder: Path, *arguments: str, packages: Path | None = None) -> str:
    tool = ("tools/bench_gpu", "--rehearse", "--samples", "1", "--output", str(folder))
    return run(*tool, *arguments, packages=packages)


def test_attention_on_a_gpu_rehearses(tmp_path: Path) -> None:
    """Guards against minutes of a GPU lost to a misspelling: every table is written, and can be drawn."""
    said = rehearse(tmp_path, "--kinds", "attention")
    assert "selected, one token a tile: left out, backend torch has no tiles of tokens" in said
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
    assert [row["unit"] for row in table(tmp_path / "ceilings.csv")] == ["GB/s", "GB/s", "TFLOP/s"]
    assert "nvidia-smi" in (tmp_path / "device.txt").read_text(encoding="utf-8")
    ((case,),) = [{row["case"] for row in rows}]
    (row,) = table(tmp_path / "compile.csv")
    # the torch backend compiles nothing
    assert (row["case"], row["kind"], row["compiled"], row["loaded"]) == (case, "attention", "0", "0")
    assert float(row["case_seconds"]) > 0


# of make rehearse-gpu, which takes minutes: every file is imported, and some seconds of tests run
QUICK = "device or chunks_in or repeats or guards_see or gradient_reaches or (row_alone and small)"


def test_gpu_tests_rehearse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against GPU tests that nobody runs for weeks, and that no longer start when there is a GPU."""
    monkeypatch.setenv("TRISPARSE_REHEARSE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run("-m", "pytest", "-n0", "-p", "no:cacheprovider", "tests/gpu", "-k", QUICK)


def test_compilations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a compiler that nobody listens to: one binary is made, then taken from the cache."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "bench_gpu")
    compilations = importlib.import_module("compilations").compilations
    before = triton.knobs.compilation.listener
    with compilations() as found:
        inspect(toys.REPEATED, TARGETS["sm_80"])
        first = found.seconds
        inspect(toys.REPEATED, TARGETS["sm_80"])
    assert found.compiled + found.loaded == 2
    assert found.loaded >= 1
    assert 0 < first < found.seconds < 60
    assert triton.knobs.compilation.listener is before


def test_a_gpu_is_described(tmp_path: Path) -> None:
    """Guards against results of make test-gpu of which nobody knows the device."""
    run("tools/describe_gpu.py", "--rehearse", "--output", str(tmp_path))
    text = (tmp_path / "device.txt").read_text(encoding="utf-8")
    assert "nvidia-smi" in text
    assert f"torch: {torch.__version__}" in text


def test_decode_on_a_gpu_rehearses(tmp_path: Path) -> None:
    """Guards against the same for decoding, and against the time of a wrong full attention."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name, equal in (("flash_attn_interface", False), ("flash_attn", True)):
        (packages / f"{name}.py").write_text(f"EQUAL = {equal}\n{FLASH_ATTENTION}", encoding="utf-8")
    said = rehearse(tmp_path, "--kinds", "decode", packages=packages)
    assert "sdpa cudnn grouped: left out, " in said
    best = read_rows(tmp_path / "decode.csv")
    assert [(row["batch"], row["backend"]) for row in best] == [
        (batch, name) for batch in ("1", "3") for name in ("torch", "sdpa", "fa3", "fa2")
    ]
    assert {row["backend"]: row["gate"] for row in best} == {
        "torch": "pass",
        "sdpa": "pass",
        "fa3": "pass",
        "fa2": "fail",
    }
    assert {row["caches"] for row in best} == {"3"}
    assert len(decode.draw(best).axes) == 2
    every = read_rows(tmp_path / "decode_forms.csv")
    forms = {(row["backend"], row["form"], row["launch"]) for row in every}
    assert {("torch", "", "graph"), ("torch", "", "eager"), ("fa3", "", "graph")} < forms
    assert {("sdpa", f"default {form}", "eager") for form in FORMS} < forms
    for row in best:
        times = [float(each["median_ms"]) for each in every if same_step(each, row) and each["median_ms"]]
        assert times == [] if row["gate"] == "fail" else float(row["median_ms"]) == min(times)


def same_step(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(one[column] == other[column] for column in ("case", "backend"))


def test_gpu_benchmark_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Guards against a case that is measured twice, and a run that is ended in the middle of a case."""
    options = ("--kinds", "decode", "--batches", "1")
    assert "1 cases left out" in rehearse(tmp_path, *options, "--minutes", "0")
    assert not (tmp_path / "decode.csv").exists()
    rehearse(tmp_path, *options)
    before = (tmp_path / "decode.csv").read_text(encoding="utf-8")
    assert "in the tables already" in rehearse(tmp_path, *options)
    assert (tmp_path / "decode.csv").read_text(encoding="utf-8") == before


def test_a_copy_without_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against rows from a lent machine of which nobody knows the code."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "lent_gpu")
    origin = importlib.import_module("origin")
    monkeypatch.setattr(origin, "environment", lambda _: {"commit": "unknown"})
    assert origin.facts("cpu")["commit"] == "unknown"
    monkeypatch.setenv("TRISPARSE_COMMIT", "abc1234")
    assert origin.facts("cpu")["commit"] == "abc1234"
    monkeypatch.setattr(origin, "environment", lambda _: {"commit": "def5678"})
    assert origin.facts("cpu")["commit"] == "def5678"


@pytest.mark.parametrize("name", ["bench_gpu", "tune_gpu", "train_gpu", "describe_gpu.py"])
def test_nothing_is_measured_without_a_gpu(name: str) -> None:
    """Guards against CPU times in the tables of a GPU."""
    command = [sys.executable, f"tools/{name}"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "--rehearse runs without a GPU" in done.stderr


@pytest.mark.parametrize(
    "name",
    ["bench_gpu", "tune_gpu", "train_gpu", "describe_gpu.py", "kernel_floors.py", "kernel_resources.py"],
)
def test_help_names_the_options(name: str) -> None:
    """Guards against a command that fails before it reads its arguments."""
    assert "--" in run(f"tools/{name}", "--help")


def test_floors_are_printed() -> None:
    """Guards against a table that the cost model no longer fits."""
    text = run("tools/kernel_floors.py", "--tokens", "4096", "--gpu", "A100")
    assert "selected_forward" in text
    assert "backward in all" in text
    assert "decode_join" in text


def test_resources_are_written(tmp_path: Path) -> None:
    """Guards against a table of binaries that loses rows, hides a failure, or is made anew for nothing."""
    path = tmp_path / "resources.csv"
    match = ("--targets", "sm_90", "--match", "window_forward[bf16,d64,e64,m4,large", "--output", str(path))
    run("tools/kernel_resources.py", *match)
    (row,) = table(path)
    assert row["status"] == "ok"
    assert row["tensor_core"].startswith("HGMMA:")
    assert int(row["loads_16"]) > 0
    # nothing compiles in no time
    run("tools/kernel_resources.py", *match, "--seconds", "0")
    assert table(path) == [row]
