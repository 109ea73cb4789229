"""Wall-clock times of functions that take turns."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import torch


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    samples: int,
    seconds: float,
    *,
    device: torch.device | str = "cpu",
    first: Callable[[str, Callable[[], object]], object] = lambda _, function: function(),
) -> dict[str, list[float]]:
    """Seconds of each call, by name: one untimed call each, by `first`, then A B C A B C ...

    Taking turns lets a machine that slows down slow all functions alike. A further round starts while there
    are fewer than `samples` and the rounds so far took less than `seconds`: a very slow round stays the only
    one.

    Raises:
        ValueError: `samples` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    times: dict[str, list[float]] = {name: [] for name in functions}
    with _without_garbage_collection():
        for name, function in functions.items():
            first(name, function)
        synchronize()
        began = perf_counter()
        for _ in range(samples):
            for name, function in functions.items():
                times[name].append(_seconds(function, synchronize))
            if perf_counter() - began >= seconds:
                break
    return times


def _seconds(function: Callable[[], object], synchronize: Callable[[], None]) -> float:
    start = perf_counter()
    result = function()
    synchronize()
    stop = perf_counter()
    # the memory is given back outside the time, and before the next function asks for its own
    del result
    return stop - start


def _nothing() -> None:
    """A CPU call is over when it returns."""


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
