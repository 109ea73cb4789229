"""The benchmark's rows: complete, drawable, and without times where the gate is red."""

from collections.abc import Callable
from typing import Any

import pytest

from trisparse import api, backends
from trisparse.bench import attention
from trisparse.report import latency, speedup
from trisparse.report.measurement import ATTENTION_COLUMNS as COLUMNS
from trisparse.report.measurement import TIMES

from .small import SIZES, scaled


def test_rows_fit_the_columns_and_the_figure():
    """The figure reads what the benchmark writes; a column renamed on one side would break both."""
    seen: list[dict[str, str]] = []
    best = backends.choose("auto", "cpu", SIZES["dtype"])
    rows = attention.run([64, 160], backends=["torch", "auto", best, "sdpa"], on_row=seen.append, **SIZES)
    assert seen == rows
    assert all(list(row) == COLUMNS for row in rows)
    assert [(row["tokens"], row["direction"], row["backend"]) for row in rows] == [
        (tokens, direction, backend)
        for tokens in ("64", "160")
        for direction in ("forward", "backward")
        for backend in dict.fromkeys(("sdpa", "torch", best))
    ]
    assert {row["gate"] for row in rows} == {"pass"}
    assert len(latency.draw(rows).axes) == 2


def test_long_cases_are_measured_without_full_attention():
    """Guards against hours for a baseline that nobody asked for, and figures that cannot do without one."""
    rows = attention.run([64, 160], backends=["torch"], directions=["backward"], baseline_limit=64, **SIZES)
    found = [(row["tokens"], row["backend"]) for row in rows]
    assert found == [("64", "sdpa"), ("64", "torch"), ("160", "torch")]
    latency.draw(rows)
    speedup.draw(rows)
    assert "backward at 160 tokens" in speedup.explain(rows)


def test_wrong_backend_gets_a_red_row_without_times(monkeypatch: pytest.MonkeyPatch):
    """The speed of a wrong result is no speed."""
    monkeypatch.setattr(api, "sparse_attention", scaled)
    baseline, wrong = attention.run([64], backends=["torch"], directions=["forward"], **SIZES)
    assert (baseline["gate"], wrong["gate"], wrong["samples"]) == ("pass", "fail", "0")
    assert [wrong[column] for column in TIMES] == ["", "", ""]
    assert float(wrong["worst_ratio"]) > 1
    latency.draw([baseline, wrong])


def test_parts_are_checked_and_timed_alone():
    """Guards against a part that is timed without a check, and against a backward of the choice of blocks."""
    rows = attention.run([64, 1100], backends=["torch"], parts=True, **SIZES)
    parts = ["compressed", "select", "selected", "window"]
    names = [f"torch:{part}" for part in parts]
    assert [row["backend"] for row in rows if row["tokens"] == "1100"] == [
        *("sdpa", "torch", *names),
        *("sdpa", "torch", names[0], *names[2:]),
    ]
    assert {row["gate"] for row in rows} == {"pass"}


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("compressed_attention", lambda found: (found[0] * 1.1, found[1])),
        ("select_blocks", lambda ids: ids.flip(-1)),
        ("selected_attention", lambda out: out * 1.1),
        ("window_attention", lambda out: out * 1.1),
    ],
)
def test_wrong_part_gets_a_red_row(part: str, spoil: Callable, monkeypatch: pytest.MonkeyPatch):
    """The speed of a wrong result is no speed; the reference stays right."""
    function = getattr(api, part)

    def spoiled(*given: Any, **options: Any) -> Any:
        found = function(*given, **options)
        return found if options["backend"] == "reference" else spoil(found)

    monkeypatch.setattr(api, part, spoiled)
    rows = attention.run([64], backends=["torch"], parts=True, directions=["forward"], **SIZES)
    red = {row["backend"] for row in rows if row["gate"] != "pass"}
    # ids out of order are wrong for the whole op too
    assert red - {"torch"} == {f"torch:{part.split('_')[0]}"}


def test_sequence_shorter_than_a_block_is_measured():
    """No compressed key at all: the gradients of empty tensors must not stop a run."""
    rows = attention.run([5], backends=["torch"], directions=["forward+backward"], **SIZES)
    assert [row["gate"] for row in rows] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"directions": ["backwards"]},
            "directions: expected some of forward, backward, forward.backward, got 'backwards'",
        ),
        ({"backends": ["cuda"]}, "backend: expected"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"groups": 3}, "groups: expected a divisor of heads=4, got 3"),
    ],
)
def test_wrong_argument_is_named_before_anything_runs(wrong: dict, message: str):
    """A misspelling found after the first hour of measuring is found too late."""
    with pytest.raises(ValueError, match=message):
        attention.run([64], **SIZES | wrong)
