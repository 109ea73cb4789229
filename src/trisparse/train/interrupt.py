"""Ctrl-C and SIGTERM: the step at hand is finished and saved, then the run ends and says how to go on."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class TrainingInterrupted(Exception):
    """A run that was stopped on request.

    Attributes:
        step: the step of the newest complete checkpoint, from which the run can be resumed; None if none.
        output: the run's folder.
    """

    def __init__(self, step: int | None, output: Path) -> None:
        self.step = step
        self.output = output
        if step is None:
            hint = f"no checkpoint was written yet; remove {str(output)!r} and start again"
        else:
            hint = f"step {step} is saved in {str(output)!r}; start again with --resume to go on from there"
        super().__init__(f"training: interrupted; {hint}")


class StopRequest:
    """While entered, turns the first SIGINT or SIGTERM into a request; the second one interrupts at once.

    Outside the main thread, where Python allows no handlers, signals do what they did before.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
