"""Looks into layers while they run: gates and selections, recorded only inside `recording()`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from trisparse.scoped import Scoped


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one layer did in one forward: `gates` [B, T, H, 3], `ids` int32 [B, T, G, S]."""

    layer: int
    gates: Tensor
    ids: Tensor
    select_block: int


_RECORD: Scoped[list[Observation] | None] = Scoped("trisparse_record", None)


@contextmanager
def recording() -> Iterator[list[Observation]]:
    """Collect an Observation of every NSA layer that runs inside, in order."""
    record: list[Observation] = []
    with _RECORD.set(record):
        yield record


def current_record() -> list[Observation] | None:
    """The list to append to, or None outside of `recording()`."""
    return _RECORD.get()
