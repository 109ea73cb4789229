"""Packed windows: training examples of one length, cut from a token stream without a gap."""

from typing import Any, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from trisparse.data.tokenizer import END_OF_DOCUMENT

# the label that cross entropy leaves out, PyTorch's and transformers' default
IGNORED_LABEL = -100

Item = TypeVar("Item", covariant=True)


class PackedWindows(Dataset[dict[str, torch.Tensor]]):
    """The consecutive windows of `context_length` tokens of one stream; the incomplete last one is dropped.

    Item `i` holds three int64 tensors `[context_length]`, fresh ones at each access:

    - `input_ids`: the tokens from `i * context_length` on.
    - `position_ids`: 0 at the start of the window and at the first token of each document, then counting up.
    - `labels`: `input_ids`, but `IGNORED_LABEL` where `position_ids` is 0. The model shifts labels by one:
      the label at `t` is predicted from `t - 1`, which for a document's first token is another document.

    Args:
        stream: token ids, integers `[tokens]`; kept as it is, never copied as a whole.
        context_length: tokens in one window, at least 2 (one token has nothing to predict).
        documents: False reads the stream as one text: positions count through the window, every label but the
            first is valid.
        end_of_document: the id that ends each document in `stream`; not looked for if `documents` is False.

    Raises:
        TypeError: `stream` is not a NumPy array of integers.
        ValueError: `stream` has several axes or is shorter than one window; `context_length` is below 2.
    """

    def __init__(
        self,
        stream: NDArray[Any],
        context_length: int,
        *,
        documents: bool = True,
        end_of_document: int = END_OF_DOCUMENT,
    ) -> None:
        _check_stream(stream, context_length)
        self.stream = stream
        self.context_length = context_length
        self.documents = documents
        self.end_of_document = end_of_document

    def __len__(self) -> int:
        return self.stream.size // self.context_length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        start = index * self.context_length
        tokens = self.stream[start : start + self.context_length].astype(numpy.int64)
        positions = self._positions(tokens)
        labels = numpy.where(positions == 0, IGNORED_LABEL, tokens)
        return {
            "input_ids": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }

    def _positions(self, tokens: NDArray[numpy.int64]) -> NDArray[numpy.int64]:
        indices = numpy.arange(tokens.size, dtype=numpy.int64)
        if not self.documents:
            return indices
        first = numpy.zeros_like(indices)
        # a document begins behind the end of another; an end on the last token begins nothing in this window
        starts = numpy.flatnonzero(tokens[:-1] == self.end_of_document) + 1
        first[starts] = starts
        return indices - numpy.maximum.accumulate(first)


def shuffled(dataset: Dataset[Item], seed: int, items: int) -> Subset[Item]:
    """Exactly `items` items of `dataset`: epoch after epoch, each a fresh permutation, the last cut short.

    The order is a pure function of `seed` and the length of `dataset`; fewer items are the beginning of more.
    Read in order (no sampler that shuffles again), a run resumes exactly from its number of items seen.

    Raises:
        ValueError: `seed` outside 0..2**32-1, `items` below 1, or `dataset` empty.
    """
    length = len(dataset)  # type: ignore[arg-type]  # torch's map-style datasets declare no length
    if length < 1:
        raise ValueError("dataset: expected at least 1 item, got none; give more text")
    if items < 1:
        raise ValueError(f"items: expected at least 1, got {items}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected 0..{2**32 - 1}, got {seed}")
    epochs = -(-items // length)
    # RandomState is frozen (NEP 19); `default_rng` may change with a release and break a resumed run
    orders = [numpy.random.RandomState([seed, epoch]).permutation(length) for epoch in range(epochs)]
    return Subset(dataset, numpy.concatenate(orders)[:items].tolist())


def spread(dataset: Dataset[Item], items: int) -> Subset[Item]:
    """At most `items` items of `dataset`, at equal distances over all of it, in their order."""
    length = len(dataset)  # type: ignore[arg-type]
    count = min(items, length)
    return Subset(dataset, (numpy.arange(count) * length // count).tolist())


def _check_stream(stream: NDArray[Any], context_length: int) -> None:
    if not isinstance(stream, numpy.ndarray) or not numpy.issubdtype(stream.dtype, numpy.integer):
        got = stream.dtype if isinstance(stream, numpy.ndarray) else type(stream).__name__
        raise TypeError(f"stream: expected a NumPy array of integers, got {got}")
    if stream.ndim != 1:
        raise ValueError(f"stream: expected one axis [tokens], got shape {list(stream.shape)}")
    if context_length < 2:
        raise ValueError(f"context_length: expected at least 2, got {context_length}")
    if stream.size < context_length:
        raise ValueError(
            f"stream: expected at least context_length={context_length} tokens, got {stream.size}; "
            "give more text or lower context_length"
        )
