# mypy: allow-incomplete-defs
# (a kernel's run-time arguments have no Python type)
"""What the kernels of decoding share: where a row of the batch stands, and its keys cut into pieces.

A program attends one piece of one branch's keys and leaves its softmax unfinished: a fp32 output and a
log-sum-exp of its own. Pieces are joined in the order of their keys. Their length is fixed, so that a row's
bits do not depend on the batch or on the room behind it. Their number is fixed by the room, so that a
captured graph stays valid while rows grow: a program whose piece the row has not reached returns at once, and
nobody reads what it did not write.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.config import SparseConfig
from trisparse.triton.launch import LEAST_WIDTH, PinnedTiles, Tile, heads_per_tile

# keys of a piece for one new token: short enough that one row of the batch keeps a GPU busy. More tokens make
# more programs, and the longer their pieces are, the less has to be joined
COMPRESSED_PIECE = 256
TOKEN_PIECE = 128

# most rows, keys of a step
TILES: PinnedTiles = {
    "large": ((640, Tile(64, 64, 4, 3)), (float("inf"), Tile(16, 32, 8, 1))),
    "medium": ((640, Tile(64, 64, 4, 2)), (float("inf"), Tile(16, 32, 8, 1))),
    "small": ((512, Tile(64, 32, 4, 2)), (640, Tile(64, 32, 4, 1)), (float("inf"), Tile(16, 32, 8, 1))),
}

# position of a row that takes no part: far enough below 0 for all its tokens
_NOWHERE = tl.constexpr(-(2**30))


@triton.jit
def row_start(starts, batch, num_rows, room):
    """Position of the first new token; below 0 for a row that takes no part, never past the room's end."""
    start = tl.load(starts + batch)
    return tl.where(start < 0, _NOWHERE, tl.minimum(start, room - num_rows))


@triton.jit
def blocks_until(positions, SELECT_BLOCK: tl.constexpr):
    """How many selection blocks begin at or before `positions`."""
    return tl.maximum(positions + SELECT_BLOCK, 0) // SELECT_BLOCK


class Pieces(NamedTuple):
    """How the keys of a row are cut. Pieces of the compressed branch come first, those of the window last.

    Attributes:
        compressed_keys, token_keys: keys of a piece, of the compressed branch and of the other two.
        compressed, selected, window: how many pieces a row has at most.
    """

    compressed_keys: int
    token_keys: int
    compressed: int
    selected: int
    window: int

    @property
    def all(self) -> int:
        """Pieces of the three branches."""
        return self.compressed + self.selected + self.window


def cut(config: SparseConfig, num_rows: int, room: int, num_keys: int) -> Pieces:
    """The pieces of rows with `num_rows` new tokens in a room of `room` tokens and `num_keys` blocks."""
    longer = triton.next_power_of_2(num_rows)
    compressed_keys, token_keys = COMPRESSED_PIECE * longer, TOKEN_PIECE * longer
    selected = min(config.num_selected, config.num_select_blocks(room)) * config.select_block
    return Pieces(
        compressed_keys,
        token_keys,
        triton.cdiv(num_keys, compressed_keys),
        triton.cdiv(selected, token_keys),
        triton.cdiv(min(config.window, room), token_keys),
    )


@dataclass(frozen=True, kw_only=True)
class DecodePlace:
    """Everything about a call that is not one of its inputs.

    Attributes:
        starts: int32 [B], contiguous.
        room: tokens that a row has room for.
        outs, lse: what the pieces leave, fp32 [P, B, n, H, E] and [P, B, n, H].
    """

    config: SparseConfig
    scale: float
    starts: Tensor
    room: int
    pieces: Pieces
    outs: Tensor
    lse: Tensor

    @property
    def arguments(self) -> dict[str, Tensor | int]:
        """The arguments that every kernel takes which needs a row's position."""
        _, batch, num_rows, _ = self.lse.shape
        return {"starts": self.starts, "num_batches": batch, "num_rows": num_rows, "room": self.room}

    @property
    def reach(self) -> int:
        """The window, cut so that sums with it fit into int32."""
        return min(self.config.window, self.room)


def decode_place(
    query: Tensor,
    key_cmp: Tensor,
    value: Tensor,
    starts: Tensor,
    room: int,
    config: SparseConfig,
    scale: float,
) -> DecodePlace:
    """The place of a call, with memory for its pieces."""
    pieces = cut(config, query.shape[1], room, key_cmp.shape[1])
    lse = query.new_empty((pieces.all, *query.shape[:3]), dtype=torch.float32)
    outs = lse.new_empty((*lse.shape, value.shape[3]))
    return DecodePlace(
        config=config, scale=scale, starts=starts.contiguous(), room=room, pieces=pieces, outs=outs, lse=lse
    )


class Panel(NamedTuple):
    """Rows of a program: row r is head r % heads of new token r // heads; `panels` hold all tokens.

    `chunks` panels together have all heads of a group.
    """

    heads: int
    rows: int
    chunks: int
    panels: int

    @property
    def constants(self) -> dict[str, int]:
        """The constexpr arguments of a kernel."""
        return {"HEADS": self.heads, "ROWS": self.rows, "CHUNKS": self.chunks}


def panel(query: Tensor, key: Tensor, most_rows: int) -> Panel:
    """All heads of a group and as many new tokens as `most_rows` hold, so that they share each key's load."""
    num_rows, heads_per_group = query.shape[1], query.shape[2] // key.shape[2]
    heads = heads_per_tile(heads_per_group, most_rows)
    rows = max(LEAST_WIDTH, min(most_rows, triton.next_power_of_2(num_rows) * heads))
    return Panel(heads, rows, triton.cdiv(heads_per_group, heads), triton.cdiv(num_rows, rows // heads))
