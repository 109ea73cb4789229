"""A decode case: the sizes of one step, in which every row of a batch attends to its own past."""

from dataclasses import dataclass

from trisparse.bench.cases import Case
from trisparse.nn.cache import STEP


@dataclass(frozen=True, kw_only=True)
class DecodeCase(Case):
    """Sizes of one decode step. `tokens` is the longest row, its new tokens included.

    Attributes:
        new_tokens: tokens of each row that attend (1; more for speculative verification).
        ragged: rows of tokens / B, 2 tokens / B, ... tokens instead of equal ones.

    Raises:
        TypeError, ValueError: as Case; also for more new tokens than a cache takes in one step, or than a row
            has.
    """

    new_tokens: int = 1
    ragged: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        most = min(STEP, *self.lengths)
        if not 1 <= self.new_tokens <= most:
            raise ValueError(
                f"new_tokens: expected 1 .. {most} at {min(self.lengths)} tokens, got {self.new_tokens}"
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        if not self.ragged:
            return [self.tokens] * self.batch
        return [self.tokens * (row + 1) // self.batch for row in range(self.batch)]

    @property
    def starts(self) -> list[int]:
        """Position of each row's first new token."""
        return [length - self.new_tokens for length in self.lengths]

    @property
    def direction(self) -> str:
        """What the column `direction` says."""
        return "ragged decode" if self.ragged else "decode"

    @property
    def name(self) -> str:
        return f"{super().name}-n{self.new_tokens}{'-ragged' if self.ragged else ''}"
