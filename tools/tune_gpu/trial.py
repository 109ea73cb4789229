"""A kernel with one tile on one problem, ready to start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trisparse.triton.launch import Launch


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Launches in order. `main` is the kernel that the tile is for, `results` are read after all have run.

    Results by name: "lse" is a log-sum-exp, "ids" are blocks, "d ..." are gradients.
    """

    before: Sequence[Launch] = ()
    main: Launch
    after: Sequence[Launch] = ()
    results: Callable[[], dict[str, Tensor]]

    @property
    def launches(self) -> list[Launch]:
        return [*self.before, self.main, *self.after]

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two tiles that are the same to the kernel: some of a tile may be fitted to the shape."""
        warps_and_stages = self.main.tile.num_warps, self.main.tile.num_stages
        return *sorted(self.main.constants.items()), *warps_and_stages

    def run(self) -> None:
        for launch in self.launches:
            launch.run()

    def start(self) -> Any:
        """As `run`, with the compiler's own errors; the compiled main kernel, or None if interpreted."""
        compiled = None
        for launch in self.launches:
            started = launch.kernel[(launch.programs,)](**_all_arguments(launch))
            compiled = started if launch is self.main else compiled
        return compiled

    def compile(self) -> None:
        """Compile and run nothing; the binaries go to Triton's cache of files."""
        for launch in self.launches:
            launch.kernel.warmup(**_all_arguments(launch), grid=(1,))


def _all_arguments(launch: Launch) -> dict[str, Any]:
    options = {"num_warps": launch.tile.num_warps, "num_stages": launch.tile.num_stages}
    return {**launch.arguments, **launch.constants, **options}
