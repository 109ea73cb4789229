"""One row of a benchmark's table."""

from collections.abc import Sequence
from statistics import median

from trisparse.bench.gate import Verdict
from trisparse.report.measurement import TIMES


def finished_row(
    known: dict[str, str], verdict: Verdict, seconds: Sequence[float], columns: Sequence[str]
) -> dict[str, str]:
    """What is known of a case with its times and its verdict, as `columns`; no times stand by a red gate."""
    spread = (median(seconds), min(seconds), max(seconds)) if verdict.passed else ()
    times = [f"{1000 * time:.4f}" for time in spread] or [""] * len(TIMES)
    row = {
        **known,
        **dict(zip(TIMES, times, strict=True)),
        "samples": str(len(seconds)),
        "gate": "pass" if verdict.passed else "fail",
        "worst_ratio": f"{verdict.worst_ratio:.3g}",
    }
    return {column: row[column] for column in columns}
