"""Training: it learns, says what it did, and stops rather than go wrong."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trisparse.train.callbacks import NonFiniteError
from trisparse.train.engine import RecipeTrainer
from trisparse.train.log import LOG, TIMING, read_log
from trisparse.train.progress import Progress
from trisparse.train.recipe import Recipe, load_recipe
from trisparse.train.text import heldout_windows, recipe_corpus
from trisparse.train.trainer import train

from .conftest import MODEL

Make = Callable[..., Recipe]


def losses(recipe: Recipe, split: str = "train") -> list[float]:
    return [line["loss"] for line in read_log(Path(recipe.output) / LOG) if line["split"] == split]


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_training_lowers_the_loss(tiny: Make, attention: str) -> None:
    """Guards the whole chain: text, model, optimizer, evaluation."""
    recipe = tiny(steps=60, attention=attention, evaluate_every=10, save_every=100)
    result = train(recipe)
    heldout = losses(recipe, "heldout")
    assert heldout[0] / math.log(2) > 5
    assert result.bits_per_byte < heldout[0] / math.log(2) - 1
    assert result.bits_per_byte == heldout[-1] / math.log(2)


def test_result_tells_what_was_run(tiny: Make) -> None:
    """Guards the folder's promise: a tokenizer, a recipe in full, a log, no pickle."""
    recipe, seen = tiny(), list[Progress]()
    result = train(recipe, on_progress=seen.append)
    assert result.folder == Path(recipe.output)
    assert load_recipe(result.folder / "recipe.yaml") == recipe
    assert [(progress.step, progress.steps) for progress in seen] == [(step, 9) for step in range(1, 10)]
    assert all(progress.tokens_per_second > 0 for progress in seen)
    assert len((result.folder / TIMING).read_text().splitlines()) == 9
    rows = [(row["split"], row["step"], row["tokens"]) for row in result.rows]
    assert rows == [
        *(("train", str(step), str(64 * step)) for step in (1, 2, 3, 4)),
        ("heldout", "4", "256"),
        *(("train", str(step), str(64 * step)) for step in (5, 6, 7, 8)),
        ("heldout", "8", "512"),
        ("train", "9", "576"),
        ("heldout", "9", "576"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    assert tokenizer("ab")["input_ids"] == [97, 98]
    config = json.loads((result.model / "config.json").read_text())
    assert (config["use_cache"], config["eos_token_id"], config["vocab_size"]) == (True, 256, 320)
    assert not list(result.folder.rglob("training_args.bin"))


def test_reported_bits_are_those_of_the_saved_model(tiny: Make) -> None:
    """Guards the number everybody will quote: per predicted token, recomputed here from the logits."""
    recipe = tiny()
    result = train(recipe)
    model = AutoModelForCausalLM.from_pretrained(result.model).eval()
    nats, count = 0.0, 0
    windows = heldout_windows(recipe, recipe_corpus(recipe))
    for index in range(len(windows)):  # type: ignore[arg-type]
        item = windows[index]
        with torch.no_grad():
            logits = model(input_ids=item["input_ids"][None], position_ids=item["position_ids"][None]).logits[
                0
            ]
        wanted = item["labels"][1:]
        known = wanted != -100
        chosen = logits[:-1].log_softmax(-1)[known, wanted[known]]
        nats, count = nats - float(chosen.double().sum()), count + int(known.sum())
    assert result.bits_per_byte == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_accumulated_batches_are_one_batch(tiny: Make, tmp_path: Path) -> None:
    """Guards the scale of the gradient: documents make batches of different numbers of labels."""
    together, apart = str(tmp_path / "together"), str(tmp_path / "apart")
    train(tiny(output=together, batch_size=6))
    train(tiny(output=apart, accumulate=3))
    one, other = losses(tiny(output=together)), losses(tiny(output=apart))
    assert one == pytest.approx(other, rel=1e-4)


def test_gradient_checkpointing_changes_no_number(tiny: Make, tmp_path: Path) -> None:
    """Guards a switch that only trades time for memory."""
    plain, checkpointed = (
        tiny(output=str(tmp_path / "a")),
        tiny(output=str(tmp_path / "b"), gradient_checkpointing=True),
    )
    train(plain)
    train(checkpointed)
    assert losses(plain) == pytest.approx(losses(checkpointed), rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "last"),
    [("cosine", 1e-2 * (1 + math.cos(math.pi * 6 / 7)) / 2), ("linear", 1e-2 / 7), ("constant", 1e-2)],
)
def test_learning_rate_rises_then_follows_the_schedule(tiny: Make, schedule: str, last: float) -> None:
    """Guards the schedule's length: its last step is one before the end."""
    recipe = tiny(schedule=schedule)
    train(recipe)
    rates = [
        line["learning_rate"] for line in read_log(Path(recipe.output) / LOG) if line["split"] == "train"
    ]
    assert rates[:3] == pytest.approx([0.0, 5e-3, 1e-2])
    assert rates[-1] == pytest.approx(last)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient", "gradient's norm"])
def test_nan_stops_before_the_step(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, what: str, accumulate: int
) -> None:
    """Guards the weights: a NaN that reaches the optimizer is in every one of them."""
    true_loss, seen = RecipeTrainer.compute_loss, dict[str, Any]()

    def spoiled(trainer: RecipeTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = true_loss(trainer, model, inputs, *args, **kwargs)
        seen["model"] = model
        if trainer.state.global_step < 3:
            return loss
        seen.setdefault("weights", [parameter.detach().clone() for parameter in model.parameters()])
        if what == "loss":
            return loss * float("nan")
        # infinite, which clipping would turn into a mixture of zeros and NaN; or finite with a norm that is
        # not, which it would turn into zeros
        factor = float("inf") if what == "gradient" else 1e30
        loss.register_hook(lambda gradient: gradient * factor)
        return loss

    monkeypatch.setattr(RecipeTrainer, "compute_loss", spoiled)
    recipe = tiny(accumulate=accumulate)
    with pytest.raises(
        NonFiniteError,
        match=rf"^{what.split(chr(39))[0]}: expected a finite number, got (nan|inf) at step 4 \(batch \d+ of",
    ):
        train(recipe)
    for before, after in zip(seen["weights"], seen["model"].parameters(), strict=True):
        assert torch.equal(before, after)
    assert len(losses(recipe)) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "tinny"}, r"^preset: expected one of tiny"),
        ({"attention": "sparse"}, r"^attention: expected nsa, full, gated_full; got 'sparse'"),
        ({"model": {"hidden_sizes": 3}}, r"^model\.hidden_sizes: .*did you mean 'hidden_size'"),
        ({"model": {"hidden_size": "wide"}}, r"^model: .*hidden_size"),
        ({"model": MODEL | {"vocab_size": 100}}, r"^model\.vocab_size: expected at least 258 "),
        (
            {"model": MODEL | {"max_position_embeddings": 16}},
            r"^model\.max_position_embeddings: expected at least context_length=32, got 16",
        ),
        (
            {"context_length": 4000},
            r"^data: expected at least context_length=4000 tokens of training text in ",
        ),
        ({"context_length": 100}, r"^data: expected at least context_length=100 tokens of heldout text in "),
    ],
)
def test_recipe_that_cannot_be_run_is_refused(tiny: Make, fields: dict[str, Any], message: str) -> None:
    """Guards the door: nothing is written for a run that cannot begin."""
    recipe = tiny(**fields)
    with pytest.raises(ValueError, match=message):
        train(recipe)
    assert not (Path(recipe.output) / LOG).exists()
    assert not (Path(recipe.output) / "recipe.yaml").exists()


def test_folder_without_text_is_refused(tiny: Make, tmp_path: Path) -> None:
    """Guards the corpus's own words, which say what to do."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^data: expected text in '.*empty', found none"):
        train(tiny(data=str(tmp_path / "empty")))
    with pytest.raises(
        ValueError, match=r"^data: expected a folder of text, got '.*nowhere', which cannot be found"
    ):
        train(tiny(data=str(tmp_path / "nowhere")))


def test_output_that_is_a_file_is_refused(tiny: Make, tmp_path: Path) -> None:
    """Guards against an error from deep inside the Trainer."""
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=r"^output: expected a folder, got the file '.*taken'"):
        train(tiny(output=str(tmp_path / "taken")))


def test_standard_library_is_the_default_text(tiny: Make) -> None:
    """Guards the run that needs no argument but a folder."""
    recipe = tiny(data="stdlib", steps=2, warmup_steps=0, evaluate_windows=1)
    assert train(recipe).bits_per_byte < 9


@pytest.mark.parametrize("place", ["run", "runs/a"])
def test_run_inside_its_own_text_is_refused(tiny: Make, text: Path, place: str) -> None:
    """Guards against a log that becomes text: the run could not be resumed."""
    with pytest.raises(ValueError, match=r"^output: expected a folder outside of data="):
        train(tiny(output=str(text / place)))
    assert not (text / place).exists()


def test_run_in_a_hidden_folder_of_its_text_is_taken(tiny: Make, text: Path, tmp_path: Path) -> None:
    """Guards the way out: hidden folders are no text."""
    copy = tmp_path / "copy"
    shutil.copytree(text, copy)
    recipe = tiny(data=str(copy), output=str(copy / ".runs" / "a"), steps=2)
    train(recipe)
    train(recipe, resume=True)
