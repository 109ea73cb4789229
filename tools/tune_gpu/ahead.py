"""Tiles are compiled by other processes, several at once, while the GPU measures those that are.

What they compile lies in Triton's cache of files, where a launch finds it. A compiler that takes its process
down with it does not end the run.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children, get_context

from kernels import KERNELS
from problem import Problem

from trisparse.bench.cases import Case
from trisparse.triton.launch import INTERPRETED, Tile, assume_memory

# long enough for every loop and split of a kernel: a longer call has the same binaries
_TOKENS = 8192

# a compiler that fights for registers for longer has lost
_PATIENCE = 60.0

# shape and length, name of a kernel, memory class, tile
Job = tuple[Case, str, str, Tile]


def compile_job(job: Job) -> str:
    """Compile one tile; why that failed, or nothing. Runs in a process of its own."""
    case, name, memory, tile = job
    problem = Problem(replace(case, tokens=min(case.tokens, _TOKENS)), "meta")
    try:
        with assume_memory(memory):
            trial = KERNELS[name].trial(problem, tile)
        if not INTERPRETED:
            trial.compile()
    except Exception as error:  # the compiler's own share no base class
        return reason(error)
    return ""


def reason(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


class Ahead:
    """The jobs of a run, compiled in their order by `processes` others; by none if that is 0."""

    def __init__(self, jobs: Sequence[Job], processes: int) -> None:
        self._pool = _pool(processes) if processes else None
        self._futures: dict[Job, Future[str]] = {}
        if self._pool is not None:
            self._futures = {job: self._pool.submit(compile_job, job) for job in jobs}

    def failure(self, job: Job, seconds: float) -> str | None:
        """Waits for the job; why it could not be compiled, or nothing.

        None if it takes more than `seconds`; nothing for a job that was not given.
        """
        if job not in self._futures:
            return ""
        try:
            return self._futures[job].result(timeout=max(0.0, min(seconds, _PATIENCE)))
        except TimeoutError:
            return None if seconds < _PATIENCE else f"not compiled in {_PATIENCE:g} s"
        except BrokenProcessPool:
            # this job's process or another one's: alone it shows
            return _alone(job)

    def close(self) -> None:
        """What has not ended is left out."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            # the interpreter would wait for them
            for process in active_children():
                process.terminate()


def _pool(processes: int) -> ProcessPoolExecutor:
    # a process that has a CUDA context cannot be forked
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _alone(job: Job) -> str:
    with _pool(1) as pool:
        try:
            return pool.submit(compile_job, job).result()
        except BrokenProcessPool:
            return "the compiler ended its process"


def default_processes() -> int:
    """Cores but for the one that measures, up to as many as find work."""
    return max(1, min(12, (os.cpu_count() or 1) - 2))
