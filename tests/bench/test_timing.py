"""Calls take turns, and the budget ends them."""

import gc

import pytest

from trisparse.bench.timing import time_interleaved


def recorder(calls: list[str]):
    return {name: lambda name=name: calls.append(name) for name in "ABC"}


def test_calls_take_turns_after_one_warm_up():
    """A A A B B B would charge a machine that heats up to B alone."""
    calls: list[str] = []
    times = time_interleaved(recorder(calls), samples=3, seconds=60)
    assert "".join(calls) == "ABC" * 4
    assert {name: len(some) for name, some in times.items()} == {"A": 3, "B": 3, "C": 3}


def test_spent_budget_ends_after_a_whole_round():
    """A budget that cut a round would leave names with unequal samples; none at all would leave no time."""
    calls: list[str] = []
    times = time_interleaved(recorder(calls), samples=9, seconds=0)
    assert [len(some) for some in times.values()] == [1, 1, 1]


def test_garbage_collection_rests_and_returns_even_after_an_error():
    """A collection inside a sample is noise; one switched off for good is a leak."""
    seen = []
    time_interleaved({"A": lambda: seen.append(gc.isenabled())}, samples=1, seconds=1)
    assert seen == [False, False]
    with pytest.raises(ZeroDivisionError):
        time_interleaved({"A": lambda: 1 // 0}, samples=1, seconds=1)
    assert gc.isenabled()


def test_no_samples_is_refused():
    """Zero rounds would make a median of nothing."""
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        time_interleaved({}, samples=0, seconds=1)
