"""The sizes of Native Sparse Attention: what the paper calls l, d, l', n and w."""

from dataclasses import dataclass

# blocks that one query may select
MAX_SLOTS = 2**15
# the largest number that an operator schema can carry
_MAX_SIZE = 2**63 - 1


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Block sizes and counts of the three branches. The defaults are the paper's.

    Attributes:
        compress_block: tokens summarised by one compressed key (l).
        compress_stride: tokens between the starts of two compressed blocks (d); divides both other blocks.
        select_block: raw tokens in one selected block (l').
        num_selected: blocks each query selects (n), the forced ones included.
        num_initial: blocks at the start of the sequence that every query selects.
        num_local: blocks ending at the query's own that every query selects.
        window: tokens in the sliding window (w), the query's own included.

    Raises:
        TypeError: a field is not an int.
        ValueError: a size below 1 or beyond int64, a stride that does not divide both blocks, l outside
            d..l', more than 2**15 slots or too few for the forced blocks; the message begins with the field.
    """

    compress_block: int = 32
    compress_stride: int = 16
    select_block: int = 64
    num_selected: int = 16
    num_initial: int = 1
    num_local: int = 2
    window: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r}")
            least = 0 if name in ("num_initial", "num_local") else 1
            most = MAX_SLOTS if name == "num_selected" else _MAX_SIZE
            _require(value >= least, f"{name}: expected at least {least}, got {value}")
            _require(value <= most, f"{name}: expected at most {most}, got {value}")
        block, stride, select = self.compress_block, self.compress_stride, self.select_block
        _require(stride <= block, f"compress_stride: expected at most compress_block={block}, got {stride}")
        _require(
            block % stride == 0,
            f"compress_stride: expected a divisor of compress_block={block}, got {stride}",
        )
        _require(
            select % stride == 0,
            f"compress_stride: expected a divisor of select_block={select}, got {stride}",
        )
        _require(block <= select, f"compress_block: expected at most select_block={select}, got {block}")
        forced = self.num_initial + self.num_local
        _require(
            self.num_selected >= forced,
            f"num_selected: expected at least num_initial + num_local = {forced}, got {self.num_selected}",
        )

    def num_compressed(self, tokens: int) -> int:
        """Compressed blocks of a sequence of `tokens` tokens (eq. 7); an incomplete block does not count."""
        if tokens < self.compress_block:
            return 0
        return (tokens - self.compress_block) // self.compress_stride + 1

    def num_select_blocks(self, tokens: int) -> int:
        """Selection blocks of a sequence of `tokens` tokens; the last one may be incomplete."""
        return -(-tokens // self.select_block)

    def tokens_read(self, tokens: int) -> int:
        """Keys that one query reads after `tokens` tokens, its own included: compressed, selected, window.

        The paper's table 4 counts T / d compressed blocks, one more than end within T tokens at its sizes.
        """
        selected = min(tokens, self.num_selected * self.select_block)
        return self.num_compressed(tokens) + selected + min(tokens, self.window)

    def as_ints(self) -> list[int]:
        """The fields in declaration order, as `SparseConfig.from_ints` takes them back."""
        return [getattr(self, name) for name in self.__dataclass_fields__]

    @classmethod
    def from_ints(cls, sizes: list[int]) -> "SparseConfig":
        """The inverse of `as_ints`: how a config crosses an operator schema, which knows no classes."""
        return cls(**dict(zip(cls.__dataclass_fields__, sizes, strict=True)))
