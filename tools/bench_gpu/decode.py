"""One decode step of each contender against caches of its own: check, then times, captured and eager.

A timed round makes a step for each cache in turn, as a model does for each of its layers: what is left of
one in the L2 cache is gone when its turn comes again. A CUDA graph holds a whole round. Eager rounds pay for
every launch, and for all that Python does before it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from math import inf
from statistics import median

import torch
from clock import Clock
from decode_contenders import decode_contenders
from say import say
from tables import Tables
from torch import Tensor

from trisparse.bench.bandwidth import Bandwidth
from trisparse.bench.decode_case import DecodeCase
from trisparse.bench.gate import Verdict
from trisparse.bench.rotation import caches_needed
from trisparse.bench.step import Step
from trisparse.bench.step_contender import StepContender
from trisparse.bench.step_gate import judge_step
from trisparse.bench.step_row import TimedStep

Calls = Sequence[Callable[[], Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Round:
    """Some steps of one contender in one form, started one by one or by a graph."""

    contender: StepContender
    form: str
    launch: str
    verdict: Verdict
    ids: Tensor | None
    caches: int
    steps: int
    run: Callable[[], object]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.contender.name, self.form, self.launch)))


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """How every decode step is measured.

    Attributes:
        most_caches: of one contender, at most.
        least_steps: of a round, so that what starts and ends it is a small part of its time.
    """

    backend: str
    device: torch.device
    clock: Clock
    tables: Tables
    bandwidth: Bandwidth
    samples: int
    seconds: float
    most_caches: int
    least_steps: int
    contenders: list[StepContender] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contenders", decode_contenders(self.backend))

    def is_done(self, case: DecodeCase) -> bool:
        return self.tables.has("decode.csv", case.name, case.direction)

    def measure(self, case: DecodeCase) -> None:
        """All contenders in all forms; the fastest form of each counts, every one is written down."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        rounds = [found for each in self.contenders for found in self._rounds(each, case)]
        calls = {each.name: each.run for each in rounds if each.verdict.passed}
        times = self.clock.time(calls, self.samples, self.seconds)
        rows, best = [], {}
        for each in rounds:
            seconds = [1e-3 * time / each.steps for time in times.get(each.name, [])]
            row = self._row(each, case, seconds)
            rows.append({**row, "launch": each.launch})
            middle = median(seconds) if seconds else inf
            name = each.contender.name
            if name not in best or middle < best[name][0]:
                best[name] = middle, {**row, "form": f"{each.form} {each.launch}".strip()}
            say(f"{case.name} {each.name}: {row['median_ms'] or 'failed its check'} ms")
        self.tables.add_decode(rows, [row for _, row in best.values()])

    def _row(self, each: _Round, case: DecodeCase, seconds: Sequence[float]) -> dict[str, str]:
        timed = TimedStep(
            contender=each.contender,
            case=case,
            form=each.form,
            ids=each.ids,
            verdict=each.verdict,
            seconds=seconds,
            caches=each.caches,
        )
        return timed.row(self.device, self.bandwidth)

    def _rounds(self, contender: StepContender, case: DecodeCase) -> Iterator[_Round]:
        try:
            steps, ids = self._steps(contender, case)
        except torch.OutOfMemoryError:
            say(f"{case.name} {contender.name}: left out, its caches do not fit")
            return
        for form in contender.forms(case):
            try:
                yield from self._launches(contender, case, form, steps, ids)
            except RuntimeError as error:
                if contender.name == self.backend and not isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                say(f"{case.name} {contender.name} {form}: left out, {reason}")

    def _steps(self, contender: StepContender, case: DecodeCase) -> tuple[list[Step], Tensor | None]:
        """A step for each cache, and the ids of the first."""
        first = contender.step(case, self.device)
        ids = contender.select(first, case)
        caches = caches_needed(contender.bytes_read(case, ids), first.nbytes())
        others = range(1, min(caches, self.most_caches))
        return [first, *(first.elsewhere(case, seed) for seed in others)], ids

    def _launches(
        self, contender: StepContender, case: DecodeCase, form: str, steps: list[Step], ids: Tensor | None
    ) -> Iterator[_Round]:
        verdict = judge_step(contender, steps[0], case, form)
        say(f"{case.name} {contender.name} {form}: error {verdict.worst_ratio:.3g} of what is allowed")
        prepared = [contender.prepare(step, case, form) for step in steps]
        calls = list(islice(cycle(prepared), max(self.least_steps, len(prepared))))
        for launch in ("graph", "eager") if verdict.passed else ("eager",):
            run, right = self._captured(calls) if launch == "graph" else (_in_turn(calls), True)
            yield _Round(
                contender=contender,
                form=form,
                launch=launch,
                verdict=verdict if right else Verdict(worst_ratio=inf),
                ids=ids,
                caches=len(steps),
                steps=len(calls),
                run=run,
            )

    def _captured(self, calls: Calls) -> tuple[Callable[[], object], bool]:
        """The round as a graph, and whether its first step gives the bits of the eager one."""
        kept: list[Tensor] = []

        def keep_first() -> None:
            kept[:] = [call() for call in calls][:1]

        replay = self.clock.capture(keep_first)
        replay()
        return replay, torch.equal(kept[0], calls[0]())


def _in_turn(calls: Calls) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run
