"""The cross entropy of byte frequencies, by hand."""

import math

import numpy
import pytest

from trisparse.eval.unigram import unigram_bits


def stream(*ids: int) -> numpy.ndarray:
    return numpy.array(ids, dtype=numpy.uint16)


def test_cross_entropy_by_hand() -> None:
    """Guards against held-out frequencies in place of the training ones, and against a missing add-one."""
    # 257 tokens, each counted once more: 7 is 4 of 261, 9 is 2 of 261, 256 is 1 of 261
    bits = unigram_bits(stream(7, 7, 7, 9), stream(7, 9, 9, 256))
    wanted = -(math.log2(4 / 261) + 2 * math.log2(2 / 261) + math.log2(1 / 261)) / 4
    assert bits == pytest.approx(wanted)


def test_without_training_text_every_token_costs_the_same() -> None:
    """Guards against infinite bits for a byte that never occurred."""
    assert unigram_bits(stream(), stream(1, 2, 256)) == pytest.approx(math.log2(257))


def test_much_text_of_one_kind_costs_its_entropy() -> None:
    """Guards against the add-one as anything but a trifle: two bytes in equal parts are one bit."""
    coins = numpy.tile(stream(48, 49), 100_000)
    assert unigram_bits(coins, coins[:1000]) == pytest.approx(1.0, abs=0.01)


def test_streams_that_are_no_bytes_are_refused() -> None:
    """Guards against frequencies of another tokenizer sold as bits per byte."""
    with pytest.raises(ValueError, match=r"^heldout_stream: expected byte tokens 0\.\.256, got 1\.\.257"):
        unigram_bits(stream(1), stream(1, 257))
    with pytest.raises(TypeError, match="^training_stream: expected a NumPy array of integers, got list"):
        unigram_bits([1], stream(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^training_stream: expected a NumPy array of integers, got float64"):
        unigram_bits(numpy.ones(3), stream(1))
    with pytest.raises(
        ValueError, match=r"^training_stream: expected one axis \[tokens\], got shape \[1, 1\]"
    ):
        unigram_bits(stream(1)[None], stream(1))
    with pytest.raises(ValueError, match="^heldout_stream: expected at least 1 token"):
        unigram_bits(stream(1), stream())
