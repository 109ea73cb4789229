"""How much the demo does: sizes chosen for two CPU cores with AMX and ten minutes."""

from dataclasses import dataclass
from pathlib import Path

from trisparse.train.recipe import Recipe

ATTENTIONS = ("nsa", "full")


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """The demo's sizes.

    Attributes:
        output: the folder of everything the demo writes.
        minutes: where the machine needs longer, there are fewer steps and shorter benchmarks (`fit.py`); None
            for all of them, however long they take.
        steps, batch_size, context_length: of both training runs.
        preset: of both models.
        bench_lengths: context lengths of the forward benchmark, tokens.
        bench_backward_lengths: of the backward one, which takes several times as long.
        needle_lengths, needle_depths, needle_samples: the needle test's grid, and needles in each cell.
        position_windows: held-out windows for the loss by position.
    """

    output: Path
    minutes: float | None = 10.0
    preset: str = "tiny"
    steps: int = 360
    batch_size: int = 2
    context_length: int = 1024
    bench_lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    bench_backward_lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    needle_lengths: tuple[int, ...] = (256, 512, 1024)
    needle_depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    needle_samples: int = 8
    position_windows: int = 32

    @classmethod
    def quick(cls, output: Path) -> "DemoPlan":
        """Sizes that show whether all parts work, and nothing else."""
        return cls(
            output=output,
            minutes=None,
            steps=4,
            context_length=256,
            bench_lengths=(256, 512),
            bench_backward_lengths=(256,),
            needle_lengths=(128, 256),
            needle_depths=(0.0, 100.0),
            needle_samples=2,
            position_windows=4,
        )

    def recipe(self, attention: str) -> Recipe:
        """The training run of one attention; the two differ in nothing else."""
        return Recipe(
            output=str(self.output / attention),
            preset=self.preset,
            attention=attention,
            context_length=self.context_length,
            batch_size=self.batch_size,
            steps=self.steps,
            learning_rate=2e-3,
            warmup_steps=min(20, self.steps),
            precision="auto",
            evaluate_every=max(1, self.steps // 6),
            evaluate_windows=16,
            save_every=max(1, self.steps // 6),
        )
