"""One decode step: the newest tokens of every row, and the cache that they attend to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trisparse.bench.cases import QUERY_SPREAD, Normal
from trisparse.bench.decode_case import DecodeCase
from trisparse.nn.cache import BatchCache, DenseCache, SparseCache

# tokens of room behind the longest row, as a cache that goes on growing has them
SPARE = 256


@dataclass(frozen=True)
class Step:
    """What a step takes.

    Attributes:
        query: [B, n, H, D].
        gates: [B, n, H, 3]; full attention has no use for them.
        cache: keys and values of all rows, in the layout of their contender, garbage behind a row's tokens.
    """

    query: Tensor
    gates: Tensor
    cache: tuple[Tensor, ...]

    def elsewhere(self, case: DecodeCase, seed: int) -> "Step":
        """Other queries against a copy of the cache in memory of its own."""
        query = _new_tokens(case, self.query.device, seed)[0]
        return Step(query, self.gates, tuple(tensor.clone() for tensor in self.cache))

    def row(self, index: int) -> "Step":
        """One row as a batch of its own."""
        one = slice(index, index + 1)
        return Step(self.query[one], self.gates[one], tuple(tensor[one] for tensor in self.cache))

    def double(self) -> "Step":
        """The same in fp64."""
        return Step(self.query.double(), self.gates.double(), tuple(tensor.double() for tensor in self.cache))

    def nbytes(self) -> int:
        """Bytes of the cache."""
        return sum(tensor.nbytes for tensor in self.cache)


def sparse_step(case: DecodeCase, device: torch.device) -> Step:
    """Keys and values of the compressed and the selected branch, then the ring of the window's."""
    cache = SparseCache(case.config, capacity=case.tokens + SPARE)
    _fill(cache, case, device, ("compressed_", "", "window_"))
    rows = slice(0, case.batch)
    pairs = (*cache.pair(rows, "compressed_"), *cache.pair(rows), *cache.window(rows))
    return Step(*_new_tokens(case, device, 0), pairs)


def dense_step(case: DecodeCase, device: torch.device) -> Step:
    """All keys and values, [B, room, G, *]."""
    cache = DenseCache(capacity=case.tokens + SPARE)
    _fill(cache, case, device, ("",))
    return Step(*_new_tokens(case, device, 0), cache.pair(slice(0, case.batch)))


def _new_tokens(case: DecodeCase, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    normal = Normal(case, device, seed)
    query = normal.draw(case.new_tokens, case.heads, case.head_dim) * QUERY_SPREAD
    return query, normal.draw(case.new_tokens, case.heads, 3).sigmoid()


def _fill(cache: BatchCache, case: DecodeCase, device: torch.device, prefixes: Sequence[str]) -> None:
    """Random tokens in the buffers of these names. Row by row: numbers are drawn in a wider type."""
    normal = Normal(replace(case, batch=1), device, seed=1, on_device=True)
    sizes = {"key": case.head_dim, "value": case.value_dim}
    names = [(prefix, part) for prefix in prefixes for part in sizes]
    like = {part: torch.empty(case.batch, 0, case.groups, size) for part, size in sizes.items()}
    cache.reserve({prefix + part: like[part].to(device, case.dtype) for prefix, part in names}, case.lengths)
    for row, length in enumerate(case.lengths):
        for prefix, part in names:
            buffer = cache.buffers[prefix + part]
            count = case.config.num_compressed(length) if prefix == "compressed_" else length
            newest = min(count, buffer.room)
            tokens = normal.draw(newest, case.groups, sizes[part])
            buffer.write(slice(row, row + 1), [count - newest], tokens)
