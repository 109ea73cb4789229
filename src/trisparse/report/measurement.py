"""Rows of attention.csv: one timed case each, or one that failed its check and has no time."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from trisparse.report.palette import BACKENDS, identity, rank
from trisparse.report.prose import listed
from trisparse.report.rows import Rows, distinct, integer, number, require_columns

# two times are comparable only if all of these agree
SETTING = {
    "heads": "{} heads",
    "groups": "{} KV groups",
    "head_dim": "head dim {}",
    "value_dim": "value dim {}",
    "dtype": "{}",
    "batch": "batch {}",
    "device": "{}",
    "threads": "{} threads",
}
TIMES = ["median_ms", "minimum_ms", "maximum_ms"]
ORIGIN = ["samples", "gate", "worst_ratio", "cpu_flags", "instructions"]
ORIGIN += ["torch", "trisparse", "commit", "date"]
COLUMNS = ["case", "backend", "direction", "tokens", *SETTING, *TIMES, *ORIGIN]
# of attention.csv; the peak of memory is drawn nowhere
ATTENTION_COLUMNS = [*COLUMNS, "peak_mib"]

BASELINE = "sdpa"
DIRECTIONS = ["forward", "backward", "forward+backward"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and greatest of one quantity."""

    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One case of one backend. `time` is in milliseconds, and None where the result failed its check.

    `baseline` is the time of full attention that was measured with it, None where that failed; `paired` is
    False where there was none.
    """

    backend: str
    direction: str
    tokens: int
    setting: tuple[str, ...]
    series: str
    time: Spread | None
    baseline: Spread | None
    paired: bool


def read_measurements(rows: Rows) -> list[Measurement]:
    """The cases by backend, then by length; of a case measured more than once the last row counts.

    A case belongs to the baseline before it in the table, which was measured in turns with it, and not to one
    of a later run.

    Raises:
        ValueError: missing columns, no rows, a gate that is neither pass nor fail, times that are not
            0 < minimum <= median <= maximum, or two cases that only their name tells apart.
    """
    kept = _newest(rows)
    varying = [column for column in SETTING if len({row[column] for row in kept}) > 1]
    sets = {(row["backend"], row["instructions"]) for row in kept}
    mixed = {name for name, _ in sets if sum(name == other for other, _ in sets) > 1}
    baselines = _baselines(rows)
    cases = (_measurement(row, varying, mixed, baselines.get(id(row))) for row in kept)
    return sorted(cases, key=_drawing_order)


def _baselines(rows: Rows) -> dict[int, dict[str, str]]:
    """id of a row -> the last baseline before it of the same case, or the first after it."""
    found: dict[int, dict[str, str]] = {}
    for some in (reversed(rows), rows):
        latest: dict[tuple[object, ...], dict[str, str]] = {}
        for row in some:
            key = (row["direction"], row["tokens"], _setting(row))
            if row["backend"] == BASELINE:
                latest[key] = row
            elif key in latest:
                found[id(row)] = latest[key]
    return found


def _newest(rows: Rows) -> Rows:
    require_columns(rows, COLUMNS)
    newest: dict[tuple[object, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["backend"], row["instructions"], row["direction"], integer(row, "tokens"), _setting(row))
        _refuse_two_cases(newest.get(key, row), row)
        newest[key] = row
    return list(newest.values())


def _refuse_two_cases(first: dict[str, str], second: dict[str, str]) -> None:
    if first["case"] != second["case"]:
        raise ValueError(
            f"rows: expected one case per backend, direction, tokens and setting, got {first['case']} and "
            f"{second['case']}; draw them separately"
        )


def _drawing_order(case: Measurement) -> tuple[object, ...]:
    return rank(BACKENDS, case.backend), case.backend, case.setting, case.tokens


def _measurement(
    row: dict[str, str], varying: Sequence[str], mixed: Container[str], baseline: dict[str, str] | None
) -> Measurement:
    extra = [SETTING[column].format(row[column]) for column in varying]
    if row["backend"] in mixed:
        extra.append(row["instructions"])
    return Measurement(
        backend=row["backend"],
        direction=row["direction"],
        tokens=integer(row, "tokens"),
        setting=_setting(row),
        series=", ".join([identity(BACKENDS, row["backend"]).name, *extra]),
        time=_time(row),
        baseline=None if baseline is None else _time(baseline),
        paired=baseline is not None,
    )


def _setting(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in SETTING)


def _time(row: dict[str, str]) -> Spread | None:
    if row["gate"] not in ("pass", "fail"):
        raise ValueError(f"rows: expected pass or fail in column gate, got {row['gate']!r}")
    if row["gate"] == "fail":
        return None
    median, minimum, maximum = (number(row, column) for column in TIMES)
    if not 0 < minimum <= median <= maximum:
        raise ValueError(
            f"rows: expected 0 < minimum_ms <= median_ms <= maximum_ms, got {minimum}, {median}, {maximum}"
        )
    return Spread(median=median, minimum=minimum, maximum=maximum)


def by_direction(cases: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The cases of each direction, forward first."""
    found = distinct(case.direction for case in cases)
    names = [name for name in DIRECTIONS if name in found] + [
        name for name in found if name not in DIRECTIONS
    ]
    return {name: [case for case in cases if case.direction == name] for name in names}


def by_series(cases: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The cases of each line of a figure."""
    names = distinct(case.series for case in cases)
    return {name: [case for case in cases if case.series == name] for name in names}


def timed(cases: Sequence[Measurement]) -> list[Measurement]:
    """The cases that passed."""
    return [case for case in cases if case.time]


def direction_title(direction: str) -> str:
    """`forward+backward` as a heading."""
    return direction.replace("+", " + ").capitalize()


def speedups(cases: Sequence[Measurement]) -> list[Measurement]:
    """Each case with a baseline: how many times as fast it is, in place of its time.

    The least speedup sets the baseline's fastest sample against the case's slowest, the greatest the reverse.
    A case that failed, or whose baseline failed, has None.
    """
    return [replace(case, time=_ratio(case.baseline, case.time)) for case in cases if case.paired]


def _ratio(baseline: Spread | None, time: Spread | None) -> Spread | None:
    if baseline is None or time is None:
        return None
    return Spread(
        median=baseline.median / time.median,
        minimum=baseline.minimum / time.maximum,
        maximum=baseline.maximum / time.minimum,
    )


def unpaired(cases: Sequence[Measurement]) -> list[Measurement]:
    """Cases without a baseline of the same direction, length and setting."""
    return [case for case in cases if case.backend != BASELINE and not case.paired]


def place_of(case: Measurement) -> str:
    """A case as a sentence names it."""
    return f"{case.series}, {case.direction} at {case.tokens} tokens"


def explain_conditions(rows: Rows) -> str:
    """Where and how the times were taken, and which cases failed their check."""
    kept = _newest(rows)
    common = [form.format(kept[0][column]) for column, form in SETTING.items() if _agree(kept, column)]
    versions = listed(distinct(row["torch"] for row in kept))
    commits = listed(distinct(row["commit"] for row in kept))
    return f"Setting: {', '.join(common)}; torch {versions}, commit {commits}. {_explain_gate(rows)}"


def _agree(rows: Rows, column: str) -> bool:
    return len({row[column] for row in rows}) == 1


def _explain_gate(rows: Rows) -> str:
    failed = [place_of(case) for case in read_measurements(rows) if case.time is None]
    if not failed:
        return "Every case passed its correctness check."
    return f"A red cross is a case that failed its correctness check and so has no time: {'; '.join(failed)}."
