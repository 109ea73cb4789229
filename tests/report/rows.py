"""Made-up rows of every CSV file that a figure reads. Their numbers are plausible, and measured by nobody."""

import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Rows = list[dict[str, str]]
SETTING = {
    "heads": "16",
    "groups": "4",
    "head_dim": "64",
    "value_dim": "64",
    "dtype": "bfloat16",
    "batch": "1",
    "device": "made-up CPU",
    "threads": "2",
    "cpu_flags": "avx512",
    "instructions": "",
    "torch": "2.11.0",
    "trisparse": "0.1.0",
    "commit": "0123abc",
    "date": "2026-11-23",
}
LENGTHS = (1024, 2048, 4096, 8192, 16384)


def milliseconds(backend: str, tokens: int) -> float:
    """Full attention is quadratic, NSA nearly linear; at 16384 tokens cpu takes 320 ms, sdpa 1920 ms."""
    kilo = tokens / 1024
    return {
        "sdpa": 7.5 * kilo**2,
        "cpu": 20 * kilo,
        "torch": 45 * kilo**1.05,
        "triton": 14 * kilo,
        "reference": 60 * kilo**2,
    }[backend]


def attention_row(
    backend: str, direction: str, tokens: int, *, gate: str = "pass", **other: str
) -> dict[str, str]:
    median = milliseconds(backend, tokens) * (1 if direction == "forward" else 3.4)
    times = {"median_ms": median, "minimum_ms": 0.93 * median, "maximum_ms": 1.12 * median}
    return {
        "case": f"{direction}-{tokens}",
        "backend": backend,
        "direction": direction,
        "tokens": str(tokens),
        **SETTING,
        **{name: f"{time:.3f}" if gate == "pass" else "" for name, time in times.items()},
        "samples": "9",
        "gate": gate,
        "worst_ratio": "0.31" if gate == "pass" else "4.20",
        **other,
    }


def attention_rows(backends: tuple[str, ...] = ("sdpa", "torch", "cpu")) -> Rows:
    return [
        attention_row(backend, direction, tokens)
        for backend in backends
        for direction in ("forward", "forward+backward")
        for tokens in LENGTHS
        # the reference is quadratic in memory
        if backend != "reference" or tokens <= 4096
    ]


def decode_row(backend: str, tokens: int, batch: int = 1, **other: str) -> dict[str, str]:
    """Full attention reads all; NSA, at 16384 tokens, takes 0.4 ms a row and sdpa 8 ms."""
    kilo = batch * tokens / 1024
    median = {"sdpa": 0.5 * kilo, "dense": 0.1 * kilo, "cpu": 0.2 * batch + 0.0125 * kilo}[backend]
    times = {"median_ms": median, "minimum_ms": 0.93 * median, "maximum_ms": 1.12 * median}
    failed = other.get("gate") == "fail"
    return {
        "case": f"decode-{batch}-{tokens}",
        "backend": backend,
        "direction": "decode",
        "tokens": str(tokens),
        **SETTING,
        "batch": str(batch),
        **{name: "" if failed else f"{time:.4f}" for name, time in times.items()},
        "samples": "9",
        "gate": "pass",
        "worst_ratio": "0.31",
        "form": "folded" if backend == "sdpa" else "",
        "new_tokens": "1",
        "caches": "4",
        "tokens_read": str(tokens),
        "megabytes_read": "33.554",
        "gigabytes_per_second": "8.00",
        "copy_gigabytes_per_second": "20.00",
        "read_gigabytes_per_second": "21.00",
        **other,
    }


def decode_rows(batches: tuple[int, ...] = (1, 4, 16)) -> Rows:
    return [
        decode_row(backend, tokens, batch)
        for batch in batches
        for backend in ("sdpa", "dense", "cpu")
        for tokens in LENGTHS
    ]


def loss_rows(attentions: tuple[str, ...] = ("nsa", "full", "gated_full")) -> Rows:
    noise = random.Random(0)
    floors = {"nsa": 2.11, "full": 2.16, "gated_full": 2.12}
    rows = []
    for attention in attentions:
        for step in range(0, 401, 4):
            bits = floors[attention] + 5.6 * math.exp(-step / 22) + 1.1 * math.exp(-step / 130)
            row = {
                "run": f"{attention}-0",
                "attention": attention,
                "step": str(step),
                "tokens": str(step * 32768),
            }
            train = f"{bits - 0.06 + noise.gauss(0, 0.05):.4f}"
            rows.append(row | {"split": "train", "bits_per_byte": train, "unigram_bits_per_byte": "4.63"})
            if step % 40 == 0:
                rows.append(
                    row
                    | {"split": "heldout", "bits_per_byte": f"{bits:.4f}", "unigram_bits_per_byte": "4.63"}
                )
    return rows


def position_rows() -> Rows:
    edges = [0, 256, 512, 1024, 2048, 4096, 8192, 16384]
    floors = {"nsa": 2.05, "full": 2.09, "gated_full": 2.06}
    return [
        {
            "attention": attention,
            "position_start": str(start),
            "position_end": str(end),
            "bits_per_byte": f"{floor + 1.1 * (end / 256) ** -0.6:.4f}",
            "bytes": str(12 * (end - start)),
        }
        for attention, floor in floors.items()
        for start, end in zip(edges, edges[1:], strict=False)
    ]


def needle_rows() -> Rows:
    rows = []
    for attention, slope in {"nsa": 0.05, "full": 0.16}.items():
        for place, length in enumerate(LENGTHS):
            for depth in range(0, 101, 10):
                misses = slope * place * (1.6 if 20 <= depth <= 70 else 0.5)
                score = round(max(0.0, 1 - misses) * 20) / 20
                rows.append(
                    {
                        "attention": attention,
                        "context_length": str(length),
                        "depth_percent": str(depth),
                        "score": f"{score:g}",
                        "samples": "20",
                    }
                )
    return rows


def selection_rows(layers: int = 6, blocks: int = 32, selected: int = 8) -> Rows:
    """Every query takes its first and its two nearest blocks; the layers spread the rest differently."""
    noise = random.Random(1)
    rows = []
    for layer in range(layers):
        for group in range(2):
            favourites = {noise.randrange(1, blocks) for _ in range(4)}
            for query in range(blocks):
                shares = _shares(query, layer, favourites, selected, noise)
                for key, share in shares.items():
                    rows.append(
                        {
                            "layer": str(layer),
                            "group": str(group),
                            "query_block": str(query),
                            "key_block": str(key),
                            "share": f"{share:.4f}",
                        }
                    )
    return rows


def _shares(
    query: int, layer: int, favourites: set[int], selected: int, noise: random.Random
) -> dict[int, float]:
    forced = {key for key in (0, query, query - 1) if key >= 0}
    others = [key for key in range(query + 1) if key not in forced]
    wishes = [
        noise.random() ** 2 * math.exp(-(query - key) / (4 + 5 * layer)) + (0.7 if key in favourites else 0)
        for key in others
    ]
    room = min(selected - 3, len(others))
    total = sum(wishes) or 1.0
    free = {key: min(1.0, room * wish / total) for key, wish in zip(others, wishes, strict=True)}
    return dict.fromkeys(forced, 1.0) | (dict.fromkeys(others, 1.0) if len(others) <= room else free)


def gate_rows(layers: int = 6, heads: int = 8) -> Rows:
    noise = random.Random(2)
    centres = {
        "compressed": lambda layer: 0.62 - 0.05 * layer,
        "selected": lambda layer: 0.30 + 0.08 * layer,
        "window": lambda layer: 0.82 - 0.04 * layer,
    }
    return [
        {
            "layer": str(layer),
            "head": str(head),
            "branch": branch,
            "mean": f"{min(0.99, max(0.01, centre(layer) + noise.gauss(0, 0.07))):.4f}",
        }
        for layer in range(layers)
        for head in range(heads)
        for branch, centre in centres.items()
    ]


def words(figure: "Figure") -> list["Text"]:
    """All that is written in a figure; a tick outside its axis exists but is not drawn."""
    from matplotlib.text import Text

    unseen = {
        id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _unseen(axis)
    }
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in texts if id(text) not in unseen]


def _unseen(axis: "Axis") -> list["Text"]:
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]


def written(figure: "Figure") -> str:
    """The words of a figure in one line."""
    return " | ".join(text.get_text() for text in words(figure))
