"""The demo, in small: every stage runs, and a second call goes on where the first one was stopped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trisparse.demo import fit, measure
from trisparse.demo.page import summary, verdict
from trisparse.demo.plan import DemoPlan
from trisparse.demo.run import run_demo
from trisparse.report.rows import read_rows
from trisparse.train import callbacks
from trisparse.train.interrupt import TrainingInterrupted
from trisparse.train.recipe import Recipe


def small(output: Path) -> DemoPlan:
    return DemoPlan(
        output=output,
        minutes=None,
        steps=2,
        batch_size=1,
        context_length=256,
        bench_lengths=(64,),
        bench_backward_lengths=(64,),
        needle_lengths=(128,),
        needle_depths=(50.0,),
        needle_samples=1,
        position_windows=2,
    )


def test_an_interrupted_demo_goes_on_and_ends_with_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a Ctrl-C that costs the training already done, and a report without all its parts."""
    said: list[str] = []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "write_sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_demo(small(tmp_path), said.append)
    said.clear()
    page = run_demo(small(tmp_path), said.append).read_text(encoding="utf-8")
    assert sum("already trained" in line for line in said) == 2
    assert not any("measuring" in line for line in said)
    for word in ("Learning", "Needle", "Speed-up", "gates", "Which blocks", "A sample"):
        assert word in page
    times = {row["attention"]: row["forward at 64 tokens, ms"] for row in summary(tmp_path)}
    measured = [row for row in read_rows(tmp_path / "attention.csv") if row["direction"] == "forward"]
    assert list(times.values()) == [f"{float(row['median_ms']):.1f}" for row in reversed(measured)]
    with pytest.raises(ValueError, match="^output: .* other sizes"):
        run_demo(replace(small(tmp_path), steps=3), said.append)
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_demo_stopped_in_its_first_checkpoint_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a checkpoint without a manifest, which made the folder one that "holds a run"."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "complete_checkpoint", interrupted)
        with pytest.raises(TrainingInterrupted):
            run_demo(small(tmp_path), lambda _: None)
    assert list(tmp_path.glob("*/checkpoint-*"))
    monkeypatch.setattr("trisparse.demo.run._TABLES", {"loss.csv": interrupted})
    with pytest.raises(KeyboardInterrupt):
        run_demo(small(tmp_path), lambda _: None)
    assert len(list(tmp_path.glob("*/model"))) == 2


@pytest.mark.parametrize(
    ("minutes", "steps"), [(None, 360), (10.0, 100), (30.0, 300), (60.0, 360), (1.0, 20)], ids=str
)
def test_steps_are_those_that_fit_into_half_of_the_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float | None, steps: int
) -> None:
    """Guards ten minutes on a machine that is slower than ours; a step of both models takes 3 s here."""
    seconds = {"nsa": 2.0, "full": 1.0}
    monkeypatch.setattr(fit, "_seconds_per_step", lambda _, attention: seconds[attention])
    assert fit.fitted_steps(DemoPlan(output=tmp_path, minutes=minutes)) == steps


def test_the_trial_takes_its_time_from_steps_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a build of kernels, or the making of a corpus, that counts as a step."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clock = iter([1000.0, 1007.0, 1009.5, 1011.0])
    monkeypatch.setattr(fit.time, "monotonic", lambda: next(clock))

    def steps(recipe: Recipe, on_progress: Callable[..., None]) -> None:
        assert Path(recipe.output).parent == tmp_path
        for _ in range(recipe.steps):
            on_progress(None)

    monkeypatch.setattr(fit, "train", steps)
    assert fit._seconds_per_step(small(tmp_path), "nsa") == 2.5
    assert list(tmp_path.iterdir()) == []


def test_a_trial_run_is_a_run(tmp_path: Path) -> None:
    """Guards against a recipe that training refuses."""
    assert 0 < fit._seconds_per_step(small(tmp_path), "full") < 60


@pytest.mark.parametrize(
    ("minutes", "wanted"), [(None, [1, 2, 4, 8]), (10.0, [1, 2, 4]), (100.0, [1, 2, 4, 8])], ids=str
)
def test_a_benchmark_stops_before_the_length_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, minutes: float | None, wanted: list[int]
) -> None:
    """Guards ten minutes: 120 s are a share, 2 + 8 are over, and after 30 s more 120 would come."""
    now = 0.0
    monkeypatch.setattr(fit.time, "monotonic", lambda: now)
    found = []
    for length, seconds in zip(fit.lengths_in_time([1, 2, 4, 8], minutes), (2, 8, 30, 120), strict=False):
        found.append(length)
        now += seconds
    assert found == wanted


def test_how_much_fits_in_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a demo that goes on with other steps, since the machine is busier now."""
    plan = replace(small(tmp_path), minutes=3.0, steps=50)
    monkeypatch.setattr("trisparse.demo.run._TABLES", {})
    monkeypatch.setattr("trisparse.demo.run._train", lambda plan, *_: trained.append(plan.steps))
    monkeypatch.setattr("trisparse.demo.run.write_page", lambda folder: folder)
    monkeypatch.setattr(measure, "write_sample", lambda *_: None)
    trained: list[int] = []
    for answer in (7, 30):
        monkeypatch.setattr("trisparse.demo.run.fitted_steps", lambda _, answer=answer: answer)
        run_demo(plan, lambda _: None)
    assert trained == [7] * 4
    for text in ("7", "{}", '{"steps": "many"}', "nothing"):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ValueError, match="^output: .* other sizes"):
            run_demo(plan, lambda _: None)


@pytest.mark.parametrize(("nsa", "wanted"), [("2.02", "within the 2 %"), ("2.10", "not within the 2 %")])
def test_the_verdict_says_when_nsa_misses_its_aim(nsa: str, wanted: str) -> None:
    """Guards against a report that calls every result a success."""
    rows = [
        {"attention": name, "split": "heldout", "bits_per_byte": value, "unigram_bits_per_byte": "4.5"}
        for name, value in (("nsa", nsa), ("full", "2.00"))
    ]
    assert wanted in verdict(rows)
