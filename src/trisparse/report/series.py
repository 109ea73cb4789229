"""How a line of measurements is drawn, the cases that failed included."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trisparse.report.look import BAND, BODY, FAILED, INK, SMALL, plain_log_axis
from trisparse.report.measurement import Measurement, by_series
from trisparse.report.palette import BACKENDS, identity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# one for each setting of the same backend
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5))]

# share of a panel's height that one failed series takes at its foot
TRACK = 0.14


def draw_series(axes: "Axes", cases: Sequence[Measurement]) -> None:
    """A line through the medians of each series, broken at failed cases, in a band from least to greatest."""
    for name, line in by_series(cases).items():
        known = identity(BACKENDS, line[0].backend)
        settings = list(dict.fromkeys(case.setting for case in cases if case.backend == line[0].backend))
        dashes = DASHES[settings.index(line[0].setting) % len(DASHES)]
        tokens = [case.tokens for case in line]
        low, middle, high = (_values(line, part) for part in ("minimum", "median", "maximum"))
        axes.fill_between(tokens, low, high, color=known.colour, alpha=BAND, linewidth=0)
        axes.plot(
            tokens,
            middle,
            color=known.colour,
            marker=known.marker,
            markersize=4,
            linewidth=1.6,
            linestyle=dashes,
            label=name,
        )


def _values(line: Sequence[Measurement], part: str) -> list[float]:
    return [getattr(case.time, part) if case.time else math.nan for case in line]


def scale_time(axes: "Axes", cases: Sequence[Measurement], name: str) -> None:
    """A logarithmic y axis that has room for all times, called `name`."""
    times = [case.time for case in cases if case.time]
    low = min((time.minimum for time in times), default=1)
    high = max((time.maximum for time in times), default=10)
    plain_log_axis(axes, low / 1.4, high * 1.4)
    axes.set_ylabel(name, fontsize=BODY, color=INK)


def mark_failed(panels: Sequence["Axes"], groups: Sequence[Sequence[Measurement]]) -> None:
    """Below all lines a red track for each series of a panel's group that failed, a cross at each length.

    The panels share one logarithmic y axis whose limits are final but for the room made here.
    """
    failures = [by_series([case for case in group if case.time is None]) for group in groups]
    _make_room(panels[0], TRACK * max(map(len, failures)))
    for panel, series in zip(panels, failures, strict=True):
        for line, (name, cases) in enumerate(reversed(series.items())):
            _draw_track(panel, name, [case.tokens for case in cases], TRACK * line)


def _make_room(axes: "Axes", share: float) -> None:
    low, high = axes.get_ylim()
    # crosses have no height on the axis, so none is written beside them
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    axes.set_ylim(low * (low / high) ** (share / (1 - share)), high)
    axes.set_yticks(ticks)


def _draw_track(axes: "Axes", name: str, tokens: list[int], foot: float) -> None:
    place, height = axes.get_xaxis_transform(), foot + 0.3 * TRACK
    axes.plot([0, 1], [height] * 2, color=FAILED, linewidth=0.5, alpha=0.35, transform=axes.transAxes)
    crosses = [height] * len(tokens)
    axes.plot(tokens, crosses, "x", color=FAILED, markersize=6, markeredgewidth=1.8, transform=place)
    axes.text(
        0.01, foot + 0.58 * TRACK, f"{name} failed", color=FAILED, fontsize=SMALL, transform=axes.transAxes
    )
