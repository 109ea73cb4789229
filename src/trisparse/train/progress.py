"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: the step just finished, counted from 1.
        steps: the steps of the whole run.
        first_step: the step after which the run was started or resumed; 0 unless resumed.
        bits_per_byte: the training loss of the step.
        tokens_per_second: the mean since the start or resumption, evaluations and checkpoints included.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    first_step: int
    bits_per_byte: float
    tokens_per_second: float
    seconds_left: float


OnProgress = Callable[[Progress], None]


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[OnProgress]:
    """What to give to `train(on_progress=...)`: a bar if `stream` (stderr) is a terminal, else 10 lines."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield _LineProgress(stream)
        return
    with _bar(stream) as on_progress:
        yield on_progress


class _LineProgress:
    """Writes a line whenever another tenth of the run is done, and at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, progress: Progress) -> None:
        tenths, before = (10 * step // progress.steps for step in (progress.step, progress.step - 1))
        if tenths > before:
            self._stream.write(describe(progress) + "\n")
            self._stream.flush()


@contextmanager
def _bar(stream: TextIO) -> Iterator[OnProgress]:
    # takes a while to import, and only a terminal needs it
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(file=stream)
    with Bar(TextColumn("training"), BarColumn(), TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("starting", total=None)

        def update(progress: Progress) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, description=describe(progress))

        yield update


def describe(progress: Progress) -> str:
    """One line: the step, the loss, the speed and the time left."""
    return (
        f"step {progress.step}/{progress.steps}, {progress.bits_per_byte:.3f} bits per byte, "
        f"{progress.tokens_per_second:,.0f} tokens/s, {_duration(progress.seconds_left)} left"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
