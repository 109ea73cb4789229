"""A growing run of tokens of one sequence, which may forget its oldest ones."""

from torch import Tensor


class TokenBuffer:
    """Tokens [T, G, D] of one sequence in one piece of memory; doubles what it holds when full.

    Attributes:
        length: tokens appended so far, forgotten ones included.
        keep: forget what lies further back than this many tokens; None keeps everything.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.length = 0
        self._first = 0
        self._data: Tensor | None = None

    def append(self, tokens: Tensor) -> None:
        """Add tokens [n, G, D]."""
        held = self.length - self._first
        if self._data is None:
            self._data = tokens.new_empty(max(64, len(tokens)), *tokens.shape[1:])
        if held + len(tokens) > len(self._data):
            held = self._make_room(held, len(tokens))
        self._data[held : held + len(tokens)] = tokens
        self.length += len(tokens)

    def _make_room(self, held: int, extra: int) -> int:
        """Forget what may be forgotten and grow if that is not enough; returns the tokens still held."""
        kept = held if self.keep is None else min(held, self.keep)
        assert self._data is not None
        source = self._data[held - kept : held]
        # so the room that a long prefill took is given back where tokens are forgotten
        room = max(64, 2 * (kept + extra))
        # a fresh tensor: source and target may overlap
        data = self._data.new_empty(room, *self._data.shape[1:])
        data[:kept] = source
        self._data, self._first = data, self.length - kept
        return kept

    def since(self, position: int) -> Tensor:
        """The tokens from `position` on, a view [length - position, G, D].

        Raises:
            ValueError: some of them are forgotten.
        """
        if position < self._first:
            raise ValueError(
                f"position: expected at least {self._first}, the oldest token kept, got {position}"
            )
        assert self._data is not None
        return self._data[position - self._first : self.length - self._first]

    def reaches(self, position: int) -> bool:
        """Whether the token at `position` is still held, or will be the next one."""
        return self._first <= position

    def crop(self, length: int) -> None:
        """Drop the tokens from position `length` on."""
        self.length = length

    def clone(self) -> "TokenBuffer":
        """An independent copy."""
        other = TokenBuffer(self.keep)
        other.length, other._first = self.length, self._first
        other._data = None if self._data is None else self._data.clone()
        return other

    def nbytes(self) -> int:
        """Bytes of memory held, unused room included."""
        return 0 if self._data is None else self._data.nbytes

    def matches(self, tokens: Tensor) -> bool:
        """Whether tokens [n, G, D] are of the kind stored here."""
        data = self._data
        return data is None or (
            data.shape[1:] == tokens.shape[1:] and data.dtype == tokens.dtype and data.device == tokens.device
        )

    def describe(self) -> str:
        """Shape of a token, dtype and device, for error messages."""
        assert self._data is not None
        return f"{list(self._data.shape[1:])} {self._data.dtype} on {self._data.device}"
