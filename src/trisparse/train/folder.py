"""The folder of a run: fit to start in or to go on in, and one run's at a time."""

import os
from contextlib import ExitStack, suppress
from pathlib import Path

from trisparse.files import locked
from trisparse.train.checkpoint import (
    RECIPE,
    CheckpointError,
    check_checkpoint,
    checkpoint_step,
    latest_checkpoint,
    remove_incomplete,
)
from trisparse.train.log import LOG, TIMING, truncate_log, whole_lines
from trisparse.train.recipe import Recipe, save_recipe

MODEL = "model"
LOCK = ".lock"


def refuse_inside(output: Path, data: str) -> None:
    """What a run writes must not become its text: it could not be resumed."""
    if data == "stdlib":
        return
    folder = Path(os.path.realpath(os.path.expanduser(data)))
    place = Path(os.path.realpath(output))
    # hidden folders are no text
    if place.is_relative_to(folder) and not any(
        part.startswith(".") for part in place.relative_to(folder).parts
    ):
        raise ValueError(
            f"output: expected a folder outside of data={data!r}, got {str(output)!r}; give another folder, "
            "or a hidden one"
        )


def refuse_used(output: Path) -> None:
    """A run does not begin over another one."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: expected a folder, got the file {str(output)!r}; give another name")
    found = [name for name in (RECIPE, LOG, TIMING, MODEL) if (output / name).exists()]
    found += sorted(path.name for path in output.glob("checkpoint-*"))
    if found:
        raise ValueError(
            f"output: expected a new or empty folder, got {str(output)!r}, which holds a run ({found[0]}); "
            "resume it or give another folder"
        )


def claim(output: Path, held: ExitStack) -> None:
    """Keep other processes from running in `output` until `held` is closed."""

    def refuse() -> None:
        raise ValueError(
            f"output: expected a folder that no run is using, got {str(output)!r}; wait for that run, "
            "or stop it"
        )

    # some network file systems have no locks, and a run must not end for that
    with suppress(OSError):
        held.enter_context(locked(output / LOCK, refuse))


def checked_checkpoint(output: Path, recipe: Recipe, fingerprint: str) -> Path:
    """The newest checkpoint, from which a run by `recipe` can go on exactly."""
    checkpoint = latest_checkpoint(output)
    if checkpoint is None:
        raise CheckpointError(
            f"{output}: expected a complete checkpoint to resume from, found none; "
            "start without resume in a new folder"
        )
    check_checkpoint(checkpoint, recipe, fingerprint)
    _check_log(output / LOG, checkpoint, recipe.evaluate_every)
    return checkpoint


def _check_log(path: Path, checkpoint: Path, evaluate_every: int) -> None:
    """The log must reach the checkpoint, or the resumed run's would have a hole."""
    step = checkpoint_step(checkpoint)
    steps: dict[str, list[int]] = {"train": [], "heldout": []}
    for _, line in whole_lines(path):
        if line["step"] <= step:
            steps.setdefault(str(line.get("split")), []).append(line["step"])
    hint = f"remove {checkpoint} to go on from an older one"
    found = len(steps["train"])
    if steps["train"] != list(range(1, step + 1)):
        raise CheckpointError(
            f"{path}: expected one line for each of the steps 1 to {step}, found {found}; {hint}"
        )
    lost = set(range(evaluate_every, step + 1, evaluate_every)) - set(steps["heldout"])
    if lost:
        raise CheckpointError(f"{path}: expected a held-out loss after step {min(lost)}, found none; {hint}")


def check_processes(checkpoint: Path, processes: int) -> None:
    """Each process left its random state; another number of them would read other windows in a step."""
    saved = len(list(checkpoint.glob("rng_state*.pth")))
    if saved != processes:
        raise CheckpointError(
            f"{checkpoint}: expected the {saved} processes of the run, got {processes}; launch as many"
        )


def prepare(output: Path, recipe: Recipe, checkpoint: Path | None) -> None:
    """Take back what came after `checkpoint`, if the run goes on from one, and write its recipe down."""
    if checkpoint is not None:
        remove_incomplete(output)
        for name in (LOG, TIMING):
            truncate_log(output / name, checkpoint_step(checkpoint))
    save_recipe(recipe, output / RECIPE)
