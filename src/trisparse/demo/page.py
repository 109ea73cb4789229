"""The demo's report: its CSV files as figures, each with what it means."""

from pathlib import Path
from types import ModuleType

from trisparse.bench.table import environment
from trisparse.report import gates, latency, loss, needle, position, selection, speedup
from trisparse.report.measurement import BASELINE
from trisparse.report.page import Section, write_report
from trisparse.report.rows import Rows, read_rows

LEAD = (
    "Two small language models were trained on this machine on the source code of Python's standard library. "
    "They read the same text in the same order and differ in one thing: in one, attention reads everything "
    "before a token; in the other it is Native Sparse Attention (NSA), which reads a summary of each stretch "
    "of the past, a few selected blocks of it, and the last tokens. Everything below was measured here, in "
    "this run."
)

# figure file, CSV file, title
_FIGURES: tuple[tuple[ModuleType, str, str], ...] = (
    (loss, "loss.csv", "Learning: loss against tokens read"),
    (position, "position.csv", "Does a longer context help?"),
    (needle, "needle.csv", "Needle in a haystack"),
    (latency, "attention.csv", "Time of one attention call"),
    (speedup, "attention.csv", "Speed-up over full attention"),
    (selection, "selection.csv", "Which blocks the queries selected"),
    (gates, "gates.csv", "How the gates share the work"),
)


def final_losses(rows: Rows) -> dict[str, float]:
    """The last held-out bits per byte of each attention."""
    return {row["attention"]: float(row["bits_per_byte"]) for row in rows if row["split"] == "heldout"}


def verdict(rows: Rows) -> str:
    """One honest sentence on the comparison of the two models."""
    final = final_losses(rows)
    percent = 100 * (final["nsa"] / final["full"] - 1)
    if percent <= 0:
        distance = f"NSA lies {-percent:.1f} % below"
    else:
        reached = "within" if percent <= 2 else "not within"
        distance = f"NSA lies {percent:.1f} % above, {reached} the 2 % aimed at"
    return (
        f"After equal tokens the held-out loss is {final['nsa']:.3f} bits per byte with NSA and "
        f"{final['full']:.3f} with full attention: {distance}. "
        "A model that only knows how frequent each byte is needs "
        f"{float(rows[0]['unigram_bits_per_byte']):.3f}."
    )


def summary(output: Path) -> Rows:
    """The short table at the top of the report and at the end of the demo."""
    losses, speeds = read_rows(output / "loss.csv"), read_rows(output / "attention.csv")
    needles = read_rows(output / "needle.csv")
    longest = max(int(row["tokens"]) for row in speeds)
    # by whatever backend was the best here
    times = {
        "full" if row["backend"] == BASELINE else "nsa": (
            f"{float(row['median_ms']):.1f}" if row["gate"] == "pass" else "failed"
        )
        for row in speeds
        if row["direction"] == "forward" and int(row["tokens"]) == longest
    }
    table = []
    for name in ("nsa", "full"):
        scores = [float(row["score"]) for row in needles if row["attention"] == name]
        table.append(
            {
                "attention": {"nsa": "Native Sparse Attention", "full": "full attention"}[name],
                "held-out bits per byte": f"{final_losses(losses)[name]:.3f}",
                "needles found": f"{100 * sum(scores) / len(scores):.0f} %",
                f"forward at {longest} tokens, ms": times[name],
            }
        )
    return table


def write_page(output: Path) -> Path:
    """Write report.html from the CSV files and sample.txt in `output`; returns its path."""
    sections = []
    for module, file, title in _FIGURES:
        rows = read_rows(output / file)
        text = module.explain(rows)
        if module is loss:
            text = verdict(rows) + "\n\n" + text
        sections.append(Section(title=title, figure=module.draw(rows), text=text))
    sample = (output / "sample.txt").read_text(encoding="utf-8")
    about = "What the NSA model writes after the prompt on the first line, token by token through its cache."
    sections.append(Section(title="A sample", text=about, code=sample))
    path = output / "report.html"
    write_report(
        path, "Native Sparse Attention, measured here", LEAD, sections, summary(output), environment()
    )
    return path
