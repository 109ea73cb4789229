"""Times the two halves of `generate`: the prompt, then token by token."""

import time
from typing import Any


class Stopwatch:
    """A streamer of transformers that notes when tokens come, and hands them on.

    Args:
        inner: another streamer, or None.
    """

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner
        self._times: list[float] = []

    def put(self, ids: Any) -> None:
        """The prompt before anything is computed, then each new token as it is chosen."""
        self._times.append(time.perf_counter())
        if self.inner is not None:
            self.inner.put(ids)

    def end(self) -> None:
        """No more tokens."""
        if self.inner is not None:
            self.inner.end()

    @property
    def new_tokens(self) -> int:
        """Tokens that were chosen."""
        return max(0, len(self._times) - 1)

    @property
    def prefill_seconds(self) -> float:
        """From the prompt to the first new token."""
        return self._times[1] - self._times[0] if len(self._times) > 1 else 0.0

    @property
    def decode_seconds(self) -> float | None:
        """Seconds for each token after the first one; None if there was no second."""
        if self.new_tokens < 2:
            return None
        return (self._times[-1] - self._times[1]) / (self.new_tokens - 1)
