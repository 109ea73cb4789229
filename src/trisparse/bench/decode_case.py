"""A decode step to be timed: its sizes, and caches that are as a layer's cache is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trisparse.bench.cases import QUERY_SPREAD, Case

# between two uses of a cache so much of others is read that none of it is left in the processor's cache
COLD_BYTES = 256 * 2**20
_MOST_BYTES = 4 * 2**30


@dataclass(frozen=True, kw_only=True)
class DecodeCase(Case):
    """`tokens` counts the `new_tokens` of each row, which are its last ones."""

    heads: int = 64
    groups: int = 4
    new_tokens: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.new_tokens <= self.tokens:
            raise ValueError(
                f"new_tokens: expected 1 .. {self.tokens}, the tokens of a row, got {self.new_tokens}"
            )

    @property
    def name(self) -> str:
        return f"{super().name}-n{self.new_tokens}"

    @property
    def start(self) -> int:
        """Position of the first new token."""
        return self.tokens - self.new_tokens

    @property
    def ring(self) -> int:
        """Slots of the window's ring."""
        return -(-(self.config.window - 1 + self.new_tokens) // 64) * 64

    @property
    def sparse_tokens_read(self) -> int:
        """Tokens that a query row reads: compressed, selected and window (the paper's table 4)."""
        config = self.config
        selected = min(self.tokens, config.num_selected * config.select_block)
        return config.num_compressed(self.tokens) + selected + min(self.tokens, config.window)

    def bytes_of(self, tokens: int) -> int:
        """Bytes of keys and values of `tokens` tokens of every row."""
        return self.batch * tokens * self.groups * (self.head_dim + self.value_dim) * self.dtype.itemsize

    @property
    def num_caches(self) -> int:
        """How many caches to take in turns."""
        wanted = -(-COLD_BYTES // self.bytes_of(self.sparse_tokens_read))
        return max(2, min(wanted, _MOST_BYTES // self.bytes_of(self.tokens)))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Query and gates of the new tokens, and what lies before them. Pairs are key and value [B, *, G, *].

    Attributes:
        tokens: by position; full attention reads them too.
        ring: of the window, position s in slot s % R.
        starts: int32 [B].
    """

    query: Tensor
    compressed: tuple[Tensor, Tensor]
    tokens: tuple[Tensor, Tensor]
    ring: tuple[Tensor, Tensor]
    gates: Tensor
    starts: Tensor


def make_caches(case: DecodeCase, device: torch.device, seed: int = 0) -> list[Cache]:
    """`case.num_caches` caches of different numbers in memory of their own."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(length: int, heads: int, width: int) -> Tensor:
        shape = case.batch, length, heads, width
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    def pair(length: int) -> tuple[Tensor, Tensor]:
        return draw(length, case.groups, case.head_dim), draw(length, case.groups, case.value_dim)

    starts = torch.full((case.batch,), case.start, dtype=torch.int32, device=device)
    compressed, tokens, ring = (
        pair(length) for length in (case.config.num_compressed(case.tokens), case.tokens, case.ring)
    )
    # drawing takes longer than measuring: the other caches are the first one's numbers, moved along
    return [
        Cache(
            query=draw(case.new_tokens, case.heads, case.head_dim) * QUERY_SPREAD,
            compressed=_moved(compressed, number),
            tokens=_moved(tokens, number),
            ring=_moved(ring, number),
            gates=draw(case.new_tokens, case.heads, 3).sigmoid(),
            starts=starts,
        )
        for number in range(case.num_caches)
    ]


def _moved(pair: tuple[Tensor, Tensor], number: int) -> tuple[Tensor, Tensor]:
    key, value = (x.roll(977 * number, dims=1) for x in pair)
    return key, value
