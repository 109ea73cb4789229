"""What a reader calls each backend, attention and branch, and the colour that is its own in every figure."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Identity:
    """How one thing looks in every figure: colours differ in lightness too, markers repeat the difference."""

    name: str
    colour: str
    marker: str = "o"


# the colours of Okabe and Ito, which stay apart for colour-blind readers
BLACK, BLUE, GREEN, ORANGE = "#3A3A3A", "#0072B2", "#009E73", "#E69F00"
PINK, RED, SKY = "#CC79A7", "#D55E00", "#56B4E9"

BACKENDS = {
    "sdpa": Identity(name="full attention (SDPA)", colour=BLACK, marker="s"),
    "dense": Identity(name="full attention (our kernels)", colour=RED, marker="X"),
    "cpu": Identity(name="NSA (cpu)", colour=BLUE, marker="o"),
    "triton": Identity(name="NSA (triton)", colour=GREEN, marker="D"),
    "torch": Identity(name="NSA (torch)", colour=ORANGE, marker="^"),
    "reference": Identity(name="NSA (reference)", colour=PINK, marker="v"),
}
ATTENTIONS = {
    "nsa": Identity(name="NSA", colour=BLUE, marker="o"),
    "full": Identity(name="full attention", colour=BLACK, marker="s"),
    "gated_full": Identity(name="gated full attention", colour=RED, marker="^"),
}
BRANCHES = {
    "compressed": Identity(name="compressed", colour=ORANGE),
    "selected": Identity(name="selected", colour=BLUE),
    "window": Identity(name="window", colour=GREEN),
}

# for a backend or an attention that has no identity of its own yet
SPARE = [(SKY, "P"), (RED, "X"), (GREEN, "<"), (PINK, ">")]


def rank(known: Mapping[str, Identity], name: str) -> int:
    """The place of `name` in every legend; unknown names come last."""
    return list(known).index(name) if name in known else len(known)


def identity(known: Mapping[str, Identity], name: str) -> Identity:
    """The identity of `name`; an unknown one keeps its spelling and gets a spare colour, always the same."""
    if name in known:
        return known[name]
    colour, marker = SPARE[sum(name.encode()) % len(SPARE)]
    return Identity(name=name, colour=colour, marker=marker)
