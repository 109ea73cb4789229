"""The look that all figures share: size, type, axes, legends and labels that keep out of each other's way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trisparse.report.prose import short_count

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# every figure has the width of a page's text, so letters have one size throughout a report
WIDTH = 7.2
INK, MUTED, GRID, FAILED = "#222222", "#6B6B6B", "#E4E4E4", "#C1121F"
BODY, SMALL = 8.5, 7.5
BAND = 0.16
DASHED = (0, (4, 3))
TICKS = {8: [1.0, 1.5, 2.0, 3.0, 5.0, 7.0], 500: [1.0, 2.0, 5.0], math.inf: [1.0]}


def new_figure(columns: int, height: float, *, share_y: bool = True) -> tuple["Figure", list["Axes"]]:
    """A figure of `columns` panels in one row; it belongs to no window and changes no global setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    grid = figure.subplots(1, columns, squeeze=False, sharey=share_y)
    panels = list(grid[0])
    for panel in panels:
        _calm(panel)
    return figure, panels


def _calm(axes: "Axes") -> None:
    axes.set_facecolor("white")
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=BODY, colors=MUTED, labelcolor=INK, width=0.7, length=3)
    axes.tick_params(which="minor", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.spines[["left", "bottom"]].set_linewidth(0.7)


def label_axes(axes: "Axes", *, x: str = "", y: str = "", title: str = "") -> None:
    """Names with units on the axes; the title stands left, where reading starts."""
    axes.set_xlabel(x, fontsize=BODY, color=INK)
    axes.set_ylabel(y, fontsize=BODY, color=INK)
    axes.set_title(title, fontsize=BODY + 0.5, color=INK, loc="left", fontweight="bold")


def context_axis(axes: "Axes", tokens: Sequence[int]) -> None:
    """A logarithmic x axis with a tick at each measured length, or at the powers of two if those are many."""
    lengths = sorted(set(tokens))
    if len(lengths) > 8:
        lengths = [length for length in lengths if length.bit_count() == 1] or lengths
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [short_count(length) for length in lengths])
    axes.minorticks_off()


def plain_log_axis(axes: "Axes", low: float, high: float, suffix: str = "") -> None:
    """A logarithmic y axis from `low` to `high`, with ticks written out: 0.5, 20, 1000."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # the narrower the span, the more ticks in a decade
    steps = next(steps for span, steps in TICKS.items() if high / low < span)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: "Figure", panels: Sequence["Axes"]) -> None:
    """One legend above all panels, each name once."""
    entries: dict[str, Artist] = {}
    for panel in panels:
        handles, names = panel.get_legend_handles_labels()
        entries.update(
            (name, handle) for name, handle in zip(names, handles, strict=True) if name not in entries
        )
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper left",
        ncols=legend_columns(list(entries)),
        fontsize=BODY,
        frameon=False,
        labelcolor=INK,
        handlelength=1.8,
        columnspacing=1.6,
    )


def legend_columns(names: Sequence[str]) -> int:
    """As many columns as fit beside each other; a legend fills its columns from top to bottom."""
    for lines in range(1, len(names)):
        widths = [max(map(len, names[start : start + lines])) for start in range(0, len(names), lines)]
        # in letters: a line has 115, a column's sample of line and gap take 8
        if sum(widths) + 8 * len(widths) <= 115:
            return len(widths)
    return 1


@dataclass(frozen=True, kw_only=True)
class EndLabel:
    """A text beside the last point of a line, in the line's colour."""

    x: float
    y: float
    text: str
    colour: str


def label_ends(axes: "Axes", labels: Sequence[EndLabel]) -> None:
    """Write each label right of its point; labels of neighbouring points move apart instead of overlapping.

    The axes' limits and scales must be final.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    points_per_pixel = 72.0 / figure.dpi
    for x in sorted({label.x for label in labels}):
        column = [label for label in labels if label.x == x]
        heights = [axes.transData.transform((x, label.y))[1] * points_per_pixel for label in column]
        for label, height, place in zip(column, heights, spread(heights, BODY + 1.5), strict=True):
            _write_beside(axes, label, place - height)


def _write_beside(axes: "Axes", label: EndLabel, rise: float) -> None:
    axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(6, rise),
        textcoords="offset points",
        color=label.colour,
        fontsize=BODY,
        va="center",
        annotation_clip=False,
    )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed so that any two differ by at least `gap`; their order stays."""
    clusters: list[list[int]] = []
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        clusters.append([index])
        while len(clusters) > 1 and _touch(clusters[-2], clusters[-1], heights, gap):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    placed = list(heights)
    for cluster in clusters:
        for index, place in zip(cluster, _stack(cluster, heights, gap), strict=True):
            placed[index] = place
    return placed


def _stack(cluster: list[int], heights: Sequence[float], gap: float) -> list[float]:
    middle = math.fsum(heights[index] for index in cluster) / len(cluster)
    lowest = middle - gap * (len(cluster) - 1) / 2
    return [lowest + gap * position for position in range(len(cluster))]


def _touch(below: list[int], above: list[int], heights: Sequence[float], gap: float) -> bool:
    return _stack(above, heights, gap)[0] - _stack(below, heights, gap)[-1] < gap


def colour_map(name: str, colours: Sequence[str]) -> "Colormap":
    """A smooth colour map through `colours`; cells without a value stay blank."""
    from matplotlib.colors import LinearSegmentedColormap

    smooth = LinearSegmentedColormap.from_list(name, list(colours))
    return smooth.with_extremes(bad=(1.0, 1.0, 1.0, 0.0))


def draw_scale(
    figure: "Figure", panels: Sequence["Axes"], mesh: "QuadMesh", name: str, ticks: Sequence[float]
) -> None:
    """The colour scale of `mesh` at the right of all panels."""
    scale = figure.colorbar(mesh, ax=list(panels), ticks=list(ticks), format="%g", aspect=24, pad=0.015)
    scale.set_label(name, fontsize=BODY, color=INK)
    scale.ax.tick_params(labelsize=BODY, length=0, labelcolor=INK)
    scale.ax.minorticks_off()
    scale.outline.set_visible(False)


def lighter(colour: str, share: float) -> tuple[float, float, float]:
    """`colour` with `share` of white in it; unlike a transparent colour it hides the grid behind it."""
    from matplotlib.colors import to_rgb

    red, green, blue = (share + (1 - share) * part for part in to_rgb(colour))
    return red, green, blue
