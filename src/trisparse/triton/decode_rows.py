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
from trisparse.triton.launch import LEAST_WIDTH, Tile, heads_per_tile
from trisparse.triton.sizes import cut_sizes

# keys of a piece for one new token: short enough that one row of the batch keeps a GPU busy. More tokens make
# more programs, and the longer their pieces are, the less has to be joined
COMPRESSED_PIECE = 256
TOKEN_PIECE = 128

# the compressed branch goes by selection blocks, of which a product needs so many
LEAST_BLOCKS = 16

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
        blocks: selection blocks of a compressed piece, a power of two.
        compressed_keys, token_keys: keys of a piece, of the compressed branch and of the other two.
        compressed, selected, window: how many pieces a row has at most.
    """

    blocks: int
    compressed_keys: int
    token_keys: int
    compressed: int
    selected: int
    window: int

    @property
    def all(self) -> int:
        """Pieces of the three branches."""
        return self.compressed + self.selected + self.window


def cut(config: SparseConfig, num_rows: int, room: int) -> Pieces:
    """The pieces of rows with `num_rows` new tokens in a room of `room` tokens."""
    longer = triton.next_power_of_2(num_rows)
    ratio = config.select_block // config.compress_stride
    fitting = 2 ** (max(1, COMPRESSED_PIECE // ratio).bit_length() - 1)
    blocks, token_keys = max(LEAST_BLOCKS, fitting) * longer, TOKEN_PIECE * longer
    num_blocks = config.num_select_blocks(room)
    selected = min(config.num_selected, num_blocks) * config.select_block
    return Pieces(
        blocks=blocks,
        compressed_keys=blocks * ratio,
        token_keys=token_keys,
        compressed=triton.cdiv(num_blocks, blocks),
        selected=triton.cdiv(selected, token_keys),
        window=triton.cdiv(min(config.window, room), token_keys),
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
    value: Tensor,
    starts: Tensor,
    room: int,
    config: SparseConfig,
    scale: float,
) -> DecodePlace:
    """The place of a call, with memory for its pieces. Here a config enters the room."""
    config = cut_sizes(config, room)
    pieces = cut(config, query.shape[1], room)
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


def panel(num_rows: int, heads_per_group: int, most_rows: int) -> Panel:
    """All heads of a group and as many new tokens as `most_rows` hold, so that they share each key's load."""
    heads = heads_per_tile(heads_per_group, most_rows)
    rows = max(LEAST_WIDTH, min(most_rows, triton.next_power_of_2(num_rows) * heads))
    return Panel(heads, rows, triton.cdiv(heads_per_group, heads), triton.cdiv(num_rows, rows // heads))


class BlockWeights(NamedTuple):
    """What the compressed branch leaves of eq. 9 for each head, not yet divided by its softmax's sum.

    Attributes:
        weights: fp32 [B, n, H, J], of block j relative to `references` at j // `blocks`.
        references: fp32 [B, n, H, J / blocks], scores in base 2; -inf where all weights are 0.
        blocks: selection blocks of a tile. Tiles that a row has not reached are not written.
    """

    weights: Tensor
    references: Tensor
    blocks: int


def new_block_weights(place: DecodePlace, tile: Tile) -> BlockWeights:
    """Memory for them, for `tile.keys` keys of a step of the compressed branch."""
    blocks = min(tile.keys, place.pieces.blocks)
    num_blocks = place.config.num_select_blocks(place.room)
    heads = place.lse.shape[1:]
    return BlockWeights(
        place.lse.new_empty(*heads, num_blocks),
        place.lse.new_empty(*heads, triton.cdiv(num_blocks, blocks)),
        blocks,
    )
