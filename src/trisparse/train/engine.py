"""The Trainer of transformers, told to read in order, to log what we log and to evaluate in bits per byte."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler, default_collate
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from trisparse.data.packing import IGNORED_LABEL
from trisparse.train.callbacks import refuse_non_finite
from trisparse.train.log import LOG, TIMING, LineFile, log_line
from trisparse.train.progress import OnProgress, Progress
from trisparse.train.recipe import Recipe
from trisparse.train.text import Item

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    return TrainingArguments(
        output_dir=recipe.output,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch",
        # the usual value for language models: batches are noisy, and 0.999 remembers them for too long
        adam_beta2=0.95,
        seed=recipe.seed,
        # without a GPU the Trainer takes bfloat16 for a mistake unless told that this is meant
        use_cpu=not torch.accelerator.is_available(),
        bf16=recipe.precision == "bfloat16",
        eval_strategy="steps",
        eval_steps=recipe.evaluate_every,
        save_strategy="steps",
        save_steps=recipe.save_every,
        # checkpoints are removed by us, after the new one is complete
        save_total_limit=None,
        # a mean over several steps would lose its first half on resume
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


@contextmanager
def quiet_saving() -> Iterator[None]:
    """Without the bar that transformers draws for every model it writes, across our own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class RecipeTrainer(Trainer):
    """The engine of one run; writes `log.jsonl` and `timing.jsonl` while `open_logs` is entered."""

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        args: TrainingArguments,
        training: Dataset[Item],
        heldout: Dataset[Item],
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=default_collate,
            train_dataset=training,
            eval_dataset=heldout,
        )
        # it prints every log entry as a dict
        self.remove_callback(PrinterCallback)
        self._recipe = recipe
        self._model = model
        self._heldout = heldout
        self._on_progress = on_progress
        self._logs: tuple[LineFile, LineFile] | None = None
        self._batches = 0
        self._clock = _Clock()

    @contextmanager
    def open_logs(self, output: Path) -> Iterator[None]:
        """Keep the log files of `output` open to add to; only the first process writes."""
        if not self.is_world_process_zero():
            yield
            return
        with LineFile(output / LOG) as log, LineFile(output / TIMING) as timing:
            self._logs = (log, timing)
            try:
                yield
            finally:
                self._logs = None

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # the order is in the dataset, where it is a function of the seed alone
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The matrices; norms, biases and other vectors do not decay."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As in the Trainer, but a NaN or infinite loss ends the run before the optimizer step."""
        if self._batches == 0:
            self._batches = self.state.global_step * self._recipe.accumulate
            self._clock.start(self.state.global_step)
        self._batches += 1
        loss = super().training_step(model, inputs, *args, **kwargs)
        refuse_non_finite("loss", float(loss), self.state.global_step + 1, self._batches)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float | None:
        """As in the Trainer, but a NaN or infinite norm ends the run before the optimizer step.

        It is that of before the clipping, which makes zeros of finite gradients whose norm overflows.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        assert norm is not None
        refuse_non_finite("gradient", float(norm), self.state.global_step + 1, self._batches)
        return norm

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss in nats per predicted token over the held-out windows, logged."""
        model = self.model_wrapped
        model.eval()
        nats, count = self._heldout_nats(model)
        loss = float(nats / count)
        refuse_non_finite("held-out loss", loss, self.state.global_step, self._batches)
        metrics = {"eval_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _heldout_nats(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        # float64, so that the mean does not depend on how many windows there are
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in self._heldout_batches():
            inputs = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
            count = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()
            # a batch of one-byte documents has nothing to predict, and the mean of nothing is NaN
            if count:
                totals += torch.stack((model(**inputs).loss.double() * count, count.double()))
        nats, count = self.accelerator.reduce(totals, "sum")
        return nats, count

    def _heldout_batches(self) -> Iterator[Item]:
        # no DataLoader: it would draw from the random state that a resumed run must find unchanged
        size = self._recipe.batch_size
        indices = range(self.args.process_index, len(self._heldout), self.args.world_size)  # type: ignore[arg-type]
        for start in range(0, len(indices), size):
            yield default_collate([self._heldout[index] for index in indices[start : start + size]])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Write a line for a step or an evaluation. Nothing is kept in memory or in the checkpoint for it."""
        step = self.state.global_step
        tokens = step * self.tokens_per_step()
        if "eval_loss" in logs:
            self._write(log_line("heldout", step, tokens, logs["eval_loss"]))
        elif "loss" in logs:
            line = log_line("train", step, tokens, logs["loss"], logs["learning_rate"], logs["grad_norm"])
            self._write(line)
            self._report(line)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, once the log is on the disk: a checkpoint without it cannot be resumed."""
        for file in self._logs or ():
            file.sync()
        super()._save_checkpoint(*args, **kwargs)

    def tokens_per_step(self) -> int:
        """The tokens of one optimizer step, over all processes and devices."""
        windows = self.args.train_batch_size * self.args.world_size * self._recipe.accumulate
        return windows * self._recipe.context_length

    def _write(self, line: dict[str, Any]) -> None:
        if self._logs is not None:
            self._logs[0].add(line)

    def _report(self, line: dict[str, Any]) -> None:
        step = line["step"]
        seconds, mean = self._clock.step(step)
        speed = self.tokens_per_step() / mean
        if self._logs is not None:
            self._logs[1].add({"step": step, "seconds": seconds, "tokens_per_second": speed})
        if self._on_progress is not None and self.is_world_process_zero():
            self._on_progress(
                Progress(
                    step=step,
                    steps=self._recipe.steps,
                    first_step=self._clock.first_step,
                    bits_per_byte=line["bits_per_byte"],
                    tokens_per_second=speed,
                    seconds_left=mean * (self._recipe.steps - step),
                )
            )


class _Clock:
    """Seconds per step, this one and the mean since the run was started or resumed."""

    def __init__(self) -> None:
        self.first_step = 0
        self._began = self._last = 0.0

    def start(self, step: int) -> None:
        self.first_step = step
        self._began = self._last = time.perf_counter()

    def step(self, step: int) -> tuple[float, float]:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds, max((now - self._began) / (step - self.first_step), 1e-9)
