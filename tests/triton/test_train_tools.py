"""The two training runs of a GPU, rehearsed on a CPU."""

import importlib
from pathlib import Path

import pytest
from test_tools import ROOT, run, table

from trisparse.report import loss
from trisparse.report.rows import read_rows

# the time is over after the second of three steps of the second run
CUT = """
import sys
from pathlib import Path
sys.path[:0] = ["tools/lent_gpu", "tools/train_gpu"]
from deadline import Deadline
from origin import facts
from plan import Plan
from runs import train_both

class Short(Deadline):
    runs = 0

    def __call__(self, progress):
        self.runs += progress.step == 1
        if self.runs == 2 and progress.step == 2:
            self._ends = 0.0
        super().__call__(progress)

folder = Path(sys.argv[1])
assert train_both(Plan.rehearsal("stdlib"), folder, Short(600.0), facts("cpu"), folder / "training.csv")
"""


def test_training_on_a_gpu_rehearses(tmp_path: Path) -> None:
    """Guards against minutes of a GPU lost to a misspelling: both runs, equal tokens, rows and figure."""
    said = run("tools/train_gpu", "--rehearse", "--output", str(tmp_path))
    rows = table(tmp_path / "training.csv")
    steps = [(row["attention"], row["split"], row["tokens"]) for row in rows if row["split"] == "train"]
    assert steps == [(name, "train", str(128 * step)) for name in ("nsa", "full") for step in (1, 2, 3)]
    assert [row["step"] for row in rows if row["split"] == "heldout"][-1] == "3"
    assert all(float(row["tokens_per_second"]) > 0 for row in rows if row["split"] == "train")
    sizes = {row["attention"]: int(row["parameters"]) for row in rows}
    assert sizes["nsa"] > sizes["full"] > 0
    assert (tmp_path / "training.png").stat().st_size > 0
    assert len(loss.draw(read_rows(tmp_path / "training.csv")).axes) == 2
    assert "tokens/s" in said


def test_a_run_is_stopped_at_the_end_of_the_time(tmp_path: Path) -> None:
    """Guards against a run that takes longer than was thought, and all its rows with it."""
    said = run("-c", CUT, str(tmp_path))
    assert "full: the time is over" in said
    rows = [row for row in table(tmp_path / "training.csv") if row["split"] == "train"]
    assert [row["attention"] for row in rows] == ["nsa"] * 3 + ["full"] * 2
    assert (tmp_path / "training.png").exists()


def test_steps_are_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against two runs that take longer than there is time, or much less."""
    for name in ("lent_gpu", "train_gpu"):
        monkeypatch.syspath_prepend(ROOT / "tools" / name)
    pace, plan = importlib.import_module("pace"), importlib.import_module("plan").Plan()
    paces = [pace.Pace(step=0.3, rest=10.0), pace.Pace(step=0.2, rest=5.0)]
    steps = pace.steps_within(500.0, paces, plan)
    windows = plan.evaluate_windows / plan.batch_size
    assert 450 < sum(each.rest + each.step * (steps + 8 * windows) for each in paces) <= 460
    assert pace.steps_within(20.0, paces, plan) < plan.least
