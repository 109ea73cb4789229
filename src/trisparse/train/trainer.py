"""`train`: a recipe in, a trained model, a log and checkpoints out."""

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from trisparse.data.corpus import Corpus
from trisparse.data.tokenizer import byte_tokenizer
from trisparse.train.callbacks import CompleteCheckpoints, StopOnRequest
from trisparse.train.checkpoint import checkpoint_step, latest_checkpoint
from trisparse.train.engine import RecipeTrainer, quiet_saving, training_arguments
from trisparse.train.folder import (
    MODEL,
    check_processes,
    checked_checkpoint,
    claim,
    prepare,
    refuse_inside,
    refuse_used,
)
from trisparse.train.interrupt import StopRequest, TrainingInterrupted
from trisparse.train.log import LOG, loss_rows, read_log
from trisparse.train.model import recipe_model
from trisparse.train.progress import OnProgress
from trisparse.train.recipe import Recipe
from trisparse.train.text import heldout_windows, recipe_corpus, training_windows


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished run.

    Attributes:
        bits_per_byte: the held-out loss after the last step.
        rows: the whole log as rows for the loss figure, see `loss_rows`.
        folder: the run's folder.
        model: the folder that `TrisparseForCausalLM.from_pretrained` takes.
    """

    bits_per_byte: float
    rows: list[dict[str, str]]
    folder: Path
    model: Path


def train(recipe: Recipe, *, resume: bool = False, on_progress: OnProgress | None = None) -> TrainingResult:
    """Train by `recipe`. A run that was interrupted and resumed ends as one that was not, to the last bit.

    That holds on the same machine, with the same packages and number of threads and processes.

    Args:
        recipe: the run; on resume the same one, but for `FREE_FIELDS`.
        resume: go on from the newest complete checkpoint in `recipe.output`.
        on_progress: called after every step, in the first process only.

    Raises:
        ValueError: `recipe.output` already holds a run and `resume` is False, or another process runs there,
            or it lies in the text's folder; or the text or the model that the recipe asks for cannot be had.
        CheckpointError: `resume` without a checkpoint that can be continued exactly.
        NonFiniteError: the loss or a gradient became NaN or infinite.
        TrainingInterrupted: SIGINT or SIGTERM came; the message tells how to go on.
    """
    output = Path(recipe.output)
    refuse_inside(output, recipe.data)
    if not resume:
        refuse_used(output)
    corpus = recipe_corpus(recipe)
    fingerprint = corpus.fingerprint()
    checkpoint = checked_checkpoint(output, recipe, fingerprint) if resume else None
    stop = StopRequest()
    trainer = _trainer(recipe, corpus, on_progress)
    _refuse_fsdp(trainer)
    if checkpoint is not None:
        check_processes(checkpoint, trainer.args.world_size)
    trainer.add_callback(CompleteCheckpoints(recipe, fingerprint))
    trainer.add_callback(StopOnRequest(stop))
    with ExitStack() as held:
        if trainer.is_world_process_zero():
            output.mkdir(parents=True, exist_ok=True)
            claim(output, held)
            prepare(output, recipe, checkpoint)
        trainer.accelerator.wait_for_everyone()
        _run(trainer, stop, output, checkpoint)
        return _finish(trainer, recipe, output)


def _trainer(recipe: Recipe, corpus: Corpus, on_progress: OnProgress | None) -> RecipeTrainer:
    # the model first: a misspelled field should not wait for the text
    model = recipe_model(recipe)
    args = training_arguments(recipe)
    parallel = args.world_size * max(1, args.n_gpu)
    training, heldout = training_windows(recipe, corpus, parallel), heldout_windows(recipe, corpus)
    return RecipeTrainer(recipe, model, args, training, heldout, on_progress)


def _refuse_fsdp(trainer: RecipeTrainer) -> None:
    # its checkpoints are folders of shards, which the manifest does not describe yet
    if trainer.is_fsdp_enabled:
        raise ValueError(
            "accelerate: expected one process or DDP, got FSDP; launch without an FSDP configuration"
        )


def _run(trainer: RecipeTrainer, stop: StopRequest, output: Path, checkpoint: Path | None) -> None:
    try:
        with stop, trainer.open_logs(output), quiet_saving():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        raise _interrupted(output) from None
    if trainer.state.global_step < trainer.args.max_steps:
        raise _interrupted(output)


def _interrupted(output: Path) -> TrainingInterrupted:
    checkpoint = latest_checkpoint(output)
    return TrainingInterrupted(None if checkpoint is None else checkpoint_step(checkpoint), output)


def _finish(trainer: RecipeTrainer, recipe: Recipe, output: Path) -> TrainingResult:
    with quiet_saving():
        _save_model(trainer, output / MODEL)
    heldout = [line for line in read_log(output / LOG) if line["split"] == "heldout"]
    return TrainingResult(
        bits_per_byte=heldout[-1]["bits_per_byte"],
        rows=loss_rows(output, output.resolve().name, recipe.attention_name),
        folder=output,
        model=output / MODEL,
    )


def _save_model(trainer: RecipeTrainer, folder: Path) -> None:
    draft = folder.with_name(f".{folder.name}.tmp")
    # the Trainer switches it off for training, and who loads the model wants it
    trainer.accelerator.unwrap_model(trainer.model).config.use_cache = True
    trainer.save_model(str(draft))
    if trainer.is_world_process_zero():
        # nothing reads it again, and it is no safetensors file
        (draft / "training_args.bin").unlink(missing_ok=True)
        byte_tokenizer().save_pretrained(draft)
        # a finished run that is resumed saves the same model again
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    trainer.accelerator.wait_for_everyone()
