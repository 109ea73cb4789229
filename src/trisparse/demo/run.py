"""The demo's stages in order. Each leaves a file, and a second call goes on where the first one stopped."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from trisparse.demo import measure
from trisparse.demo.fit import fitted_steps
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


def _sizes(plan: DemoPlan) -> dict[str, str]:
    return {name: str(value) for name, value in vars(plan).items() if name != "output"}


def _claimed(plan: DemoPlan, say: Say) -> DemoPlan:
    """The plan that the folder is made for, with the steps that fit into its minutes.

    The folder then is this plan's: results of another one must not be taken for its own.
    """
    plan.output.mkdir(parents=True, exist_ok=True)
    path = plan.output / "plan.json"
    if path.is_file():
        return _known(plan, path.read_text(encoding="utf-8"))
    if plan.minutes is not None:
        say(f"how many training steps fit into {plan.minutes:g} minutes?")
    fitted = replace(plan, steps=fitted_steps(plan))
    write_whole(path, json.dumps(_sizes(fitted), indent=1).encode("utf-8"))
    return fitted


def _known(plan: DemoPlan, text: str) -> DemoPlan:
    """The plan as an earlier call began it: how many steps fit in is not asked again."""
    begun: DemoPlan | None = None
    # by hand, anything can have been written there
    with suppress(ValueError, TypeError, KeyError):
        sizes = json.loads(text)
        begun = plan if plan.minutes is None else replace(plan, steps=int(sizes["steps"]))
    if begun is None or sizes != _sizes(begun):
        raise ValueError(
            f"output: {plan.output} holds a demo of other sizes; give another folder or remove it"
        )
    return begun


def run_demo(plan: DemoPlan, say: Say) -> Path:
    """Train, measure and write the report; returns its path.

    Raises:
        ValueError: the folder holds a demo of other sizes.
        TrainingInterrupted: Ctrl-C during training; the next call resumes.
        KeyboardInterrupt: Ctrl-C elsewhere; the next call repeats that stage only.
    """
    began = time.monotonic()
    plan = _claimed(plan, say)

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
