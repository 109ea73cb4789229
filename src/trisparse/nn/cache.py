"""Decode state: what a layer must remember of the tokens it has seen, for each row of a batch on its own."""

from collections.abc import Sequence

from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.nn.buffer import TokenBuffer


class RowCache:
    """A fixed set of named token buffers of one sequence, all of the same length unless they hold blocks."""

    def __init__(self, buffers: dict[str, TokenBuffer]) -> None:
        self.buffers = buffers

    @property
    def length(self) -> int:
        return self.buffers["key"].length

    def check(self, new: dict[str, Tensor]) -> None:
        """Raise if tokens [B, n, G, D] are not of the kind stored."""
        for name, tokens in new.items():
            if not self.buffers[name].matches(tokens[0]):
                raise ValueError(
                    f"cache: expected {name} tokens {self.buffers[name].describe()}, "
                    f"got {list(tokens.shape[2:])} {tokens.dtype} on {tokens.device}"
                )

    def append(self, name: str, tokens: Tensor) -> None:
        """Add tokens [1, n, G, D] to buffer `name`; no gradient flows through a cache."""
        self.buffers[name].append(tokens[0].detach())

    def since(self, name: str, position: int = 0) -> Tensor:
        """Tokens [1, length - position, G, D] of buffer `name`, a view."""
        return self.buffers[name].since(position)[None]

    def check_crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 .. {self.length}, the cached tokens, got {length}")

    def crop(self, length: int) -> None:
        for buffer in self.buffers.values():
            buffer.crop(length)

    def clone(self) -> "RowCache":
        return type(self)({name: buffer.clone() for name, buffer in self.buffers.items()})

    def nbytes(self) -> int:
        return sum(buffer.nbytes() for buffer in self.buffers.values())


class SparseRow(RowCache):
    """One sequence of an NSA layer: raw K/V, compressed K/V, window K/V and the tail not yet compressed."""

    config: SparseConfig

    @classmethod
    def create(cls, config: SparseConfig, shared: bool, max_rollback: int) -> "SparseRow":
        window = config.window - 1 + max_rollback
        tail = config.compress_block - 1 + max_rollback
        buffers = {
            "key": TokenBuffer(),
            "value": TokenBuffer(),
            "compressed_key": TokenBuffer(),
            "compressed_value": TokenBuffer(),
            "tail_key": TokenBuffer(keep=tail),
            "tail_value": TokenBuffer(keep=tail),
        }
        if not shared:
            buffers |= {"window_key": TokenBuffer(keep=window), "window_value": TokenBuffer(keep=window)}
        row = cls(buffers)
        row.config = config
        return row

    @property
    def num_compressed(self) -> int:
        """Compressed blocks held."""
        return self.buffers["compressed_key"].length

    def _first_needed(self, length: int) -> dict[str, int]:
        """The oldest position of the forgetful buffers that a sequence of `length` tokens still needs."""
        window = max(0, length - self.config.window + 1)
        tail = self.config.num_compressed(length) * self.config.compress_stride
        needed = {"tail_key": tail, "tail_value": tail, "window_key": window, "window_value": window}
        return {name: position for name, position in needed.items() if name in self.buffers}

    def check_crop(self, length: int) -> None:
        super().check_crop(length)
        for name, position in self._first_needed(length).items():
            if not self.buffers[name].reaches(position):
                raise ValueError(
                    f"length: expected a crop of at most max_rollback tokens, got {length} of {self.length}; "
                    "make the cache with a larger max_rollback"
                )

    def crop(self, length: int) -> None:
        blocks = self.config.num_compressed(length)
        for name, buffer in self.buffers.items():
            buffer.crop(blocks if name.startswith("compressed") else length)

    def clone(self) -> "SparseRow":
        row = SparseRow({name: buffer.clone() for name, buffer in self.buffers.items()})
        row.config = self.config
        return row


class BatchCache:
    """Rows of a batch, which may have different lengths. Made empty; the first tokens fix its batch size.

    Args:
        capacity: most tokens a row may hold; None for no limit.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.rows: list[RowCache] = []

    def new_row(self) -> RowCache:
        """An empty row."""
        raise NotImplementedError

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [row.length for row in self.rows]

    def reserve(self, batch_size: int, new_tokens: Sequence[int]) -> None:
        """Check that `new_tokens` more tokens fit each row, before anything is changed.

        Raises:
            ValueError: another batch size than before, or more tokens than the capacity.
        """
        if self.rows and len(self.rows) != batch_size:
            raise ValueError(f"cache: expected a batch of {len(self.rows)} rows, got {batch_size}")
        lengths = self.lengths or [0] * batch_size
        total = max((a + b for a, b in zip(lengths, new_tokens, strict=True)), default=0)
        if self.capacity is not None and total > self.capacity:
            raise ValueError(f"cache: expected at most capacity={self.capacity} tokens, got {total}")
        if not self.rows:
            self.rows = [self.new_row() for _ in range(batch_size)]

    def check(self, new: dict[str, Tensor]) -> None:
        """Raise before any row is changed if tokens [B, n, G, D] are not of the kind stored."""
        for row in self.rows:
            row.check(new)

    def crop(self, lengths: int | Sequence[int]) -> None:
        """Forget the tokens from `lengths` on, of all rows or of none.

        Raises:
            ValueError: longer than a row is, or further back than its buffers remember.
        """
        wanted = [lengths] * len(self.rows) if isinstance(lengths, int) else list(lengths)
        for row, length in zip(self.rows, wanted, strict=True):
            row.check_crop(length)
        for row, length in zip(self.rows, wanted, strict=True):
            row.crop(length)

    def reorder(self, indices: Sequence[int]) -> None:
        """Row i becomes what row `indices[i]` was; rows may be repeated or left out (beams, selection)."""
        if any(not 0 <= index < len(self.rows) for index in indices):
            raise ValueError(f"indices: expected rows 0 .. {len(self.rows) - 1}, got {list(indices)}")
        taken: set[int] = set()
        rows = []
        for index in indices:
            # the first taker keeps the row, every further one needs a copy of its own
            rows.append(self.rows[index].clone() if index in taken else self.rows[index])
            taken.add(index)
        self.rows = rows

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        self.rows = []

    def nbytes(self) -> int:
        """Bytes of memory held by all rows, unused room included."""
        return sum(row.nbytes() for row in self.rows)


class SparseCache(BatchCache):
    """Decode state of one NativeSparseAttention layer.

    Args:
        config: the layer's block sizes.
        shared: whether the layer uses one K/V set for all branches (the window then needs no own copy).
        capacity: most tokens a row may hold; None for no limit.
        max_rollback: `crop` reaches back to this many tokens before the longest length so far, for
            speculative decoding.
    """

    def __init__(
        self,
        config: SparseConfig,
        *,
        shared: bool = False,
        capacity: int | None = None,
        max_rollback: int = 64,
    ) -> None:
        super().__init__(capacity)
        if max_rollback < 0:
            raise ValueError(f"max_rollback: expected at least 0, got {max_rollback}")
        self.config, self.shared, self.max_rollback = config, shared, max_rollback

    def new_row(self) -> SparseRow:
        return SparseRow.create(self.config, self.shared, self.max_rollback)


class DenseCache(BatchCache):
    """Decode state of a full-attention layer: all keys and values."""

    def new_row(self) -> RowCache:
        return RowCache({"key": TokenBuffer(), "value": TokenBuffer()})
