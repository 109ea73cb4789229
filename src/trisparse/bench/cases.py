"""A case: the sizes of one attention call, and its inputs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trisparse.config import SparseConfig

Tensors = tuple[Tensor, ...]

# scores of a wide spread: single keys then carry whole rows, and a key too many or too few shows
QUERY_SPREAD = 3.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of one attention call. The defaults, at the caller's lengths, are the setting we publish.

    Raises:
        TypeError: a size is not an int.
        ValueError: a size is below 1, or `groups` does not divide `heads`.
    """

    tokens: int
    heads: int = 16
    groups: int = 1
    head_dim: int = 128
    value_dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    batch: int = 1
    config: SparseConfig = field(default_factory=SparseConfig)

    def __post_init__(self) -> None:
        for name in ("tokens", "heads", "groups", "head_dim", "value_dim", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r}")
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.heads % self.groups:
            raise ValueError(f"groups: expected a divisor of heads={self.heads}, got {self.groups}")

    @property
    def name(self) -> str:
        """All sizes in one word, so that two cases of one name are the same case."""
        sizes = ".".join(map(str, self.config.as_ints()))
        parts = (
            f"t{self.tokens}",
            f"b{self.batch}",
            f"h{self.heads}",
            f"g{self.groups}",
            f"d{self.head_dim}",
            f"e{self.value_dim}",
            dtype_name(self.dtype),
            sizes,
        )
        return "-".join(parts)

    def setting(self) -> dict[str, str]:
        """The sizes as columns of a table."""
        sizes = ("tokens", "heads", "groups", "head_dim", "value_dim")
        columns = {name: str(getattr(self, name)) for name in sizes}
        return {**columns, "dtype": dtype_name(self.dtype), "batch": str(self.batch)}


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def sparse_inputs(case: Case, device: torch.device, seed: int = 0) -> Tensors:
    """query, key and value of each branch as `sparse_attention` takes them, gates; all [B, T, ...]."""
    normal = Normal(case, device, seed)
    tensors = [normal.draw(case.tokens, case.heads, case.head_dim) * QUERY_SPREAD]
    for length in (case.config.num_compressed(case.tokens), case.tokens, case.tokens):
        tensors.append(normal.draw(length, case.groups, case.head_dim))
        tensors.append(normal.draw(length, case.groups, case.value_dim))
    tensors.append(normal.draw(case.tokens, case.heads, 3).sigmoid())
    return tuple(tensors)


def dense_inputs(case: Case, device: torch.device, seed: int = 0) -> Tensors:
    """query [B, H, T, D], key [B, G, T, D], value [B, G, T, E], contiguous: the layout SDPA likes best."""
    normal = Normal(case, device, seed)
    query = normal.draw(case.heads, case.tokens, case.head_dim) * QUERY_SPREAD
    key = normal.draw(case.groups, case.tokens, case.head_dim)
    return query, key, normal.draw(case.groups, case.tokens, case.value_dim)


class Normal:
    """Seeded normal tensors, drawn on the CPU so that every device gets the same numbers.

    With `on_device` they are drawn where they are wanted: a CPU would take minutes to fill a GPU's memory.
    """

    def __init__(self, case: Case, device: torch.device, seed: int, *, on_device: bool = False) -> None:
        self.case, self.device = case, device
        self.source = device if on_device else torch.device("cpu")
        self.generator = torch.Generator(self.source).manual_seed(seed)

    def draw(self, *shape: int) -> Tensor:
        sizes = (self.case.batch, *shape)
        numbers = torch.randn(sizes, generator=self.generator, device=self.source)
        return numbers.to(self.device, self.case.dtype)
