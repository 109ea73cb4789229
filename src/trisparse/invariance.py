"""A mode in which a token's bits do not depend on how its sequence came in chunks."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ENABLED = ContextVar("trisparse_batch_invariant", default=False)


@contextmanager
def batch_invariant(enabled: bool = True) -> Iterator[None]:
    """Inside, a token decoded from a cache gets the very bits of the forward over the whole sequence.

    Outside, few new tokens take kernels made for decoding, which add in another order. A row never depends
    on its neighbours in the batch, inside or outside. Holds for this thread and what it awaits.
    """
    token = _ENABLED.set(enabled)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def is_batch_invariant() -> bool:
    """Whether the mode is on."""
    return _ENABLED.get()
