"""Figure: loss against training tokens, one colour per attention, training light and held-out strong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.palette import ATTENTIONS, Identity, identity
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
    "on. The right panel enlarges the second half of the left one."
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
    """The whole run on the left, its second half enlarged on the right with the last values written out."""
    curves = _read_curves(rows)
    figure, (whole, half) = look.new_figure(2, 3.1, share_y=False)
    for panel in (whole, half):
        for place, curve in enumerate(curves):
            # the first curve on top, the training curves below all
            _draw_curve(panel, curve, layer=3 - place / 100)
    _name_training(whole, curves)
    _draw_unigram(whole, rows)
    _enlarge_second_half(half, curves)
    whole.set_xlim(left=0)
    look.label_axes(whole, x="Training tokens (millions)", y="Loss (bits per byte)", title="Whole run")
    look.label_axes(half, x="Training tokens (millions)", title="Second half, enlarged")
    look.legend(figure, [whole])
    look.label_ends(half, [_end_label(curve) for curve in _judged(curves)])
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
    known = list(ATTENTIONS)
    rank = known.index(attention) if attention in known else len(known)
    return SPLITS.index(split), rank, attention, run


def _read_curve(rows: Rows, attention: str, run: str, split: str) -> Curve:
    mine = [row for row in rows if (row["attention"], row["run"], row["split"]) == (attention, run, split)]
    points = sorted((integer(row, "tokens"), number(row, "bits_per_byte")) for row in mine)
    known = identity(ATTENTIONS, attention)
    runs = {row["run"] for row in rows if row["attention"] == attention}
    return Curve(
        name=known.name if len(runs) == 1 else f"{known.name}, {run}",
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
        style = {"marker": marker, "markersize": 3.5, "linewidth": 1.6}
        axes.plot(tokens, curve.bits, color=colour, zorder=layer, label=curve.name, **style)


def _name_training(axes: "Axes", curves: Sequence[Curve]) -> None:
    # where nothing was held out the light lines carry the names themselves
    light = [curve for curve in curves if curve.split == "train"]
    for curve in light if len(light) == len(curves) else light[:1]:
        colour = curve.identity.colour if len(light) == len(curves) else look.MUTED
        name = f"{curve.name}, training" if len(light) == len(curves) else "training (light)"
        axes.plot([], [], color=colour, linewidth=0.8, alpha=0.7, label=name)


def _enlarge_second_half(axes: "Axes", curves: Sequence[Curve]) -> None:
    last = max(curve.tokens[-1] for curve in curves)
    points = [
        (tokens, bits)
        for curve in curves
        for tokens, bits in zip(curve.tokens, curve.bits, strict=True)
        if 2 * tokens >= last
    ]
    low, high = min(bits for _, bits in points), max(bits for _, bits in points)
    room = 0.08 * (high - low) or 0.1
    axes.set_xlim(last / 2e6, last * 1.02 / 1e6)
    axes.set_ylim(low - room, high + room)


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
