"""A run: what is to be tried, the device, the loop over shapes, and what the rows say at the end."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from ahead import Ahead, default_processes
from budget import Budget
from clock import Clock, CudaClock, RehearsalClock
from kernels import KERNELS
from origin import describe_device, facts
from say import say
from tiles import Tiles
from tuner import Tuner, describe, jobs_of, work_of
from verdict import verdicts

from trisparse.backends import choose
from trisparse.bench.cases import Case
from trisparse.config import SparseConfig
from trisparse.triton.launch import assume_memory, memory_class

Sizes = tuple[int, int, int, int]

TOKENS, REHEARSED_TOKENS = 65536, 20
_REHEARSED_CONFIG = SparseConfig(
    compress_block=8,
    compress_stride=4,
    select_block=16,
    num_selected=2,
    num_initial=1,
    num_local=1,
    window=16,
)


def tune(chosen: argparse.Namespace, shapes: Mapping[str, Sizes], results: Path) -> int:
    """All that the table lacks, until the minutes are over; 2 if nothing can run here."""
    budget = Budget(chosen.minutes)
    unknown = sorted(set(chosen.kernels or ()) - KERNELS.keys())
    if unknown:
        say(f"tune_gpu: --kernels: expected names among {', '.join(KERNELS)}; got {unknown[0]}")
        return 2
    device = "cpu" if chosen.rehearse else "cuda"
    try:
        choose("triton", device)
    except NotImplementedError as error:
        say(f"tune_gpu: {error}; --rehearse runs without a GPU")
        return 2
    known, folder = facts(device), chosen.output or results
    say(describe_device(folder, known))
    tiles = Tiles(folder / "tiles.csv", known)
    cases = [_case(chosen, shapes[name]) for name in chosen.shapes or shapes]
    left_out = _run(chosen, device, cases, tiles, budget)
    say(f"table in {folder}")
    for line in verdicts(tiles.rows):
        say(line)
    if left_out:
        say(f"{left_out} tiles left out: the same command goes on with them")
    return 0


def _case(chosen: argparse.Namespace, sizes: Sizes) -> Case:
    heads, groups, head_dim, value_dim = sizes
    dims = {"heads": heads, "groups": groups, "head_dim": head_dim, "value_dim": value_dim}
    if not chosen.rehearse:
        return Case(tokens=chosen.tokens or TOKENS, **dims)
    # numpy, which multiplies in the interpreter, knows no bfloat16
    own = {"dtype": torch.float16, "config": _REHEARSED_CONFIG}
    return Case(tokens=chosen.tokens or REHEARSED_TOKENS, **dims, **own)


def _run(chosen: argparse.Namespace, device: str, cases: list[Case], tiles: Tiles, budget: Budget) -> int:
    """How many tiles were left out."""
    memory = memory_class(torch.empty(0, device=device))
    kernels = [KERNELS[name] for name in chosen.kernels or KERNELS]
    with assume_memory(memory):
        works = [list(work_of(kernels, case, tiles, chosen.tiles)) for case in cases]
    say(describe(works, cases))
    default = 1 if chosen.rehearse else default_processes()
    processes = default if chosen.processes is None else chosen.processes
    clock: Clock = RehearsalClock() if chosen.rehearse else CudaClock()
    ahead = Ahead(jobs_of(cases, works, memory), processes)
    tuner = Tuner(
        device=device,
        memory=memory,
        clock=clock,
        budget=budget,
        tiles=tiles,
        ahead=ahead,
        samples=chosen.samples,
        seconds=chosen.seconds,
    )
    try:
        return sum(tuner.measure(case, work) for case, work in zip(cases, works, strict=True))
    finally:
        ahead.close()
