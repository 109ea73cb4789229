"""The demo's stages in order. Each leaves a file, and a second call goes on where the first one stopped."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from trisparse.demo import measure
from trisparse.demo.page import write_page
from trisparse.demo.plan import ATTENTIONS, DemoPlan
from trisparse.files import write_whole
from trisparse.report.rows import Rows, write_rows
from trisparse.train.checkpoint import latest_checkpoint, remove_incomplete
from trisparse.train.folder import claim
from trisparse.train.progress import show_progress
from trisparse.train.trainer import train

Say = Callable[[str], None]

_TABLES: dict[str, Callable[[DemoPlan, Say], Rows]] = {
    "loss.csv": measure.losses,
    "position.csv": measure.positions,
    "needle.csv": measure.needles,
    "selection.csv": measure.selections,
    "gates.csv": measure.gates,
    "attention.csv": measure.attention,
}


def _train(plan: DemoPlan, attention: str, say: Say) -> None:
    """One training run: skipped if it has ended, resumed if it has not."""
    folder = plan.output / attention
    if (folder / "model").is_dir():
        say(f"{attention}: already trained in {folder}")
        return
    resume = latest_checkpoint(folder) is not None
    with show_progress() as on_progress:
        train(plan.recipe(attention), resume=resume, on_progress=on_progress)


def _discard_unresumable(folder: Path) -> None:
    """A run stopped before its first checkpoint was whole holds nothing to go on from: begin it anew."""
    if not folder.is_dir() or latest_checkpoint(folder) is not None or (folder / "model").is_dir():
        return
    with ExitStack() as held:
        claim(folder, held)
        for name in ("log.jsonl", "timing.jsonl", "recipe.yaml"):
            (folder / name).unlink(missing_ok=True)
        remove_incomplete(folder)


def _claim(plan: DemoPlan) -> None:
    """Make the folder this plan's: results of another one must not be taken for its own."""
    plan.output.mkdir(parents=True, exist_ok=True)
    sizes = json.dumps({name: str(value) for name, value in vars(plan).items() if name != "output"}, indent=1)
    path = plan.output / "plan.json"
    if path.is_file() and path.read_text(encoding="utf-8") != sizes:
        raise ValueError(
            f"output: {plan.output} holds a demo of other sizes; give another folder or remove it"
        )
    write_whole(path, sizes.encode("utf-8"))


def run_demo(plan: DemoPlan, say: Say) -> Path:
    """Train, measure and write the report; returns its path.

    Raises:
        ValueError: the folder holds a demo of other sizes.
        TrainingInterrupted: Ctrl-C during training; the next call resumes.
        KeyboardInterrupt: Ctrl-C elsewhere; the next call repeats that stage only.
    """
    began = time.monotonic()
    _claim(plan)

    def stage(text: str) -> None:
        say(f"[{time.monotonic() - began:4.0f} s] {text}")

    for attention in ATTENTIONS:
        stage(f"training with {attention} attention, {plan.steps} steps")
        _discard_unresumable(plan.output / attention)
        _train(plan, attention, say)
    for name, function in _TABLES.items():
        if not (plan.output / name).is_file():
            stage(f"measuring {name}")
            write_rows(plan.output / name, function(plan, say))
    if not (plan.output / "sample.txt").is_file():
        stage("generating a sample")
        measure.write_sample(plan, plan.output / "sample.txt")
    stage("writing the report")
    path = write_page(plan.output)
    stage("done")
    return path
