"""What Triton compiles while a case is measured: a first call's time that no later one takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Compilations:
    """Binaries that were made, or loaded from Triton's cache on disk, and how long that took."""

    compiled: int = 0
    loaded: int = 0
    seconds: float = 0.0

    def add(self, *, times: Any, cache_hit: bool, **_: Any) -> None:
        """One binary more; what Triton calls a listener, its times in microseconds."""
        self.compiled += not cache_hit
        self.loaded += cache_hit
        self.seconds += 1e-6 * times.total


@contextmanager
def compilations() -> Iterator[Compilations]:
    """Inside, every binary is counted; nothing where Triton is missing or too old to tell."""
    found = Compilations()
    knobs = _knobs()
    if knobs is None:
        yield found
        return
    before, knobs.listener = knobs.listener, found.add
    try:
        yield found
    finally:
        knobs.listener = before


def _knobs() -> Any:
    try:
        from triton import knobs
    except ImportError:
        return None
    return knobs.compilation if hasattr(knobs.compilation, "listener") else None
