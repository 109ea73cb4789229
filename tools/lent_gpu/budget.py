"""The time that a run may take: a machine that is lent ends a command that takes longer."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Budget:
    """A case may begin if the longest of its kind so far would still end in time."""

    def __init__(self, minutes: float) -> None:
        self.ends = perf_counter() + 60 * minutes
        self.longest: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - perf_counter()

    def allows(self, kind: str) -> bool:
        return self.longest.get(kind, 0.0) < self.left

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Inside, a case of this kind is measured."""
        began = perf_counter()
        yield
        self.longest[kind] = max(self.longest.get(kind, 0.0), perf_counter() - began)
