"""How a line of measurements is drawn, the cases that failed included."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trisparse.report.look import BAND, FAILED, SMALL
from trisparse.report.measurement import Measurement, by_series
from trisparse.report.palette import BACKENDS, identity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# one for each setting of the same backend
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5))]

# share of a panel's height that the marks of one failed series take at its foot
FOOT = 0.085


def draw_series(axes: "Axes", cases: Sequence[Measurement]) -> None:
    """A line through the medians of each series, broken at failed cases, and a band from least to greatest."""
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


def mark_failed(panels: Sequence["Axes"], groups: Sequence[Sequence[Measurement]]) -> None:
    """A red cross at the length of each failed case of a panel's group, below all lines.

    The panels share one logarithmic y axis whose limits are final but for the room made here.
    """
    failures = [by_series([case for case in group if case.time is None]) for group in groups]
    _make_room(panels[0], FOOT * max(map(len, failures)))
    for panel, series in zip(panels, failures, strict=True):
        for line, (name, cases) in enumerate(series.items()):
            _mark_series(panel, name, [case.tokens for case in cases], FOOT * (line + 0.5))


def _make_room(axes: "Axes", share: float) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low * (low / high) ** (share / (1 - share)), high)


def _mark_series(axes: "Axes", name: str, tokens: list[int], height: float) -> None:
    place = axes.get_xaxis_transform()
    heights = [height] * len(tokens)
    axes.plot(tokens, heights, "x", color=FAILED, markersize=6, markeredgewidth=1.8, transform=place)
    low, high = axes.get_xlim()
    # the words go to the side that has more room
    rightwards = tokens[0] * tokens[-1] < low * high
    axes.annotate(
        f"{name} failed",
        (tokens[-1] if rightwards else tokens[0], height),
        xycoords=place,
        xytext=(6 if rightwards else -6, 0),
        textcoords="offset points",
        ha="left" if rightwards else "right",
        va="center",
        color=FAILED,
        fontsize=SMALL,
    )
