"""How much of the demo fits into the minutes there are, on this machine."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from trisparse.demo.plan import ATTENTIONS, DemoPlan
from trisparse.train.interrupt import TrainingInterrupted
from trisparse.train.trainer import train

# shares of the time: of both trainings without what they evaluate and save, and of each benchmark
_TRAINING = 0.5
_BENCHMARK = 0.2
# of a trial run, of which the first is not counted: kernels are built, memory is new
_TRIAL_STEPS = 4
# fewer teach nothing
_FEWEST_STEPS = 20
# how much longer a benchmark takes for twice the tokens, at most
_GROWTH = 4.0


def fitted_steps(plan: DemoPlan) -> int:
    """The plan's steps, or as many as both trainings make in their share of `plan.minutes`."""
    if plan.minutes is None:
        return plan.steps
    seconds = sum(_seconds_per_step(plan, attention) for attention in ATTENTIONS)
    possible = int(_TRAINING * 60 * plan.minutes / seconds)
    return min(plan.steps, max(_FEWEST_STEPS, possible))


def _seconds_per_step(plan: DemoPlan, attention: str) -> float:
    """Of training, by a trial run that leaves nothing behind."""
    ends: list[float] = []

    def note(*_: Any) -> None:
        ends.append(time.monotonic())

    with tempfile.TemporaryDirectory(prefix="trisparse-") as folder:
        trial = replace(plan.recipe(attention), output=folder, evaluate_windows=1)
        trial = replace(trial, steps=_TRIAL_STEPS, warmup_steps=1, evaluate_every=99, save_every=99)
        try:
            train(trial, on_progress=note)
        except TrainingInterrupted:
            # nothing of it is to be resumed
            raise KeyboardInterrupt from None
    return median(end - start for start, end in zip(ends, ends[1:], strict=False))


def lengths_in_time(lengths: Sequence[int], minutes: float | None) -> Iterator[int]:
    """The lengths of a benchmark, shortest first, as far as its share of `minutes` is likely to reach."""
    began = last = time.monotonic()
    for length in lengths:
        yield length
        now = time.monotonic()
        if minutes is not None and _GROWTH * (now - last) > _BENCHMARK * 60 * minutes - (now - began):
            return
        last = now
