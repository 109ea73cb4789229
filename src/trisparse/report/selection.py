"""Figure: which key blocks the queries of each block select, layer by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.prose import listed, percent, plain
from trisparse.report.rows import Rows, integer, number, require_columns, require_unique

if TYPE_CHECKING:
    import numpy
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

COLUMNS = ["layer", "group", "query_block", "key_block", "share"]
READING = (
    "Each row is a block of neighbouring queries, each column a block of keys; the darker a cell, the larger "
    "the share of those queries that select that key block (mean over KV groups; the colours favour small "
    "shares). The stepped edge is the present: keys right of it lie in the future and stay blank. The first "
    "rows are dark because queries with few blocks behind them select every one."
)
MAX_LAYERS = 4

# the lightest colour is not white: a past block that nobody selects differs from the blank future
SCALE = ["#E9EFF5", "#8CBBDD", "#0072B2", "#06304F"]


def draw(rows: Rows) -> "Figure":
    """A panel for each of up to four layers spread evenly, mean over KV groups; the future stays blank.

    A block of the future that was selected all the same is drawn: it would be a fault, and is to be seen.
    """
    layers = _read_layers(rows)
    chosen = pick(sorted(layers), MAX_LAYERS)
    # panels are square, and four fill the width
    figure, panels = look.new_figure(len(chosen), 0.65 + min(3.6, 5.7 / len(chosen)))
    for panel, layer in zip(panels, chosen, strict=True):
        mesh = _draw_layer(panel, layers[layer])
        look.label_axes(panel, x="Key block", title=f"Layer {layer}")
    figure.set_layout_engine("compressed")
    panels[0].set_ylabel("Query block", fontsize=look.BODY, color=look.INK)
    look.draw_scale(figure, panels, mesh, "Share of queries", [0, 0.05, 0.25, 0.5, 1])
    return figure


def pick(layers: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the layers, the first and the last among them, evenly apart."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (count - 1))] for place in range(count)]


def _read_layers(rows: Rows) -> "dict[int, numpy.ndarray]":
    """Shares by layer, [query block, key block]; a row that is absent stands for a share of 0."""
    import numpy

    require_columns(rows, COLUMNS)
    require_unique(rows, COLUMNS[:4])
    blocks = 1 + max(max(integer(row, "query_block"), integer(row, "key_block")) for row in rows)
    groups: dict[int, set[str]] = {}
    layers: dict[int, numpy.ndarray] = {}
    for row in rows:
        layer = integer(row, "layer")
        groups.setdefault(layer, set()).add(row["group"])
        shares = layers.setdefault(layer, numpy.zeros((blocks, blocks)))
        shares[integer(row, "query_block"), integer(row, "key_block")] += _share(row)
    return {layer: shares / len(groups[layer]) for layer, shares in layers.items()}


def _share(row: dict[str, str]) -> float:
    share = number(row, "share")
    if not 0 <= share <= 1:
        raise ValueError(f"rows: expected a share from 0 to 1, got {row['share']}")
    return share


def _draw_layer(axes: "Axes", shares: "numpy.ndarray") -> "QuadMesh":
    import numpy
    from matplotlib.colors import PowerNorm

    blocks = len(shares)
    future = numpy.triu(numpy.ones_like(shares, dtype=bool), 1)
    # rasterized: thousands of cells as vectors would make a report of many megabytes
    mesh = axes.pcolormesh(
        numpy.ma.masked_array(shares, future & (shares == 0)),
        cmap=look.colour_map("selection", SCALE),
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        rasterized=True,
    )
    edges = numpy.arange(blocks + 1)
    axes.step(edges, edges, where="post", color=look.INK, linewidth=0.6)
    axes.set_xlim(0, blocks)
    axes.set_ylim(blocks, 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    _tick_blocks(axes, blocks)
    return mesh


def _tick_blocks(axes: "Axes", blocks: int) -> None:
    ticks = list(range(0, blocks, 2 ** max(0, (blocks // 4).bit_length() - 1)))
    centres, names = [tick + 0.5 for tick in ticks], [str(tick) for tick in ticks]
    axes.set_xticks(centres, names)
    axes.set_yticks(centres, names)


def explain(rows: Rows) -> str:
    """How to read the figure, and where the last queries' selections go in each layer that is drawn."""
    layers = _read_layers(rows)
    chosen = pick(sorted(layers), MAX_LAYERS)
    last = len(layers[chosen[0]]) - 1
    counts = [f"{plain(float(layers[layer][-1].sum()))} in layer {layer}" for layer in chosen]
    parts = [READING, f"A query of block {last} selects on average this many blocks: {listed(counts)}."]
    if last >= 4:
        free = [f"{_free_share(layers[layer][-1])} in layer {layer}" for layer in chosen]
        parts.append(f"The share of them beyond the first block and the two nearest: {listed(free)}.")
    return " ".join([*parts, *_faults(layers)])


def _free_share(shares: "numpy.ndarray") -> str:
    total, free = float(shares.sum()), float(shares[1:-2].sum())
    return percent(free / total) if total else "0%"


def _faults(layers: "dict[int, numpy.ndarray]") -> list[str]:
    import numpy

    faulty = [f"layer {layer}" for layer, shares in sorted(layers.items()) if numpy.triu(shares, 1).any()]
    return [f"A fault: {listed(faulty)} selected blocks of the future."] if faulty else []
