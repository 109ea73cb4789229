"""What may be compared with what, and what must never be mixed or dropped."""

import pytest

from trisparse.report.measurement import (
    by_direction,
    explain_conditions,
    read_measurements,
    speedups,
    unpaired,
)

from .rows import attention_row, attention_rows


def test_last_row_of_a_case_counts():
    old = attention_row("cpu", "forward", 1024, commit="old")
    new = attention_row("cpu", "forward", 1024, median_ms="19.0", commit="new")
    (case,) = read_measurements([old, new])
    assert case.time is not None
    assert case.time.median == 19.0
    assert "commit new." in explain_conditions([old, new])


def test_settings_are_lines_of_their_own():
    """A float32 time and a bfloat16 time in one line would be a line about nothing."""
    cases = read_measurements(
        [attention_row("cpu", "forward", 1024), attention_row("cpu", "forward", 2048, dtype="float32")]
    )
    assert [case.series for case in cases] == ["NSA (cpu), bfloat16", "NSA (cpu), float32"]


def test_cases_that_only_their_name_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"^rows: expected one case per .*, got prefill and decode"):
        read_measurements(
            [attention_row("cpu", "forward", 1024, case=case) for case in ("prefill", "decode")]
        )


def test_forward_comes_first():
    cases = read_measurements(attention_rows()[::-1])
    assert list(by_direction(cases)) == ["forward", "forward+backward"]


def test_speedup_is_the_baseline_over_the_case():
    (case,) = speedups(read_measurements([attention_row(name, "forward", 16384) for name in ("sdpa", "cpu")]))
    assert case.time is not None
    assert case.time.median == pytest.approx(6.0)
    assert case.time.minimum == pytest.approx(6.0 * 0.93 / 1.12, rel=1e-4)
    assert case.time.maximum == pytest.approx(6.0 * 1.12 / 0.93, rel=1e-4)


def test_speedup_is_over_the_baseline_of_the_same_run():
    """Guards against times of one day over times of another, which were not taken in turns."""
    run = [attention_row(name, "forward", 16384) for name in ("sdpa", "cpu")]
    later = [
        attention_row("sdpa", "forward", 16384, median_ms="3840", minimum_ms="3840", maximum_ms="3840"),
        attention_row("torch", "forward", 16384),
    ]
    ratios = {case.backend: case.time.median for case in speedups(read_measurements([*run, *later]))}
    assert ratios["cpu"] == pytest.approx(6.0)
    assert ratios["torch"] == pytest.approx(3840 / float(later[1]["median_ms"]))


def test_instruction_sets_are_lines_of_their_own():
    """Guards against a slower set that takes the place of a faster one without a word."""
    sets = [attention_row("cpu", "forward", 1024, instructions=name) for name in ("amx", "portable")]
    cases = read_measurements([attention_row("sdpa", "forward", 1024), *sets])
    assert [case.series for case in cases][1:] == ["NSA (cpu), amx", "NSA (cpu), portable"]


def test_no_speedup_across_settings():
    cases = read_measurements(
        [attention_row("sdpa", "forward", 1024, dtype="float32"), attention_row("cpu", "forward", 1024)]
    )
    assert speedups(cases) == []
    assert [case.backend for case in unpaired(cases)] == ["cpu"]


def test_failed_baseline_gives_no_speedup():
    rows = [attention_row("sdpa", "forward", 1024, gate="fail"), attention_row("cpu", "forward", 1024)]
    (case,) = speedups(read_measurements(rows))
    assert case.time is None


def test_gate_is_pass_or_fail():
    with pytest.raises(ValueError, match=r"^rows: expected pass or fail in column gate, got 'maybe'$"):
        read_measurements([attention_row("cpu", "forward", 1024) | {"gate": "maybe"}])


def test_times_must_be_in_order():
    with pytest.raises(ValueError, match=r"^rows: expected 0 < minimum_ms <= median_ms <= maximum_ms"):
        read_measurements([attention_row("cpu", "forward", 1024, median_ms="0")])
