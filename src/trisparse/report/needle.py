"""Figure: how often a fact hidden in a long text is found, by length of the text and depth of the fact."""

from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.palette import ATTENTIONS, identity, rank
from trisparse.report.prose import listed, short_count, titled
from trisparse.report.rows import Rows, integer, number, require_columns, require_unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

COLUMNS = ["attention", "context_length", "depth_percent", "score", "samples"]
READING = (
    "A short fact, the needle, is hidden in a long text and the model is asked for it. Columns are lengths "
    "of the text; rows say how deep the needle lies, 0% at the very start. Green (1) means always found, red "
    "(0) never, grey not measured."
)

# the colours that readers know from other needle plots
POOR, FAIR, GOOD = "#F0496E", "#EBB839", "#0CD79F"
UNMEASURED = "#E9E9E9"

# more columns than this leave no room for a number in each cell
WRITABLE = 18

Scores = dict[tuple[int, float], float]


def draw(rows: Rows) -> "Figure":
    """One panel per attention, red (0) over yellow to green (1), the mean of its cells in its title."""
    scores_of = _read_scores(rows)
    lengths = sorted({length for scores in scores_of.values() for length, _ in scores})
    depths = sorted({depth for scores in scores_of.values() for _, depth in scores})
    figure, panels = look.new_figure(len(scores_of), 0.9 + 0.24 * max(5, len(depths)))
    crowding = -(-len(lengths) * len(panels) // WRITABLE)
    for panel, (attention, scores) in zip(panels, scores_of.items(), strict=True):
        mesh = _draw_scores(panel, scores, lengths, depths)
        _tick_cells(panel, lengths, depths, crowding)
        # the number in the cell serves readers who cannot tell red from green
        if crowding == 1:
            _write_scores(panel, scores, lengths, depths)
        between = ": " if len(panels) < 3 else "\n"
        title = f"{_name(attention)}{between}mean {_mean(scores):.2f}"
        look.label_axes(panel, x="Context length (tokens)", title=title)
    panels[0].set_ylabel("Depth of the needle (%)", fontsize=look.BODY, color=look.INK)
    look.draw_scale(figure, panels, mesh, "Score (0 to 1)", [0, 0.5, 1])
    return figure


def _name(attention: str) -> str:
    return titled(identity(ATTENTIONS, attention).name)


def _read_scores(rows: Rows) -> dict[str, Scores]:
    require_columns(rows, COLUMNS)
    require_unique(rows, COLUMNS[:3])
    names = sorted({row["attention"] for row in rows}, key=lambda name: (rank(ATTENTIONS, name), name))
    scores_of: dict[str, Scores] = {name: {} for name in names}
    for row in rows:
        score = number(row, "score")
        if not 0 <= score <= 1:
            raise ValueError(f"rows: expected a score from 0 to 1, got {row['score']}")
        scores_of[row["attention"]][integer(row, "context_length"), number(row, "depth_percent")] = score
    return scores_of


def _mean(scores: Scores) -> float:
    return sum(scores.values()) / len(scores)


def _draw_scores(axes: "Axes", scores: Scores, lengths: list[int], depths: list[float]) -> "QuadMesh":
    import numpy

    cells = numpy.array([[scores.get((length, depth), numpy.nan) for length in lengths] for depth in depths])
    colours = look.colour_map("needle", [POOR, FAIR, GOOD]).with_extremes(bad=UNMEASURED)
    axes.grid(visible=False)
    mesh = axes.pcolormesh(
        numpy.ma.masked_invalid(cells), cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.8
    )
    axes.set_ylim(len(depths), 0)
    axes.spines[:].set_visible(False)
    return mesh


def _tick_cells(axes: "Axes", lengths: list[int], depths: list[float], every: int) -> None:
    """Names of the rows and of `every` so manyth column, counted from the longest context."""
    columns = range(len(lengths) - 1, -1, -every)
    axes.set_xticks([place + 0.5 for place in columns], [short_count(lengths[place]) for place in columns])
    axes.set_yticks([place + 0.5 for place in range(len(depths))], [f"{depth:g}" for depth in depths])
    axes.tick_params(length=0)


def _write_scores(axes: "Axes", scores: Scores, lengths: list[int], depths: list[float]) -> None:
    for (length, depth), score in scores.items():
        x, y = lengths.index(length) + 0.5, depths.index(depth) + 0.5
        axes.text(x, y, f"{score:.2g}", ha="center", va="center", fontsize=look.SMALL - 0.5, color=look.INK)


def explain(rows: Rows) -> str:
    """How to read the figure, the mean of each attention, its score at the longest context, its worst."""
    verdicts = [_verdict(_name(attention), scores) for attention, scores in _read_scores(rows).items()]
    samples = sorted({integer(row, "samples") for row in rows})
    trials = f"{samples[0]}" if len(samples) == 1 else f"{samples[0]} to {samples[-1]}"
    return " ".join([READING, f"Samples per cell: {trials}.", *verdicts])


def _verdict(name: str, scores: Scores) -> str:
    longest = max(length for length, _ in scores)
    last = {place: score for place, score in scores.items() if place[0] == longest}
    means = f"{name} scores {_mean(scores):.2f} on average and {_mean(last):.2f} at {longest} tokens"
    worst = min(scores.values())
    if worst == 1:
        return f"{means}, with no miss anywhere."
    cells = [
        f"{length} tokens, depth {depth:g}%" for (length, depth), score in scores.items() if score == worst
    ]
    where = listed(cells) if len(cells) < 3 else f"{len(cells)} of {len(scores)} cells"
    return f"{means}; its lowest score is {worst:.2g} ({where})."
