"""Steps that take turns, so that none finds its cache in the processor's."""

import itertools
from collections.abc import Callable, Sequence

# to be read between two uses of a cache: twice the largest last-level cache we have met
COLD_BYTES = 2**30
MOST_BYTES = 4 * 2**30
MOST_CACHES = 64


def rotate(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """A function that makes the next of `calls` each time, from the start again after the last."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def caches_needed(bytes_read: int, bytes_held: int) -> int:
    """How many caches to rotate over, where a round reads `bytes_read` and one more takes `bytes_held`.

    As many as keep COLD_BYTES between two uses of one, but at most MOST_CACHES and MOST_BYTES of memory.
    """
    wanted = -(-COLD_BYTES // max(1, bytes_read))
    return max(1, min(wanted, MOST_BYTES // max(1, bytes_held), MOST_CACHES))
