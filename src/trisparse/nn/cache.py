"""Decode state: what a layer must remember of the tokens it has seen, for rows of different length."""

from collections.abc import Sequence

from torch import Tensor

from trisparse import validate
from trisparse.config import SparseConfig
from trisparse.nn.buffer import TokenBuffer

# new tokens that the rings have room for beside what a row still needs; more go around the rings
STEP = 64


def _check_count(name: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}: expected an int, got {type(number).__name__} {number!r}")
    if number < 0:
        raise ValueError(f"{name}: expected at least 0, got {number}")


class BatchCache:
    """Rows of a batch, which may have different lengths. Made empty; the first tokens fix its batch size.

    Args:
        capacity: most tokens a row may hold, for which room is made at once; None for no limit.

    Attributes:
        lengths: tokens of each row.
        buffers: named keys and values of all rows.

    Raises:
        TypeError, ValueError: a capacity that is no int, or below 0.
    """

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is not None:
            _check_count("capacity", capacity)
        self.capacity = capacity
        self.lengths: list[int] = []
        self.buffers: dict[str, TokenBuffer] = {}
        # how far the rings were written for each row: what they forgot on the way no crop brings back
        self._longest: list[int] = []

    def new_buffers(self) -> dict[str, TokenBuffer]:
        """Empty buffers by name."""
        return {"key": TokenBuffer(limit=self.capacity), "value": TokenBuffer(limit=self.capacity)}

    def reserve(self, new: dict[str, Tensor], counts: Sequence[int]) -> None:
        """Check that the last counts[b] tokens of row b of `new` fit, then make room for them.

        `new` holds tokens [B, n, G, D] by the names of their buffers.

        Raises:
            ValueError: another batch size than before, more tokens than the capacity, or tokens of another
                shape, dtype or device; nothing is changed then.
        """
        batch = len(counts)
        # rows without tokens are none: a call that failed may have left them
        held = self.lengths if any(self.lengths) else []
        if held and len(held) != batch:
            raise ValueError(f"cache: expected a batch of {len(held)} rows, got {batch}")
        lengths = held or [0] * batch
        total = max((a + b for a, b in zip(lengths, counts, strict=True)), default=0)
        if self.capacity is not None and total > self.capacity:
            raise ValueError(f"cache: expected at most capacity={self.capacity} tokens, got {total}")
        buffers = self.buffers
        if not held and not all(name in buffers and buffers[name].fits(x, batch) for name, x in new.items()):
            buffers = self.new_buffers()
        for name, tokens in new.items():
            buffers[name].check(name, tokens)
        buffers["key"].make_room(new["key"], batch, total)
        room = buffers["key"].room
        for name, tokens in new.items():
            # with the first, and no further: each growing by itself would have room to spare at other times
            buffers[name].make_room(tokens, batch, self.room_needed(name, room), exactly=True)
        self.buffers = buffers
        if not held:
            self.lengths, self._longest = [0] * batch, [0] * batch

    def room_needed(self, _name: str, tokens: int) -> int:
        """Slots of a buffer that rows of `tokens` tokens need."""
        return tokens

    def write(self, rows: slice, new: dict[str, Tensor]) -> None:
        """Put tokens [R, n, G, D] behind those of `rows`, where there is room; `commit` makes them count.

        No gradient flows through a cache.
        """
        for name, tokens in new.items():
            if self.buffers[name].newest is not None:
                self.expect(rows, tokens.shape[1])
            self.buffers[name].write(rows, self.lengths[rows], tokens)

    def expect(self, rows: slice, count: int) -> None:
        """So many tokens behind those of `rows` are about to be written into rings."""
        known = zip(self._longest[rows], self.lengths[rows], strict=True)
        self._longest[rows] = [max(longest, length + count) for longest, length in known]

    def clear_behind(self) -> None:
        """Make what lies behind each row's tokens finite, where someone may look at it."""

    def pair(self, rows: slice, prefix: str = "") -> tuple[Tensor, Tensor]:
        """Keys and values [R, room, G, *] of `rows`, garbage behind their tokens."""
        return self.buffers[f"{prefix}key"].data[rows], self.buffers[f"{prefix}value"].data[rows]

    def commit(self, counts: Sequence[int]) -> None:
        """Row b is now counts[b] tokens longer. Until then, a call that failed has changed nothing."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def crop(self, lengths: int | Sequence[int] | Tensor) -> None:
        """Forget the tokens from `lengths` on, of all rows or of none; a number for all rows or one for each.

        Raises:
            TypeError: lengths that are no ints, nor an integer tensor.
            ValueError: longer than a row is, or further back than its buffers remember.
        """
        self.lengths = self.check_crop(lengths)

    def check_crop(self, lengths: int | Sequence[int] | Tensor) -> list[int]:
        """The length of each row after such a crop, or the error that it would raise."""
        if isinstance(lengths, int) or (isinstance(lengths, Tensor) and lengths.dim() == 0):
            wanted = [validate.integer("lengths", lengths)] * len(self.lengths)
        else:
            wanted = validate.integers("lengths", lengths)
        if len(wanted) != len(self.lengths):
            raise ValueError(f"lengths: expected one for each of {len(self.lengths)} rows, got {wanted}")
        for row, length in enumerate(wanted):
            self._check_crop(row, length)
        return wanted

    def _check_crop(self, row: int, length: int) -> None:
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"lengths: expected 0 .. {self.lengths[row]}, the cached tokens, got {length}")

    def reorder(self, indices: Sequence[int] | Tensor) -> None:
        """Row i becomes what row `indices[i]` was; rows may be repeated or left out (beams, selection).

        Raises:
            TypeError: indices that are no ints, nor an integer tensor.
            ValueError: a row that is not there; nothing is changed then.
        """
        rows = validate.integers("indices", indices)
        if any(not 0 <= row < len(self.lengths) for row in rows):
            raise ValueError(f"indices: expected rows 0 .. {len(self.lengths) - 1}, got {rows}")
        if rows == list(range(len(self.lengths))):
            return
        for buffer in self.buffers.values():
            buffer.select(rows)
        self.lengths = [self.lengths[row] for row in rows]
        self._longest = [self._longest[row] for row in rows]

    def reset(self) -> None:
        """Forget everything, the batch size included; room for `capacity` tokens stays where it is."""
        self.lengths, self._longest = [], []
        if self.capacity is None:
            self.buffers = {}

    def nbytes(self) -> int:
        """Bytes of memory held by all rows, unused room included."""
        return sum(buffer.nbytes() for buffer in self.buffers.values())


class SparseCache(BatchCache):
    """Decode state of one NativeSparseAttention layer: raw K/V to select from, compressed K/V, and in rings
    the window's K/V and the raw tokens that are still to be compressed.

    Args:
        config: the layer's block sizes.
        shared: whether the layer uses one K/V set for all branches (the window then needs no own copy).
        capacity: most tokens a row may hold, for which room is made at once; None for no limit.
        max_rollback: `crop` reaches back to this many tokens before the longest length so far, for
            speculative decoding.
    """

    def __init__(
        self,
        config: SparseConfig,
        *,
        shared: bool = False,
        capacity: int | None = None,
        max_rollback: int = STEP,
    ) -> None:
        super().__init__(capacity)
        _check_count("max_rollback", max_rollback)
        validate.sizes(config)
        self.config, self.shared, self.max_rollback = config, shared, max_rollback

    def new_buffers(self) -> dict[str, TokenBuffer]:
        limit = None if self.capacity is None else max(1, self.config.num_compressed(self.capacity))
        spare = max(STEP, self.max_rollback)
        buffers = super().new_buffers()
        for part in ("key", "value"):
            buffers[f"compressed_{part}"] = TokenBuffer(limit=limit)
            buffers[f"tail_{part}"] = TokenBuffer(newest=self.config.compress_block - 1 + spare)
            if not self.shared:
                buffers[f"window_{part}"] = TokenBuffer(newest=self.config.window - 1 + spare)
        return buffers

    def reserve(self, new: dict[str, Tensor], counts: Sequence[int]) -> None:
        """As BatchCache.reserve.

        Raises:
            ValueError: also where a call was interrupted while it wrote the rings.
        """
        if self._longest != self.lengths and len(counts) == len(self.lengths):
            for row, length in enumerate(self.lengths):
                if not self._remembers(row, length):
                    raise ValueError(
                        "cache: expected whole rings, got some that an interrupted call has written: reset it"
                    )
        super().reserve(new, counts)

    def room_needed(self, name: str, tokens: int) -> int:
        return max(1, self.config.num_compressed(tokens)) if name.startswith("compressed") else tokens

    def window(self, rows: slice) -> tuple[Tensor, Tensor]:
        """What the window branch sees: all raw tokens if they are shared, else the ring."""
        return self.pair(rows, "" if self.shared else "window_")

    def longer_window(self, rows: slice, new: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The same for more than STEP new tokens, which are not in the ring: a larger ring for this call."""
        if self.shared:
            return self.pair(rows)
        return self._larger_ring(rows, "window_key", new), self._larger_ring(rows, "window_value", new)

    def _larger_ring(self, rows: slice, name: str, new: dict[str, Tensor]) -> Tensor:
        tokens, starts, before = new[name], self.lengths[rows], self.config.window - 1
        larger = TokenBuffer(newest=before + tokens.shape[1])
        larger.make_room(tokens, len(starts), 0)
        everything, begins = slice(0, len(starts)), [start - before for start in starts]
        larger.write(everything, begins, self.buffers[name].read(rows, begins, before))
        larger.write(everything, starts, tokens)
        return larger.data

    def rows_by_length(self, rows: slice) -> list[tuple[int, list[int]]]:
        """(length, the rows of that length), for what can be done for equal rows at once."""
        groups: dict[int, list[int]] = {}
        for row in range(len(self.lengths))[rows]:
            groups.setdefault(self.lengths[row], []).append(row)
        return list(groups.items())

    def _check_crop(self, row: int, length: int) -> None:
        super()._check_crop(row, length)
        if not self._remembers(row, length):
            raise ValueError(
                f"lengths: expected at most max_rollback={self.max_rollback} tokens less than the "
                f"{self._longest[row]} that the row once had, got {length}; a new cache reaches further back "
                "with new_cache(max_rollback=...) of a layer, or with a larger config.max_rollback of a model"
            )

    def _remembers(self, row: int, length: int) -> bool:
        """Whether the rings hold what a row of `length` tokens needs of them."""
        window = max(0, length - self.config.window + 1)
        tail = self.config.num_compressed(length) * self.config.compress_stride
        buffers = ((self.buffers.get("window_key"), window), (self.buffers.get("tail_key"), tail))
        return all(buffer is None or oldest >= self._longest[row] - buffer.room for buffer, oldest in buffers)


class DenseCache(BatchCache):
    """Decode state of a full-attention layer: all keys and values."""

    def clear_behind(self) -> None:
        for buffer in self.buffers.values():
            for row, length in enumerate(self.lengths):
                buffer.data[row, length:] = 0
