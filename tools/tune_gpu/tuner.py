"""Tile after tile: compile, compare with the pinned one, time both in turns, write a row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from ahead import Ahead, Job, reason
from budget import Budget
from candidates import candidates
from clock import Clock
from gate import worst_ratio
from kernels import Kernel
from problem import Problem
from say import say
from tiles import Outcome, Tiles, shape_name
from trial import Trial

from trisparse.bench.cases import Case
from trisparse.triton.launch import Tile

# what one kernel is tried with on one shape: tiles, each with the first that is the same to the kernel
Work = tuple[Kernel, list[tuple[Tile, Tile]]]


def work_of(kernels: Sequence[Kernel], case: Case, tiles: Tiles, most: int | None) -> Iterator[Work]:
    """What the table does not have yet, at most so many tiles of each kernel."""
    problem = Problem(case, "meta")
    for kernel in kernels:
        wanted = list(candidates(kernel, problem))[:most]
        if missing := [pair for pair in wanted if tiles.find(kernel, problem, pair[0]) is None]:
            yield kernel, missing


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """How every tile is measured."""

    device: str
    memory: str
    clock: Clock
    budget: Budget
    tiles: Tiles
    ahead: Ahead
    samples: int
    seconds: float

    def measure(self, case: Case, work: Sequence[Work]) -> int:
        """All work on one shape; how many tiles were left out because the time was over."""
        counts = [len(pairs) for _, pairs in work]
        if not work or not self.budget.allows("shape"):
            return sum(counts)
        with self.budget.spend("shape"):
            if self.device == "cuda":
                # what the shape before has left does not fit this one
                torch.cuda.empty_cache()
            problem = Problem(case, self.device)
        return sum(self._measure_all(kernel, problem, pairs) for kernel, pairs in work)

    def _measure_all(self, kernel: Kernel, problem: Problem, pairs: Sequence[tuple[Tile, Tile]]) -> int:
        """The tiles of one kernel; how many were left out."""
        pinned, left_out = None, 0
        for tile, same in pairs:
            # what is compiled ahead is waited for outside of the time that a tile is expected to take
            failure = self.ahead.failure((problem.case, kernel.name, self.memory, same), self.budget.left)
            if failure is None or not self.budget.allows("tile"):
                left_out += 1
                continue
            with self.budget.spend("tile"):
                pinned = pinned or self._start_pinned(kernel, problem)
                twin = None if same == tile else self.tiles.find(kernel, problem, same)
                if twin is not None:
                    row = self.tiles.add_same(twin, tile)
                else:
                    outcome = Outcome(status=failure) if failure else self._try(kernel, problem, tile, pinned)
                    row = self.tiles.add(kernel, problem, tile, outcome)
            timed = (
                f"{row['median_ms']} ms, {row['ratio']} of the pinned one's" if row["ratio"] else row["gate"]
            )
            say(f"{kernel.name} {row['shape']} {tuple(tile)}: {timed} {row['status']}")
        return left_out

    def _start_pinned(self, kernel: Kernel, problem: Problem) -> Trial:
        trial = kernel.trial(problem, kernel.pinned(problem))
        trial.run()
        return trial

    def _try(self, kernel: Kernel, problem: Problem, tile: Tile, pinned: Trial) -> Outcome:
        outcome = Outcome()
        try:
            trial = kernel.trial(problem, tile)
            outcome.compiled = trial.start()
            outcome.worst_ratio = worst_ratio(trial.results(), pinned.results(), problem)
            if outcome.worst_ratio <= 1.0:
                runs = {"pinned": self.clock.capture(pinned.run), "tile": self.clock.capture(trial.run)}
                times = self.clock.time(runs, self.samples, self.seconds)
                outcome.times, outcome.pinned_times = times["tile"], times["pinned"]
        except Exception as error:  # the compiler's own share no base class
            if self.device == "cuda":
                # a device that a kernel has broken says so again, and ends the run
                torch.cuda.synchronize()
            outcome.status = reason(error)
        return outcome


def jobs_of(cases: Sequence[Case], works: Sequence[Sequence[Work]], memory: str) -> list[Job]:
    """What is to be compiled, in the order in which it is measured."""
    return [
        (case, kernel.name, memory, tile)
        for case, work in zip(cases, works, strict=True)
        for kernel, pairs in work
        for tile, same in pairs
        if tile == same
    ]


def describe(works: Sequence[Sequence[Work]], cases: Sequence[Case]) -> str:
    """What is left to do, in a line for each shape."""
    lines = []
    for case, work in zip(cases, works, strict=True):
        count = sum(len(pairs) for _, pairs in work)
        lines.append(f"{shape_name(case)}: {count} tiles of {len(work)} kernels")
    return "\n".join(lines)
