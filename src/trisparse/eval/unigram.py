"""The floor of every loss curve: what knowing no context, only how frequent each byte is, would reach."""

from typing import Any

import numpy
from numpy.typing import NDArray

from trisparse.data.tokenizer import END_OF_DOCUMENT

# the 256 bytes and the end of a document, which is predicted like a byte
TOKENS = END_OF_DOCUMENT + 1


def unigram_bits(training_stream: NDArray[Any], heldout_stream: NDArray[Any]) -> float:
    """Cross entropy, in bits a token, of the held-out tokens under the training tokens' frequencies.

    Every one of the `TOKENS` counts once more than it occurs, so that one that is new in the held-out text
    costs a finite number of bits.

    Args:
        training_stream: token ids, integers `[tokens]`; may be empty: then every token costs the same.
        heldout_stream: token ids, integers `[tokens]`, at least one.

    Raises:
        TypeError: a stream is not a NumPy array of integers.
        ValueError: a stream has several axes, an id is no byte and no end of a document, or nothing is held
            out.
    """
    training = _counts("training_stream", training_stream)
    heldout = _counts("heldout_stream", heldout_stream)
    if not heldout.sum():
        raise ValueError("heldout_stream: expected at least 1 token, got none")
    probability = (training + 1) / (training.sum() + TOKENS)
    return float(-(heldout * numpy.log2(probability)).sum() / heldout.sum())


def _counts(name: str, stream: NDArray[Any]) -> NDArray[numpy.int64]:
    if not isinstance(stream, numpy.ndarray) or not numpy.issubdtype(stream.dtype, numpy.integer):
        got = stream.dtype if isinstance(stream, numpy.ndarray) else type(stream).__name__
        raise TypeError(f"{name}: expected a NumPy array of integers, got {got}")
    if stream.ndim != 1:
        raise ValueError(f"{name}: expected one axis [tokens], got shape {list(stream.shape)}")
    if stream.size and not 0 <= int(stream.min()) <= int(stream.max()) < TOKENS:
        raise ValueError(
            f"{name}: expected byte tokens 0..{TOKENS - 1}, got {int(stream.min())}..{int(stream.max())}"
        )
    return numpy.bincount(stream, minlength=TOKENS).astype(numpy.int64)
