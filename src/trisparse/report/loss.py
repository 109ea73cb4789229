"""Figure: loss against training tokens, one colour per attention, training light and held-out strong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.palette import ATTENTIONS, Identity, identity, rank
from trisparse.report.prose import listed, millions, plain
from trisparse.report.rows import Rows, distinct, integer, number, require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ["run", "attention", "split", "step", "tokens", "bits_per_byte"]
UNIGRAM = "unigram_bits_per_byte"
SPLITS = ("heldout", "train")
READING = (
    "Bits per byte: how many bits a model needs to write down one byte of text; lower is better, and a model "
    "that knows nothing needs 8. Strong lines are text that was held out, light lines the text being trained "
    "on. The right panel enlarges the end of the left one."
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's loss on one split, in order of training tokens."""

    name: str
    identity: Identity
    split: str
    tokens: list[int]
    bits: list[float]


def draw(rows: Rows) -> "Figure":
    """The whole run on the left, its end enlarged on the right with the last values written out."""
    curves = _read_curves(rows)
    figure, (whole, end) = look.new_figure(2, 3.1, share_y=False)
    for panel in (whole, end):
        for place, curve in enumerate(curves):
            # the first curve on top, the training curves below all
            _draw_curve(panel, curve, layer=3 - place / 100)
    _name_training(whole, curves)
    _draw_unigram(whole, rows)
    _enlarge_end(end, curves)
    whole.set_xlim(left=0)
    look.label_axes(whole, x="Training tokens (millions)", y="Loss (bits per byte)", title="Whole run")
    look.label_axes(end, x="Training tokens (millions)", title="End of the run, enlarged")
    look.legend(figure, [whole])
    look.label_ends(end, [_end_label(curve) for curve in _judged(curves)])
    return figure


def _read_curves(rows: Rows) -> list[Curve]:
    require_columns(rows, COLUMNS)
    for split in distinct(row["split"] for row in rows):
        if split not in SPLITS:
            raise ValueError(f"rows: expected train or heldout in column split, got {split!r}")
    keys = {(row["attention"], row["run"], row["split"]) for row in rows}
    return [_read_curve(rows, *key) for key in sorted(keys, key=_drawing_order)]


def _drawing_order(key: tuple[str, str, str]) -> tuple[object, ...]:
    attention, run, split = key
    return SPLITS.index(split), rank(ATTENTIONS, attention), attention, run


def _read_curve(rows: Rows, attention: str, run: str, split: str) -> Curve:
    mine = [row for row in rows if (row["attention"], row["run"], row["split"]) == (attention, run, split)]
    points = sorted((integer(row, "tokens"), number(row, "bits_per_byte")) for row in mine)
    known = identity(ATTENTIONS, attention)
    runs = {row["run"] for row in rows if row["attention"] == attention}
    return Curve(
        name=known.name if len(runs) == 1 else f"{known.name} ({run})",
        identity=known,
        split=split,
        tokens=[tokens for tokens, _ in points],
        bits=[bits for _, bits in points],
    )


def _judged(curves: Sequence[Curve]) -> list[Curve]:
    """The held-out curves; the training curves where nothing was held out."""
    return [curve for curve in curves if curve.split == "heldout"] or list(curves)


def _draw_curve(axes: "Axes", curve: Curve, layer: float) -> None:
    tokens = [count / 1e6 for count in curve.tokens]
    colour, marker = curve.identity.colour, curve.identity.marker
    if curve.split == "train":
        axes.plot(tokens, curve.bits, color=colour, linewidth=0.8, alpha=0.4, zorder=layer)
    else:
        (line,) = axes.plot(tokens, curve.bits, color=colour, marker=marker, zorder=layer, label=curve.name)
        line.set(linewidth=1.6, markersize=3.5)


def _name_training(axes: "Axes", curves: Sequence[Curve]) -> None:
    light = [curve for curve in curves if curve.split == "train"]
    names = {"training (light)": look.MUTED} if light else {}
    # where nothing was held out the light lines carry the names themselves
    if len(light) == len(curves):
        names = {f"{curve.name}, training": curve.identity.colour for curve in light}
    for name, colour in names.items():
        axes.plot([], [], color=colour, linewidth=0.8, alpha=0.7, label=name)


def _enlarge_end(axes: "Axes", curves: Sequence[Curve]) -> None:
    ends = [curve.tokens[-1] for curve in curves]
    # the second half, or more of the run if a curve ended early
    start, last = min([max(ends) / 2, *ends]), max(ends) or 1
    points = [point for curve in curves for point in zip(curve.tokens, curve.bits, strict=True)]
    bits = [value for tokens, value in points if tokens >= start]
    room = 0.08 * (max(bits) - min(bits)) or 0.1
    axes.set_xlim(start / 1e6, last * 1.02 / 1e6)
    axes.set_ylim(min(bits) - room, max(bits) + room)


def _draw_unigram(axes: "Axes", rows: Rows) -> None:
    bits = _unigram(rows)
    if bits is not None:
        axes.axhline(bits, color=look.MUTED, linewidth=1, linestyle=look.DASHED, label="unigram byte model")


def _unigram(rows: Rows) -> float | None:
    values = {number(row, UNIGRAM) for row in rows if row.get(UNIGRAM)}
    if len(values) > 1:
        raise ValueError(
            f"rows: expected one value in column {UNIGRAM}, got {sorted(values)}; draw one corpus at a time"
        )
    return min(values, default=None)


def _end_label(curve: Curve) -> look.EndLabel:
    last = curve.bits[-1]
    return look.EndLabel(x=curve.tokens[-1] / 1e6, y=last, text=plain(last), colour=curve.identity.colour)


def explain(rows: Rows) -> str:
    """How to read the figure, the last loss of each run, and what the runs cannot tell."""
    judged = _judged(_read_curves(rows))
    parts = [READING, _explain_last(judged), _explain_unigram(rows, judged), _explain_gap(judged)]
    return " ".join(part for part in parts if part)


def _explain_last(curves: Sequence[Curve]) -> str:
    kind = "held-out" if curves[0].split == "heldout" else "training"
    ends = {curve.tokens[-1] for curve in curves}
    if len(ends) == 1:
        values = [f"{plain(curve.bits[-1])} for {curve.name}" for curve in curves]
        return f"After {millions(ends.pop())} tokens the {kind} loss is {listed(values)}."
    values = [f"{plain(c.bits[-1])} for {c.name} after {millions(c.tokens[-1])} tokens" for c in curves]
    return f"The last {kind} loss is {listed(values)}; unequal training is no fair comparison."


def _explain_unigram(rows: Rows, curves: Sequence[Curve]) -> str:
    bits = _unigram(rows)
    if bits is None:
        return ""
    above = [curve.name for curve in curves if curve.bits[-1] >= bits]
    verdict = f"{listed(above)} did not get below it" if above else "every run ends below it"
    return (
        f"The dashed line, {plain(bits)}, is a model that only knows how often each byte occurs; {verdict}."
    )


def _explain_gap(curves: Sequence[Curve]) -> str:
    if len(curves) < 2:
        return "It is a single run."
    best, second, *_ = sorted(curves, key=lambda curve: curve.bits[-1])
    distance = plain(second.bits[-1] - best.bits[-1], 2)
    gap = f"The lowest, {best.name}, is {distance} below {second.name}, the next."
    if len({curve.identity.name for curve in curves}) < len(curves):
        return gap
    return f"{gap} Each is a single run, so how much of that is chance the figure cannot say."
