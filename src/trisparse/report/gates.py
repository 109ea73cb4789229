"""Figure: how far each layer opens the gate of each branch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.palette import BRANCHES
from trisparse.report.prose import listed
from trisparse.report.rows import Rows, integer, number, require_columns, require_unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ["layer", "head", "branch", "mean"]
READING = (
    "Every layer adds up three branches, each multiplied by its own gate: 0 shuts a branch out, 1 lets it "
    "pass whole. Bars are means over heads and tokens, dots are single heads. The gates are independent and "
    "need not sum to 1; and as the branches' outputs may differ in size, a gate is no share of the result."
)
BAR = 0.26

# layer, then branch: the mean gate of each head
Gates = dict[int, dict[str, list[float]]]


def draw(rows: Rows) -> "Figure":
    """Three bars a layer, each the mean over heads, with a dot for each head. Nothing is normalised."""
    gates = _read_gates(rows)
    figure, (axes,) = look.new_figure(1, 2.8)
    for place, branch in enumerate(BRANCHES):
        _draw_branch(axes, gates, branch, (place - 1) * (BAR + 0.02))
    ticks = range(0, len(gates), -(-len(gates) // 16))
    axes.set_xticks(list(ticks), [str(list(gates)[tick]) for tick in ticks])
    axes.set_xlim(-0.6, len(gates) - 0.4)
    axes.set_ylim(0, 1)
    look.label_axes(axes, x="Layer", y="Gate, mean over tokens (0 to 1)")
    look.legend(figure, [axes])
    return figure


def _read_gates(rows: Rows) -> Gates:
    require_columns(rows, COLUMNS)
    require_unique(rows, COLUMNS[:3])
    gates: Gates = {layer: {} for layer in sorted({integer(row, "layer") for row in rows})}
    for row in sorted(rows, key=lambda row: integer(row, "head")):
        gates[integer(row, "layer")].setdefault(_branch(row), []).append(_gate(row))
    return gates


def _branch(row: dict[str, str]) -> str:
    if row["branch"] not in BRANCHES:
        raise ValueError(f"rows: expected branch {', '.join(BRANCHES)}, got {row['branch']!r}")
    return row["branch"]


def _gate(row: dict[str, str]) -> float:
    gate = number(row, "mean")
    if not 0 <= gate <= 1:
        raise ValueError(f"rows: expected a mean from 0 to 1, got {row['mean']}")
    return gate


def _draw_branch(axes: "Axes", gates: Gates, branch: str, shift: float) -> None:
    known = BRANCHES[branch]
    heads = {place: layer[branch] for place, layer in enumerate(gates.values()) if branch in layer}
    centres = [place + shift for place in heads]
    pale = look.lighter(known.colour, 0.5)
    axes.bar(centres, [_mean(means) for means in heads.values()], BAR, color=pale, label=known.name)
    size = 2.8 if len(gates) <= 10 else 1.6
    for centre, means in zip(centres, heads.values(), strict=True):
        places = _beside(centre, len(means))
        axes.plot(places, means, "o", color=known.colour, markersize=size, markeredgewidth=0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _beside(centre: float, count: int) -> list[float]:
    """Places for `count` dots across the width of a bar, so that equal heads do not hide each other."""
    return [centre + BAR * 0.8 * ((index + 0.5) / count - 0.5) for index in range(count)]


def explain(rows: Rows) -> str:
    """How to read the figure, and in which layers each branch is opened least and most."""
    gates = _read_gates(rows)
    present = [branch for branch in BRANCHES if any(branch in layer for layer in gates.values())]
    verdicts = listed([_verdict(gates, branch) for branch in present])
    return f"{READING} Means over all layers and heads: {verdicts}."


def _verdict(gates: Gates, branch: str) -> str:
    means = {layer: _mean(branches[branch]) for layer, branches in gates.items() if branch in branches}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    average = f"{branch} {_mean(list(means.values())):.2f}"
    if len(means) == 1:
        return average
    return f"{average} (from {means[low]:.2f} in layer {low} to {means[high]:.2f} in layer {high})"
