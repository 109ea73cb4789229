"""The growing run of tokens: what it holds, forgets and takes back."""

import pytest
import torch
from torch import Tensor

from trisparse.nn.buffer import TokenBuffer


def numbered(start: int, stop: int) -> Tensor:
    """Tokens [stop - start, 1, 2] that carry their own position."""
    return torch.arange(start, stop, dtype=torch.float32)[:, None, None].repeat(1, 1, 2)


def filled(sizes: list[int], keep: int | None = None) -> TokenBuffer:
    buffer = TokenBuffer(keep)
    for size in sizes:
        buffer.append(numbered(buffer.length, buffer.length + size))
    return buffer


@pytest.mark.parametrize("sizes", [[1] * 200, [300], [63, 1, 1], [64, 65], [5, 0, 500, 1]])
def test_keeps_every_token_in_order_while_it_grows(sizes: list[int]) -> None:
    """Guards against tokens lost or moved when the memory is replaced by a larger one."""
    buffer = filled(sizes)
    assert buffer.length == sum(sizes)
    assert torch.equal(buffer.since(0), numbered(0, sum(sizes)))
    assert torch.equal(buffer.since(3), numbered(3, sum(sizes)))


@pytest.mark.parametrize("sizes", [[1] * 500, [400] + [1] * 300, [70] * 9, [3, 200, 1, 1, 64, 64]])
def test_forgetful_buffer_always_holds_the_tokens_it_promises(sizes: list[int]) -> None:
    """Guards against forgetting one token too many, or answering with the wrong ones afterwards."""
    buffer = TokenBuffer(keep=10)
    for size in sizes:
        before = buffer.length
        buffer.append(numbered(before, before + size))
        oldest = max(0, before - 10)
        assert torch.equal(buffer.since(oldest), numbered(oldest, before + size))


def test_token_that_was_forgotten_is_refused() -> None:
    """Guards against a negative slice that silently answers with other tokens."""
    buffer = filled([1] * 500, keep=10)
    assert not buffer.reaches(0)
    with pytest.raises(ValueError, match=r"^position: expected at least \d+.*got 0"):
        buffer.since(0)


def test_memory_of_a_forgetful_buffer_does_not_grow_with_the_tokens() -> None:
    """Guards against a window that costs as much as the whole sequence, also after a long prefill."""
    steps = filled([1] * 2000, keep=10)
    assert steps.nbytes() <= 64 * 2 * 4
    prefilled = filled([5000, 1], keep=10)
    assert prefilled.nbytes() <= 64 * 2 * 4


def test_memory_at_most_doubles_beyond_the_need() -> None:
    """Guards against growth by one token at a time, and against running away."""
    buffer = filled([1] * 1000)
    assert 1000 * 2 * 4 <= buffer.nbytes() <= 2 * 1000 * 2 * 4 + 64 * 2 * 4


def test_crop_then_append_overwrites_the_cropped_tokens() -> None:
    """Guards against rejected draft tokens that stay in the sequence."""
    buffer = filled([50])
    buffer.crop(20)
    assert torch.equal(buffer.since(0), numbered(0, 20))
    buffer.append(numbered(100, 130))
    assert torch.equal(buffer.since(0), torch.cat([numbered(0, 20), numbered(100, 130)]))


def test_crop_then_forget_keeps_the_right_positions() -> None:
    """Guards the first kept position when the memory is replaced right after a crop."""
    buffer = filled([64], keep=10)
    buffer.crop(62)
    buffer.append(numbered(62, 90))
    assert torch.equal(buffer.since(52), numbered(52, 90))


def test_clone_and_original_do_not_share_memory() -> None:
    """Guards against two beams that write into each other."""
    buffer = filled([10], keep=5)
    copy = buffer.clone()
    copy.crop(5)
    copy.append(numbered(500, 505))
    buffer.append(numbered(10, 12))
    assert torch.equal(buffer.since(0), numbered(0, 12))
    assert torch.equal(copy.since(0), torch.cat([numbered(0, 5), numbered(500, 505)]))


def test_clone_of_an_empty_buffer_can_be_filled() -> None:
    """Guards against a clone that needs memory to copy."""
    copy = TokenBuffer(keep=3).clone()
    assert copy.nbytes() == 0
    copy.append(numbered(0, 4))
    assert copy.keep == 3
    assert torch.equal(copy.since(0), numbered(0, 4))


@pytest.mark.parametrize(
    "other", [numbered(0, 1).double(), numbered(0, 1).repeat(1, 2, 1), numbered(0, 1).to("meta")]
)
def test_tokens_of_another_kind_do_not_match(other: Tensor) -> None:
    """Guards against silent casts and broadcasts into the cache."""
    assert filled([3]).matches(numbered(3, 4))
    assert not filled([3]).matches(other)
