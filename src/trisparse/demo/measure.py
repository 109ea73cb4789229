"""What the demo measures on the trained models: one CSV file a function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trisparse import backends
from trisparse.bench import attention as bench
from trisparse.config import SparseConfig
from trisparse.data.corpus import standard_library_corpus
from trisparse.data.packing import PackedWindows, spread
from trisparse.demo.fit import lengths_in_time
from trisparse.demo.plan import ATTENTIONS, DemoPlan
from trisparse.eval.needle import needle_rows
from trisparse.eval.position import bits_by_position
from trisparse.eval.probe import gate_rows, selection_rows
from trisparse.eval.unigram import unigram_bits
from trisparse.files import write_whole
from trisparse.models.load import load_model
from trisparse.report.rows import Rows
from trisparse.train.log import loss_rows

Say = Callable[[str], None]

SAMPLE_PROMPT = 'def read_lines(path):\n    """'


def load(plan: DemoPlan, attention: str) -> Any:
    """The trained model of one run."""
    return load_model(plan.output / attention)[0]


def losses(plan: DemoPlan, _: Say) -> Rows:
    """The logs of both runs, and the loss of a model that only knows how frequent each byte is."""
    corpus = standard_library_corpus()
    unigram = f"{unigram_bits(corpus.stream('training'), corpus.stream('heldout')):.4f}"
    rows = [row for name in ATTENTIONS for row in loss_rows(plan.output / name, name, name)]
    return [row | {"unigram_bits_per_byte": unigram} for row in rows]


def _heldout(plan: DemoPlan) -> list[Any]:
    """Windows spread evenly over the held-out text."""
    windows = PackedWindows(standard_library_corpus().stream("heldout"), plan.context_length, documents=False)
    chosen = spread(windows, plan.position_windows)
    return [chosen[index] for index in range(len(chosen))]


def positions(plan: DemoPlan, say: Say) -> Rows:
    """Held-out loss by how much context there was."""
    windows: Any = _heldout(plan)
    rows: Rows = []
    for name in ATTENTIONS:
        say(f"held-out loss by position: {name}")
        rows += bits_by_position(load(plan, name), windows, attention=name)
    return rows


def needles(plan: DemoPlan, say: Say) -> Rows:
    """How often the hidden number is preferred to nine others."""
    haystack = standard_library_corpus().stream("heldout")
    rows: Rows = []
    for name in ATTENTIONS:
        say(f"needle in a haystack: {name}")
        rows += needle_rows(
            load(plan, name),
            haystack,
            attention=name,
            lengths=plan.needle_lengths,
            depths=plan.needle_depths,
            samples=plan.needle_samples,
            seed=0,
            share_prompt=True,
        )
    return rows


def _some_text(plan: DemoPlan) -> torch.Tensor:
    return torch.stack([window["input_ids"] for window in _heldout(plan)[:4]])


def selections(plan: DemoPlan, _: Say) -> Rows:
    """Which blocks the queries of the NSA model select on held-out text."""
    return selection_rows(load(plan, "nsa"), _some_text(plan))


def gates(plan: DemoPlan, _: Say) -> Rows:
    """How the NSA model's gates weigh the branches on held-out text."""
    return gate_rows(load(plan, "nsa"), _some_text(plan))


def attention(plan: DemoPlan, say: Say) -> Rows:
    """The attention benchmark with the paper's block sizes, shorter contexts backward as well.

    In bfloat16 where the CPU kernels have instructions for it, in float32 elsewhere: each side's best.
    """

    def tell(row: dict[str, str]) -> None:
        time = f"{float(row['median_ms']):.1f} ms" if row["gate"] == "pass" else "failed its check"
        say(f"{row['backend']:>5} {row['direction']:<16} {int(row['tokens']):>6} tokens: {time}")

    rows: Rows = []
    dtype = backends.fast_cpu_dtype()
    runs = (("forward", plan.bench_lengths), ("backward", plan.bench_backward_lengths))
    for direction, lengths in runs:
        rows += bench.run(
            lengths_in_time(lengths, plan.minutes),
            dtype=dtype,
            backends=("auto",),
            directions=(direction,),
            samples=5,
            seconds_per_case=6.0,
            config=SparseConfig(),
            on_row=tell,
        )
    return rows


def write_sample(plan: DemoPlan, path: Path) -> None:
    """Text that the NSA model writes through its cache, after `SAMPLE_PROMPT`."""
    model, tokenizer = load_model(plan.output / "nsa")
    torch.manual_seed(0)
    prompt = tokenizer(SAMPLE_PROMPT, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=300, do_sample=True, temperature=0.7, top_k=40)
    write_whole(path, tokenizer.decode(ids[0]).encode("utf-8"))
