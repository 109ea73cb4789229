"""The end of the time that is lent: a run that is still going saves its log and stops."""

import signal
from time import perf_counter

from say import say

from trisparse.train.progress import Progress, describe

# lines of a run
_SAID = 10


class Deadline:
    """What to give to `train` as `on_progress`: after `seconds`, counted from here, the run is to stop."""

    def __init__(self, seconds: float) -> None:
        self._ends = perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - perf_counter()

    def __call__(self, progress: Progress) -> None:
        if progress.step % max(1, progress.steps // _SAID) == 0:
            say(describe(progress))
        if self.left < 0 and progress.step < progress.steps:
            # as Ctrl-C does: the run ends after this step, and its log is whole
            signal.raise_signal(signal.SIGINT)
