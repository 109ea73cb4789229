"""What the Trainer is told to do between steps: complete checkpoints, stop on request."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trisparse.train.checkpoint import complete_checkpoint, prune_checkpoints
from trisparse.train.interrupt import StopRequest
from trisparse.train.recipe import Recipe


class NonFiniteError(ValueError):
    """A loss or a gradient is NaN or infinite; raised before the optimizer takes it in."""


def refuse_non_finite(what: str, value: float, step: int, batch: int) -> None:
    """Raise NonFiniteError if `value` is NaN or infinite.

    `step` counts optimizer steps from 1, `batch` the windows' batches of the whole run, so that both can be
    found again.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{what}: expected a finite number, got {value} at step {step} (batch {batch} of the run); the "
            "weights were not changed by it; lower learning_rate, or lengthen warmup_steps"
        )


class CompleteCheckpoints(TrainerCallback):
    """Seals each checkpoint once the Trainer has filled it, then removes the oldest ones."""

    def __init__(self, recipe: Recipe, fingerprint: str) -> None:
        self._recipe = recipe
        self._fingerprint = fingerprint

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002  # the Trainer fixes the signature
        **_: Any,
    ) -> None:
        # a resumed run brings the interval of the run before, and this one may have been given another
        state.save_steps = int(args.save_steps)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # every process adds its own random state
            torch.distributed.barrier()
        if state.is_world_process_zero:
            output = Path(str(args.output_dir))
            complete_checkpoint(output / f"checkpoint-{state.global_step}", self._recipe, self._fingerprint)
            prune_checkpoints(output, self._recipe.keep_checkpoints)


class StopOnRequest(TrainerCallback):
    """Saves and ends the run after the step in which it was asked to stop."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self._stop_if_agreed(args, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **_: Any,
    ) -> None:
        # after the step's loss and after an evaluation, which may take long: the checkpoint comes next
        self._stop_if_agreed(args, control)

    def _stop_if_agreed(self, args: TrainingArguments, control: TrainerControl) -> None:
        if self._agreed(args):
            control.should_save = True
            control.should_training_stop = True

    def _agreed(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self._request.requested
        # a signal reaches the processes at different steps, and they must end at the same one
        flag = torch.tensor(float(self._request.requested), device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())
