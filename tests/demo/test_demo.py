"""The demo, in small: every stage runs, and a second call goes on where the first one was stopped."""

from dataclasses import replace
from pathlib import Path

import pytest

from trisparse.demo import measure
from trisparse.demo.page import summary, verdict
from trisparse.demo.plan import DemoPlan
from trisparse.demo.run import run_demo
from trisparse.report.rows import read_rows
from trisparse.train import callbacks
from trisparse.train.interrupt import TrainingInterrupted


def small(output: Path) -> DemoPlan:
    return DemoPlan(
        output=output,
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


@pytest.mark.parametrize(("nsa", "wanted"), [("2.02", "within the 2 %"), ("2.10", "not within the 2 %")])
def test_the_verdict_says_when_nsa_misses_its_aim(nsa: str, wanted: str) -> None:
    """Guards against a report that calls every result a success."""
    rows = [
        {"attention": name, "split": "heldout", "bits_per_byte": value, "unigram_bits_per_byte": "4.5"}
        for name, value in (("nsa", nsa), ("full", "2.00"))
    ]
    assert wanted in verdict(rows)
