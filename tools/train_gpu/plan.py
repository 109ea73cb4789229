"""What is trained: two models that differ in their attention alone, on the same text in the same order."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trisparse.train.recipe import Recipe

ATTENTIONS = ("nsa", "full")
# of a run, that after its last step among them
EVALUATIONS = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of both runs.

    Attributes:
        least, most: steps that are worth a run, and that it has at most.
        warm_up: steps of the runs that show how long one takes.
        model: fields of the models that differ from the preset. The backend is one of NSA alone.
    """

    data: str = "stdlib"
    preset: str = "base"
    context_length: int = 16384
    batch_size: int = 2
    learning_rate: float = 6e-4
    precision: str = "bfloat16"
    evaluate_windows: int = 16
    least: int = 40
    most: int = 100_000
    warm_up: int = 8
    model: dict[str, Any] = field(default_factory=lambda: {"backend": "triton"})

    @classmethod
    def rehearsal(cls, data: str) -> "Plan":
        """Sizes that show on a CPU whether all parts work, and nothing else."""
        return cls(
            data=data,
            preset="tiny",
            context_length=64,
            evaluate_windows=2,
            least=3,
            most=3,
            warm_up=3,
            model={"backend": "torch", "num_hidden_layers": 1, "hidden_size": 64},
        )

    @property
    def tokens_per_step(self) -> int:
        return self.context_length * self.batch_size

    def recipe(self, attention: str, steps: int, output: Path, evaluations: int = EVALUATIONS) -> Recipe:
        """A run of so many steps. Windows are one text each: documents would be shorter than the context."""
        return Recipe(
            output=str(output),
            preset=self.preset,
            attention=attention,
            data=self.data,
            context_length=self.context_length,
            batch_size=self.batch_size,
            steps=steps,
            learning_rate=self.learning_rate,
            warmup_steps=min(100, steps // 10),
            precision=self.precision,
            evaluate_every=max(1, steps // evaluations),
            evaluate_windows=self.evaluate_windows,
            save_every=steps,
            keep_checkpoints=1,
            packed_documents=False,
            model=self.model,
        )
