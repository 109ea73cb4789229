"""Resume: a run that was stopped and continued equals one that was not, to the last bit."""

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from trisparse.train import callbacks
from trisparse.train.checkpoint import CheckpointError, latest_checkpoint
from trisparse.train.interrupt import TrainingInterrupted
from trisparse.train.log import LOG, TIMING, LineFile
from trisparse.train.progress import Progress
from trisparse.train.recipe import Recipe
from trisparse.train.trainer import train

from .conftest import tiny_fields

Make = Callable[..., Recipe]
Uninterrupted = Callable[..., Path]


@pytest.fixture(scope="module")
def uninterrupted(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The folder of a run without a stop, made once for each precision and accumulation."""

    @cache
    def run(precision: str, accumulate: int) -> Path:
        output = tmp_path_factory.mktemp("uninterrupted") / "run"
        fields = tiny_fields(text, output) | {"save_every": 100}
        train(Recipe(**fields, precision=precision, accumulate=accumulate))  # type: ignore[arg-type]
        return output

    return run


def stop_at(step: int, how: Callable[[], None]) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            how()

    return on_progress


def ask() -> None:
    signal.raise_signal(signal.SIGINT)


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_same_run(output: Path, wanted: Path) -> None:
    assert (output / LOG).read_bytes() == (wanted / LOG).read_bytes()
    for name in ("model/model.safetensors", "checkpoint-9/model.safetensors"):
        assert (output / name).read_bytes() == (wanted / name).read_bytes(), name
    for name in ("optimizer.pt", "scheduler.pt"):
        assert_same(*(torch.load(run / "checkpoint-9" / name) for run in (output, wanted)))
    for run in (output, wanted):
        assert latest_checkpoint(run) == run / "checkpoint-9"
    # NumPy's state is in it, which torch's loader takes only when told to
    states = [torch.load(run / "checkpoint-9/rng_state.pth", weights_only=False) for run in (output, wanted)]
    assert torch.equal(states[0]["cpu"], states[1]["cpu"])
    assert states[0]["python"] == states[1]["python"]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


# an epoch is 6 steps without accumulation and 2 with; 3, 5 and 7 are saved by the stop alone
@pytest.mark.parametrize("stops", [[3], [6], [5, 7]], ids=["inside an epoch", "at its end", "two resumes"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_run_is_the_same_run(
    tiny: Make, uninterrupted: Uninterrupted, precision: str, accumulate: int, stops: list[int]
) -> None:
    """Guards weights, optimizer, schedule, random state, order of the data and log, all bitwise."""
    recipe = tiny(precision=precision, accumulate=accumulate)
    for index, step in enumerate(stops):
        with pytest.raises(
            TrainingInterrupted, match=rf"^training: interrupted; step {step} is saved"
        ) as caught:
            train(recipe, resume=index > 0, on_progress=stop_at(step, ask))
        assert caught.value.step == step
    train(recipe, resume=True)
    assert_same_run(Path(recipe.output), uninterrupted(precision, accumulate))


def test_interrupt_in_the_middle_resumes_from_the_checkpoint_before(
    tiny: Make, uninterrupted: Uninterrupted
) -> None:
    """Guards a second Ctrl-C, or one outside our handler: the log, ahead of the checkpoint, goes back."""
    recipe = tiny()
    with pytest.raises(TrainingInterrupted, match="step 4 is saved"):
        train(recipe, on_progress=stop_at(5, interrupt))
    assert len((Path(recipe.output) / LOG).read_text().splitlines()) == 6
    train(recipe, resume=True)
    assert_same_run(Path(recipe.output), uninterrupted("float32", 1))


def test_half_written_checkpoint_is_passed_over(tiny: Make, uninterrupted: Uninterrupted) -> None:
    """Guards a run killed while it saved: there is no manifest yet, so the checkpoint before counts."""
    recipe = tiny()
    with pytest.raises(TrainingInterrupted):
        train(recipe, on_progress=stop_at(7, ask))
    half = Path(recipe.output) / "checkpoint-7"
    (half / "manifest.json").unlink()
    (half / "optimizer.pt").write_bytes(b"half")
    train(recipe, resume=True, on_progress=lambda _: None)
    assert not half.exists()
    assert_same_run(Path(recipe.output), uninterrupted("float32", 1))


def test_garbage_behind_the_checkpoint_is_no_obstacle(tiny: Make, uninterrupted: Uninterrupted) -> None:
    """Guards a run after a power cut, which leaves whole what was synced and anything behind it."""
    recipe = tiny()
    with pytest.raises(TrainingInterrupted, match="step 4 is saved"):
        train(recipe, on_progress=stop_at(5, interrupt))
    for name in (LOG, TIMING):
        with (Path(recipe.output) / name).open("ab") as file:
            file.write(b"\0\0\0\n{}\n")
    train(recipe, resume=True)
    assert_same_run(Path(recipe.output), uninterrupted("float32", 1))


def test_log_is_on_the_disk_before_its_checkpoint(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a power cut that leaves a whole checkpoint without the log that a resume asks for."""
    events: list[str] = []
    sync, seal = LineFile.sync, callbacks.complete_checkpoint

    def record(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            events.append(name)
            return function(*args)

        return recorded

    monkeypatch.setattr(LineFile, "sync", record("sync", sync))
    monkeypatch.setattr(callbacks, "complete_checkpoint", record("seal", seal))
    train(tiny(steps=4))
    assert events == ["sync", "sync", "seal"] * 2 + ["sync", "sync"]


def test_run_in_use_is_left_alone(tiny: Make) -> None:
    """Guards against a second resume, which took what the first one was writing for a killed run's rest."""
    recipe, refused = tiny(), list[str]()

    def start_another() -> None:
        with pytest.raises(ValueError, match="^output: expected a folder that no run is using") as caught:
            train(recipe, resume=True)
        refused.append(str(caught.value))

    train(recipe, on_progress=stop_at(5, start_another))
    assert len(refused) == 1
    assert latest_checkpoint(recipe.output) == Path(recipe.output) / "checkpoint-9"


def test_stop_before_any_checkpoint_says_so(tiny: Make) -> None:
    """Guards against a promise to resume from nothing, and a resume that would start over unasked."""
    recipe = tiny(save_every=100)
    with pytest.raises(TrainingInterrupted, match=r"no checkpoint was written yet; remove '.*run'") as caught:
        train(recipe, on_progress=stop_at(2, interrupt))
    assert caught.value.step is None
    with pytest.raises(CheckpointError, match=r"expected a complete checkpoint to resume from, found none"):
        train(recipe, resume=True)


def test_resume_of_a_finished_run_changes_nothing(tiny: Make, uninterrupted: Uninterrupted) -> None:
    """Guards a job that is restarted once too often."""
    recipe = tiny()
    first = train(recipe)
    second = train(recipe, resume=True)
    assert second == first
    assert_same_run(Path(recipe.output), uninterrupted("float32", 1))


def test_newest_checkpoints_are_kept(tiny: Make) -> None:
    """Guards the disk, and the newest checkpoint against the broom."""
    recipe = tiny(keep_checkpoints=3)
    train(recipe)
    names = sorted(path.name for path in Path(recipe.output).glob("checkpoint-*"))
    assert names == ["checkpoint-6", "checkpoint-8", "checkpoint-9"]


def test_interval_of_checkpoints_may_change_on_resume(tiny: Make) -> None:
    """Guards against the interval that the checkpoint remembers."""
    with pytest.raises(TrainingInterrupted):
        train(tiny(), on_progress=stop_at(3, ask))
    recipe = tiny(save_every=5, keep_checkpoints=9)
    train(recipe, resume=True)
    names = sorted(path.name for path in Path(recipe.output).glob("checkpoint-*"))
    assert names == ["checkpoint-2", "checkpoint-3", "checkpoint-5", "checkpoint-9"]
