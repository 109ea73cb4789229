"""A value that holds inside of a `with`, in one thread and what it awaits."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Scoped(Generic[T]):
    """`default`, or what the innermost `set` around the call says.

    torch.compile cannot trace a context variable. It is not looked at while no thread is inside of a `set`,
    so that programs compile whole then; one that was compiled outside is compiled anew inside.
    """

    def __init__(self, name: str, default: T) -> None:
        self._default = default
        self._variable = ContextVar(name, default=default)
        self._lock = Lock()
        self._users = 0
        # what a compiled program depends on: not how many there are
        self._in_use = False

    def get(self) -> T:
        """The value here and now."""
        return self._variable.get() if self._in_use else self._default

    @contextmanager
    def set(self, value: T) -> Iterator[None]:
        """Have it be `value` inside."""
        self._count(1)
        token = self._variable.set(value)
        try:
            yield
        finally:
            self._variable.reset(token)
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._users += change
            self._in_use = self._users > 0
