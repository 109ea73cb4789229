"""The rows of both runs, from their logs, and the figure of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from origin import ORIGIN
from plan import Plan
from say import say

from trisparse.eval.unigram import unigram_bits
from trisparse.report.rows import Rows
from trisparse.train.log import LOG, TIMING, read_log
from trisparse.train.model import recipe_model
from trisparse.train.recipe import Recipe
from trisparse.train.text import recipe_corpus


def rows_of(plan: Plan, recipe: Recipe, facts: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A row for each line of the run's log; a step has its time, and that of an evaluation before it."""
    folder, attention = Path(recipe.output), recipe.attention_name
    seconds = {line["step"]: line["seconds"] for line in read_log(folder / TIMING)}
    always = {
        "unigram_bits_per_byte": f"{_unigram(recipe):.4f}",
        "parameters": str(recipe_model(recipe).num_parameters()),
        "preset": plan.preset,
        "context_length": str(plan.context_length),
        "batch_size": str(plan.batch_size),
        "precision": plan.precision,
        **{name: facts[name] for name in ORIGIN},
    }
    for line in read_log(folder / LOG):
        taken = seconds.get(line["step"]) if line["split"] == "train" else None
        yield {
            "run": attention,
            "attention": attention,
            **{name: str(line[name]) for name in ("split", "step", "tokens")},
            "bits_per_byte": f"{line['bits_per_byte']:.5f}",
            "seconds": "" if taken is None else f"{taken:.4f}",
            "tokens_per_second": "" if taken is None else f"{plan.tokens_per_step / taken:.0f}",
            **always,
        }


def _unigram(recipe: Recipe) -> float:
    corpus = recipe_corpus(recipe)
    return unigram_bits(corpus.stream("training"), corpus.stream("heldout"))


def speeds(rows: Rows) -> dict[str, float]:
    """Tokens of a second in the median step of each attention."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["tokens_per_second"]:
            found.setdefault(row["attention"], []).append(float(row["tokens_per_second"]))
    return {attention: median(numbers) for attention, numbers in found.items()}


def draw(rows: Rows, path: Path) -> None:
    """Loss against tokens, as in the report."""
    try:
        from trisparse.report import loss
        from trisparse.report.save import save_figure

        save_figure(loss.draw(rows), path)
    except ImportError as error:
        say(f"train_gpu: no figure, {error}; the rows are all it needs")
        return
    say(loss.explain(rows))
