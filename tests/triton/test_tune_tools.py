"""The search for tiles runs without a GPU, interpreted, and compiles for one that is not there."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_tools import ROOT, run, table
from triton.runtime.errors import OutOfResources

import trisparse
from trisparse import SparseConfig
from trisparse.bench.cases import Case
from trisparse.triton.launch import Tile, assume_memory

FOLDERS = [ROOT / "tools" / name for name in ("lent_gpu", "tune_gpu")]

# compiles for a GPU that is not there: a problem of 8192 tokens, as a process that compiles ahead has it, and
# one of 65,536, as it is launched
COMPILE = """
import sys
sys.path[:0] = sys.argv[1:]
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Absent:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

driver.set_active(Absent())
from ahead import compile_job
from kernels import KERNELS
from problem import Problem
from trisparse.bench.cases import Case
from trisparse.triton.launch import Tile

case = Case(tokens=65536, heads=64, groups=4)
tile = Tile(64, 64, 4, 3)
print("ahead:", repr(compile_job((case, "decode_tokens", "large", tile))))
KERNELS["decode_tokens"].trial(Problem(case, "meta"), tile).compile()
print("fails:", compile_job((case, "window_forward", "large", Tile(48, 64, 4, 2))))
"""


def rehearse(folder: Path, *arguments: str) -> str:
    tool = ("tools/tune_gpu", "--rehearse", "--samples", "1", "--output", str(folder))
    return run(*tool, *arguments)


def tool(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of the tool, which is no package."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def test_every_kernel_rehearses(tmp_path: Path) -> None:
    """Guards against minutes of a GPU lost to a misspelling, and a kernel whose launch has changed."""
    said = rehearse(tmp_path, "--tiles", "1")
    rows = table(tmp_path / "tiles.csv")
    assert len(rows) == len({row["kernel"] for row in rows}) == 12
    assert {(row["pinned"], row["gate"], row["status"]) for row in rows} == {("yes", "pass", "ok")}
    assert all(float(row["median_ms"]) > 0 for row in rows)
    assert "topn.TILES large 384: the pinned tile stays" in said
    assert "nvidia-smi" in (tmp_path / "device.txt").read_text(encoding="utf-8")


def test_the_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Guards against a tile that is tried twice, alone or as another that is the same to its kernel."""
    options = ("--kernels", "decode_tokens", "--tiles")
    assert "3 tiles left out" in rehearse(tmp_path, *options, "3", "--minutes", "0", "--processes", "0")
    assert not (tmp_path / "tiles.csv").exists()
    rehearse(tmp_path, *options, "1", "--processes", "0")
    assert "2 tiles of 1 kernels" in rehearse(tmp_path, *options, "3")
    first, second, same = table(tmp_path / "tiles.csv")
    assert [row["pinned"] for row in (first, second, same)] == ["yes", "no", "no"]
    assert same["status"] == "the same kernel as (64, 32, 4, 3)"
    assert same["median_ms"] == first["median_ms"] != second["median_ms"]


def test_unknown_kernels_are_named() -> None:
    """Guards against a misspelled kernel that is left out without a word."""
    command = [sys.executable, "tools/tune_gpu", "--rehearse", "--kernels", "topm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "--kernels: expected names among compressed_key_gradient, " in done.stderr
    assert "got topm" in done.stderr


def test_what_is_compiled_ahead_is_what_a_launch_wants(tmp_path: Path) -> None:
    """Guards against binaries that no launch finds, and a failure of the compiler that ends the run."""
    folders = [str(folder) for folder in FOLDERS]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *folders, str(ROOT / "src")],
        env={"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "ahead: ''" in done.stdout
    assert "fails: CompilationError: " in done.stdout
    assert len(list(tmp_path.glob("*/*.cubin"))) == 1


def test_a_compiler_that_ends_its_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a crash of the compiler that ends the run, and one that is blamed on other tiles."""
    ahead = tool(monkeypatch, "ahead")
    # the job is the exit status
    monkeypatch.setattr(ahead, "compile_job", os._exit)
    jobs = ahead.Ahead([1, 2], processes=1)
    assert jobs.failure(1, 60.0) == "the compiler ended its process"
    monkeypatch.setattr(ahead, "compile_job", str)
    assert jobs.failure(2, 60.0) == "2"
    assert jobs.failure(3, 60.0) == ""
    jobs.close()


def test_tiles_keep_the_rules_of_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against tiles of which warps compute the same, and tables of which one kernel is left out."""
    kernels, candidates = tool(monkeypatch, "kernels"), tool(monkeypatch, "candidates")
    problem = tool(monkeypatch, "problem").Problem(Case(tokens=65536, heads=64, groups=4), "meta")
    with assume_memory("large"):
        tried = {name: list(candidates.candidates(each, problem)) for name, each in kernels.KERNELS.items()}
        assert all(tried[name][0][0] == each.pinned(problem) for name, each in kernels.KERNELS.items())
    for name, pairs in tried.items():
        assert len(pairs) > 5, name
        assert len({tile for tile, _ in pairs}) == len(pairs)
        for tile, _ in pairs:
            assert not name.endswith("key_gradient") or tile.keys == 16 * tile.num_warps
    # a group of 16 fills a tile of one token, whatever the table says of rows and warps
    same = dict(tried["selected_forward"])
    assert same[Tile(128, 64, 4, 2)] == Tile(64, 64, 4, 2)
    assert same[Tile(64, 64, 4, 3)] == Tile(64, 64, 4, 3)


SMALL = SparseConfig(
    compress_block=4, compress_stride=2, select_block=4, num_selected=4, num_initial=1, num_local=1, window=8
)


def test_results_that_differ_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a time for a tile that computes something else, and a refusal of other roundings."""
    worst_ratio = tool(monkeypatch, "gate").worst_ratio
    case = Case(tokens=64, heads=4, groups=2, head_dim=16, value_dim=16, config=SMALL)
    problem = tool(monkeypatch, "problem").Problem(case, "cpu")
    out, lse = torch.randn(1, 64, 4, 16).bfloat16(), torch.randn(1, 64, 4)
    lse[:, :3] = -torch.inf
    ids = trisparse.select_blocks(problem.query, problem.compressed[0], SMALL, backend="reference")
    wanted = {"out": out, "lse": lse, "d query": out.float(), "ids": ids}
    assert worst_ratio(wanted, wanted, problem) == 0.0
    rounded = {"out": out, "lse": lse + 1e-4, "d query": out.float() * (1 + 1e-4), "ids": ids}
    assert worst_ratio(rounded, wanted, problem) <= 1.0
    other, chosen = ids.clone(), ids[0, 60, 0].tolist()
    # in place of one that is not forced
    unchosen = next(block for block in range(15) if block not in chosen)
    other[0, 60, 0] = torch.tensor(sorted([unchosen, chosen[0], *chosen[2:]]))
    for name, wrong in (("out", out + 0.1), ("lse", lse + 0.05), ("lse", lse.abs()), ("ids", other)):
        assert worst_ratio({**wanted, name: wrong}, wanted, problem) > 1.0, name


def test_a_tile_without_room_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against a run that ends at the first tile that is too large."""
    kernels, tuner = tool(monkeypatch, "kernels"), tool(monkeypatch, "tuner")
    pinned, large = Tile(128, 64, 8, 2), Tile(256, 64, 8, 2)

    def trial(_: object, tile: Tile) -> SimpleNamespace:
        def start() -> None:
            if tile == large:
                raise OutOfResources(300_000, 232_448, "shared memory")

        return SimpleNamespace(
            run=lambda: None, start=start, results=lambda: {"out": torch.ones(1, 2, 3, 4).bfloat16()}
        )

    kernel = replace(kernels.KERNELS["window_forward"], trial=trial)
    facts = dict.fromkeys(tool(monkeypatch, "origin").ORIGIN, "here")
    measured = tuner.Tuner(
        device="cpu",
        memory="large",
        clock=tool(monkeypatch, "clock").RehearsalClock(),
        budget=tool(monkeypatch, "budget").Budget(1.0),
        tiles=tool(monkeypatch, "tiles").Tiles(tmp_path / "tiles.csv", facts),
        ahead=tool(monkeypatch, "ahead").Ahead([], 0),
        samples=1,
        seconds=0.0,
    )
    case = Case(tokens=64, heads=4, groups=2)
    assert measured.measure(case, [(kernel, [(large, large), (pinned, pinned)])]) == 0
    first, second = table(tmp_path / "tiles.csv")
    assert first["status"].startswith("OutOfResources: out of resource: shared memory, Required: 300000")
    assert (first["gate"], first["median_ms"]) == ("", "")
    assert (second["status"], second["gate"], second["pinned"]) == ("ok", "pass", "yes")


def row(kernel: str, keys: str, median_ms: str, gate: str = "pass", pinned: str = "no") -> dict[str, str]:
    """A row of the table, of an entry that two kernels use."""
    setting = {"table": "band.TILES", "entry": "large 640", "kernel": kernel, "shape": "64/4", "tokens": "1"}
    tile = {"rows": "64", "keys": keys, "num_warps": "4", "num_stages": "2"}
    return {
        **setting,
        **tile,
        "median_ms": median_ms,
        "pinned_ms": "10.0",
        "gate": gate,
        "pinned": pinned,
    }


def test_the_best_tile_is_best_over_all_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a tile that is praised for one kernel and slow, wrong or untried in another."""
    verdicts = tool(monkeypatch, "verdict").verdicts
    rows = [row(kernel, "64", "9.0", pinned="yes") for kernel in ("one", "other")]
    rows += [row("one", "32", "8.0"), row("other", "32", "", gate="fail")]
    rows += [row("one", "128", "7.0"), row("other", "128", "12.9")]
    (line,) = verdicts(rows)
    assert line == (
        "band.TILES large 640: the pinned tile stays, none of 1 others is faster by 2 %; "
        "1 others failed or were not tried in all of its uses"
    )
    rows[-1] = row("other", "128", "9.0")
    (line,) = verdicts(rows)
    assert "(64, 128, 4, 2) takes 0.800 of the pinned tile's time: one 64/4 0.700, other 64/4 0.900" in line
