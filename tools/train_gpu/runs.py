"""The two runs, one after the other: how many steps each has, then their rows and figure."""

import gc
from collections.abc import Mapping
from pathlib import Path

from curves import draw, rows_of, speeds
from deadline import Deadline
from pace import measure, steps_within
from plan import ATTENTIONS, Plan
from say import say

from trisparse.report.rows import Rows, write_rows
from trisparse.train.interrupt import TrainingInterrupted
from trisparse.train.trainer import train


def train_both(plan: Plan, folder: Path, deadline: Deadline, known: Mapping[str, str], table: Path) -> bool:
    """Both runs, and their rows as soon as there are any; whether there was time for them."""
    paces = []
    for attention in ATTENTIONS:
        pace = measure(plan, attention, folder / f"{attention}-warm-up")
        say(f"{attention}: {pace.step:.3f} s a step, {pace.rest:.1f} s besides")
        paces.append(pace)
        _release()
    steps = min(plan.most, steps_within(deadline.left, paces, plan))
    if steps < plan.least:
        say(f"train_gpu: expected time for {plan.least} steps of each, got {steps}; give more --minutes")
        return False
    rows: Rows = []
    for attention in ATTENTIONS:
        say(f"{attention}: {steps} steps, {steps * plan.tokens_per_step / 1e6:.1f} million tokens")
        recipe = plan.recipe(attention, steps, folder / attention)
        try:
            train(recipe, on_progress=deadline)
        except TrainingInterrupted as error:
            say(f"{attention}: the time is over; {error}")
        _release()
        rows += rows_of(plan, recipe, known)
        write_rows(table, rows)
    draw(rows, table.with_suffix(".png"))
    for attention, speed in speeds(rows).items():
        say(f"{attention}: {speed:,.0f} tokens/s")
    return True


def _release() -> None:
    """A Trainer refers to itself, and holds a model and its optimizer's state until that is noticed."""
    gc.collect()
