"""How long a run takes, from a short one: so that two runs of equal steps end in the time there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from plan import EVALUATIONS, Plan

from trisparse.train.log import TIMING, read_log
from trisparse.train.trainer import train

# the first ones compile
_SKIPPED = 2
# steps may become slower, and what comes after them has to end, too
_MARGIN = 0.92


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one step, and of all that is no step: text, model, the last evaluation, checkpoint."""

    step: float
    rest: float


def measure(plan: Plan, attention: str, folder: Path) -> Pace:
    """The pace of a run of `plan.warm_up` steps, evaluated once."""
    recipe = plan.recipe(attention, plan.warm_up, folder, evaluations=1)
    began = perf_counter()
    train(recipe)
    whole = perf_counter() - began
    seconds = [line["seconds"] for line in read_log(folder / TIMING)]
    return Pace(step=median(seconds[_SKIPPED:]), rest=whole - sum(seconds))


def steps_within(seconds: float, paces: Sequence[Pace], plan: Plan) -> int:
    """The steps of each run, if all of them are to end in so many seconds; may be 0 or below."""
    # a forward pass takes less than a step
    evaluations = EVALUATIONS * plan.evaluate_windows / plan.batch_size
    left = seconds * _MARGIN - sum(pace.rest for pace in paces)
    return int(left / sum(pace.step for pace in paces) - evaluations)
