"""Tokens of every row of a batch, in one piece of memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_RUN = 64  # tokens; room is made in whole runs, as the kernels read them


def _whole_runs(tokens: int) -> int:
    return -(-tokens // _RUN) * _RUN


def _new_tokens(like: Tensor, batch: int, room: int) -> Tensor:
    """Room [batch, room, G, D] for tokens like those in `like`, group by group in memory."""
    groups, width = like.shape[2:]
    # a cache that was begun in inference mode may be written outside of it
    with torch.inference_mode(False):
        return like.new_empty(batch, groups, room, width).transpose(1, 2)


def _kind(tokens: Tensor) -> str:
    return f"{list(tokens.shape[2:])} {tokens.dtype} on {tokens.device}"


class TokenBuffer:
    """Tokens [B, room, G, D]: by position, with room that grows, or only the newest ones, in a ring.

    In memory a group's tokens lie one after the other, for a selected block is read by one group.

    Args:
        newest: keep at least this many of the newest tokens, position s in slot s % room; None keeps all.
        limit: never more room than this many tokens, and all of it from the start; None grows by a quarter,
            or as it is told.
    """

    def __init__(self, *, newest: int | None = None, limit: int | None = None) -> None:
        self.newest, self.limit = newest, limit
        self._data: Tensor | None = None

    @property
    def data(self) -> Tensor:
        """Everything, with garbage where no token is."""
        assert self._data is not None, "a buffer that nothing was written to"
        return self._data

    @property
    def room(self) -> int:
        """Slots for tokens in a row."""
        return 0 if self._data is None else self._data.shape[1]

    def make_room(self, like: Tensor, batch: int, tokens: int, *, exactly: bool = False) -> None:
        """Have `batch` rows of room for `tokens` tokens like those in `like` [B, n, G, D], or some more."""
        if self._data is None:
            self._data = _new_tokens(like, batch, self._first_room(tokens))
        elif self.newest is None and tokens > self.room:
            # a quarter more: what is copied stays in proportion to what is written
            room = tokens if exactly else max(tokens, self.room * 5 // 4)
            grown = _new_tokens(like, batch, _whole_runs(room))
            grown[:, : self.room] = self._data
            self._data = grown

    def _first_room(self, tokens: int) -> int:
        if self.newest is not None:
            return _whole_runs(self.newest)
        return _whole_runs(tokens) if self.limit is None else self.limit

    def write(self, rows: slice | Sequence[int], starts: Sequence[int], tokens: Tensor) -> None:
        """Put `tokens` [R, n, G, D] at positions starts[i] .. starts[i] + n - 1 of the i-th of `rows`."""
        if not tokens.shape[1]:
            return
        tokens = tokens.detach()
        if self.newest is not None and tokens.shape[1] > self.room:
            starts = [start + tokens.shape[1] - self.room for start in starts]
            tokens = tokens[:, -self.room :]
        count = tokens.shape[1]
        slots = {start % self.room for start in starts}
        first = min(slots, default=0)
        if isinstance(rows, slice) and len(slots) == 1 and first + count <= self.room:
            self.data[rows, first : first + count] = tokens
        else:
            self.data[self._places(rows, starts, count)] = tokens

    def put(self, positions: Tensor, tokens: Tensor) -> None:
        """Put `tokens` [B, n, G, D] at `positions` [B, n] on the device, which no row's room ends before.

        Raises:
            ValueError: tokens of another shape, dtype or device than those here.
        """
        self.check("new", tokens)
        self.data[self._all_rows(), self._slots(positions)] = tokens.detach()

    def at(self, positions: Tensor) -> Tensor:
        """A copy [B, n, G, D] of the tokens at `positions` [B, n] on the device; below 0 it is garbage."""
        return self.data[self._all_rows(), self._slots(positions)]

    def _all_rows(self) -> Tensor:
        return torch.arange(len(self.data), device=self.data.device)[:, None]

    def _slots(self, positions: Tensor) -> Tensor:
        return positions.clamp(min=0) if self.newest is None else positions % self.room

    def read(self, rows: slice | Sequence[int], starts: Sequence[int], count: int) -> Tensor:
        """A copy [R, count, G, D] of the tokens from `starts[i]` on of the i-th of `rows`.

        Positions below 0, or forgotten, give garbage.
        """
        return self.data[self._places(rows, starts, count)]

    def _places(
        self, rows: slice | Sequence[int], starts: Sequence[int], count: int
    ) -> tuple[Tensor, Tensor]:
        device = self.data.device
        numbers = list(range(len(self.data))[rows]) if isinstance(rows, slice) else list(rows)
        begins = torch.tensor(starts, dtype=torch.int64, device=device)
        positions = begins[:, None] + torch.arange(count, device=device)
        return torch.tensor(numbers, dtype=torch.int64, device=device)[:, None], self._slots(positions)

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of what row `rows[i]` was."""
        if self._data is not None:
            chosen = torch.tensor(rows, dtype=torch.int64, device=self._data.device)
            with torch.inference_mode(False):
                self._data = self._data.transpose(1, 2)[chosen].transpose(1, 2)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenBuffer":
        copied = TokenBuffer(newest=self.newest, limit=self.limit)
        memo[id(self)] = copied
        if self._data is not None:
            with torch.inference_mode(False):
                copied._data = self._data.transpose(1, 2).clone().transpose(1, 2)
        return copied

    def nbytes(self) -> int:
        """Bytes of memory held, unused room included."""
        return 0 if self._data is None else self._data.nbytes

    def matches(self, tokens: Tensor) -> bool:
        """Whether tokens [B, n, G, D] are of the kind stored here."""
        data = self._data
        return data is None or (
            data.shape[2:] == tokens.shape[2:] and data.dtype == tokens.dtype and data.device == tokens.device
        )

    def fits(self, tokens: Tensor, batch: int) -> bool:
        """Whether `batch` rows of such tokens can take the memory that is there."""
        return self._data is not None and len(self._data) == batch and self.matches(tokens)

    def check(self, name: str, tokens: Tensor) -> None:
        """Raises ValueError, with `name` for the tokens, where they do not match."""
        if not self.matches(tokens):
            raise ValueError(f"cache: expected {name} tokens {_kind(self.data)}, got {_kind(tokens)}")
