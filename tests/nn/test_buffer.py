"""Tokens of every row: what is held, what is forgotten, and how much memory it takes."""

import pytest
import torch
from torch import Tensor

from trisparse.nn.buffer import TokenBuffer


def numbered(start: int, stop: int, row: int = 0) -> Tensor:
    """Tokens [1, stop - start, 1, 2] that carry their own position, and their row."""
    positions = torch.arange(start, stop, dtype=torch.float32)
    return torch.stack([positions, torch.full_like(positions, row)], dim=1)[None, :, None]


def filled(sizes: list[int], **settings: int) -> TokenBuffer:
    """One row, written in pieces of `sizes` tokens."""
    buffer, length = TokenBuffer(**settings), 0
    for size in sizes:
        buffer.make_room(numbered(0, 1), 1, length + size)
        buffer.write(slice(0, 1), [length], numbered(length, length + size))
        length += size
    return buffer


@pytest.mark.parametrize("sizes", [[1] * 200, [300], [63, 1, 1], [64, 65], [5, 0, 500, 1]])
def test_keeps_every_token_in_order_while_it_grows(sizes: list[int]) -> None:
    """Guards against tokens lost or moved when the memory is replaced by a larger one."""
    buffer, total = filled(sizes), sum(sizes)
    assert torch.equal(buffer.read(slice(0, 1), [0], total), numbered(0, total))
    assert torch.equal(buffer.data[:, 3:total], numbered(3, total))


@pytest.mark.parametrize("sizes", [[1] * 500, [400] + [1] * 300, [70] * 9, [3, 200, 1, 1, 64, 64]])
def test_ring_holds_the_newest_tokens_at_their_slots(sizes: list[int]) -> None:
    """Guards against a token that is overwritten too early, or lies in another slot than it is read from."""
    buffer, total = filled(sizes, newest=70), sum(sizes)
    assert buffer.room == 128
    assert torch.equal(buffer.read(slice(0, 1), [total - 70], 70), numbered(total - 70, total))
    for position in range(total - 70, total):
        assert buffer.data[0, position % 128, 0, 0] == position


def test_memory_of_a_ring_does_not_grow_with_the_tokens() -> None:
    """Guards against a window that costs as much as the whole sequence, also after a long prefill."""
    assert filled([1] * 2000, newest=10).nbytes() == 64 * 2 * 4
    assert filled([5000, 1], newest=10).nbytes() == 64 * 2 * 4


def test_memory_grows_by_a_quarter_and_rarely() -> None:
    """Guards against copying everything for every token, and against twice the memory that is needed."""
    buffer, places = TokenBuffer(), set()
    for length in range(1, 4001):
        buffer.make_room(numbered(0, 1), 1, length)
        places.add(buffer.room)
        assert length <= buffer.room <= max(64, length * 5 // 4 + 64)
    assert len(places) <= 20


def test_limit_makes_all_room_at_once() -> None:
    """Guards against memory that moves under a captured graph."""
    buffer = TokenBuffer(limit=100)
    buffer.make_room(numbered(0, 1), 2, 3)
    address = buffer.data.data_ptr()
    buffer.make_room(numbered(0, 1), 2, 100)
    assert buffer.data.shape == (2, 100, 1, 2)
    assert buffer.data.data_ptr() == address


@pytest.mark.parametrize("settings", [{}, {"newest": 20}], ids=["all", "ring"])
def test_rows_of_different_length_do_not_mix(settings: dict[str, int]) -> None:
    """Guards against one start for all rows, and rows counted from the wrong end of a slice."""
    buffer = TokenBuffer(**settings)
    buffer.make_room(numbered(0, 1), 4, 60)
    for rows, starts in ((slice(1, 4), [5, 0, 30]), ([3, 0], [35, 7])):
        tokens = torch.cat([numbered(s, s + 5, row=i) for i, s in enumerate(starts)])
        buffer.write(rows, starts, tokens)
    assert torch.equal(
        buffer.read([1, 2, 3], [5, 0, 30], 5)[:, 0, 0], torch.tensor([[5.0, 0], [0, 1], [30, 2]])
    )
    assert torch.equal(buffer.read(slice(3, 4), [35], 5), numbered(35, 40, row=0))
    assert torch.equal(buffer.read(slice(0, 1), [7], 5), numbered(7, 12, row=1))


def test_tokens_of_a_group_lie_one_after_the_other() -> None:
    """Guards the layout that decoding is fast with, through growth and a choice of rows."""
    buffer = TokenBuffer()
    for length in (10, 500):
        buffer.make_room(torch.zeros(1, 1, 3, 5), 2, length)
        assert buffer.data.stride()[1:] == (5, 5 * buffer.room, 1)
    buffer.select([1, 0, 1])
    assert buffer.data.shape == (3, buffer.room, 3, 5)
    assert buffer.data.stride()[1:] == (5, 5 * buffer.room, 1)


def test_selected_rows_do_not_share_memory() -> None:
    """Guards against two beams that write into each other."""
    buffer = filled([10])
    buffer.select([0, 0])
    buffer.write([1], [0], numbered(500, 505))
    assert torch.equal(buffer.read([0], [0], 10), numbered(0, 10))
    assert torch.equal(buffer.read([1], [0], 10), torch.cat([numbered(500, 505), numbered(5, 10)], dim=1))


@pytest.mark.parametrize(
    "other", [numbered(0, 1).double(), numbered(0, 1).repeat(1, 1, 2, 1), numbered(0, 1).to("meta")]
)
def test_tokens_of_another_kind_do_not_match(other: Tensor) -> None:
    """Guards against silent casts and broadcasts into the cache."""
    assert filled([3]).matches(numbered(3, 4))
    assert not filled([3]).matches(other)
