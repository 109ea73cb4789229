"""Packed windows and their order: what a model sees, and in which sequence."""

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from trisparse.data.packing import IGNORED_LABEL, PackedWindows, shuffled, spread
from trisparse.data.tokenizer import END_OF_DOCUMENT, encode_bytes

STREAM = numpy.arange(100, dtype=numpy.uint16)


def stream_of(*documents: bytes) -> numpy.ndarray:
    """The documents' bytes, each followed by the end of a document, as a corpus makes them."""
    ids = [[*encode_bytes(document).tolist(), END_OF_DOCUMENT] for document in documents]
    return numpy.array(sum(ids, []), dtype=numpy.uint16)


def positions_of(windows: PackedWindows) -> list[list[int]]:
    return [windows[index]["position_ids"].tolist() for index in range(len(windows))]


def test_windows_are_consecutive_and_the_incomplete_last_one_is_dropped() -> None:
    """Guards against skipped, repeated or half-filled windows."""
    windows = PackedWindows(STREAM, 30)
    assert len(windows) == 3
    tokens = torch.cat([windows[index]["input_ids"] for index in range(3)])
    assert tokens.tolist() == list(range(90))


def test_stream_of_exactly_one_window_is_enough() -> None:
    """Guards the boundary of the length check."""
    assert len(PackedWindows(STREAM, 100)) == 1


def test_positions_restart_at_each_document_and_at_the_window() -> None:
    """Guards the boundaries that the model reads from positions: a lost restart joins two documents."""
    windows = PackedWindows(stream_of(b"ab", b"c", b"defgh"), 5)
    assert positions_of(windows) == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]


def test_window_that_ends_or_begins_with_the_end_of_a_document() -> None:
    """Guards the two edges of a window: an end on the last token starts nothing, on the first it restarts."""
    windows = PackedWindows(stream_of(b"abc", b"def"), 4)
    assert positions_of(windows) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert positions_of(PackedWindows(stream_of(b"", b"abc"), 4)) == [[0, 0, 1, 2]]


def test_labels_are_the_inputs_with_each_first_token_masked() -> None:
    """Guards against predicting a document's first token from another document, and against masking more."""
    item = PackedWindows(stream_of(b"ab", b"c", b"de"), 8)[0]
    assert item["input_ids"].tolist() == [97, 98, 256, 99, 256, 100, 101, 256]
    assert item["labels"].tolist() == [-100, 98, 256, -100, 256, -100, 101, 256]
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED_LABEL


def test_one_text_has_no_boundaries() -> None:
    """Guards `documents=False` against splitting a text at a token that means something else there."""
    item = PackedWindows(stream_of(b"ab", b"c", b"de"), 8, documents=False)[0]
    assert item["position_ids"].tolist() == list(range(8))
    assert item["labels"].tolist() == [-100, 98, 256, 99, 256, 100, 101, 256]


def test_end_of_document_may_be_another_id() -> None:
    """Guards the use with another tokenizer, whose id 256 is a word."""
    item = PackedWindows(numpy.array([5, 256, 2, 7, 8], dtype=numpy.int32), 5, end_of_document=2)[0]
    assert item["position_ids"].tolist() == [0, 1, 2, 0, 1]


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.binary(max_size=12), min_size=2, max_size=12),
    context_length=st.integers(2, 9),
)
def test_windows_agree_with_a_token_by_token_reading(documents: list[bytes], context_length: int) -> None:
    """Guards the vectorised restarts against any placement of ends in a window."""
    stream = stream_of(*documents, b"long enough")
    windows = PackedWindows(stream, context_length)
    for index in range(len(windows)):
        item, position = windows[index], -1
        for offset in range(context_length):
            token = int(stream[index * context_length + offset])
            ended = offset > 0 and stream[index * context_length + offset - 1] == END_OF_DOCUMENT
            position = 0 if ended else position + 1
            assert item["position_ids"][offset] == position
            assert item["input_ids"][offset] == token
            assert item["labels"][offset] == (IGNORED_LABEL if position == 0 else token)


def test_items_are_int64_and_their_own() -> None:
    """Guards against 16-bit ids, which an embedding refuses, and against a caller's write into the stream."""
    stream = STREAM.copy()
    windows = PackedWindows(stream, 10)
    item = windows[0]
    assert {name: tensor.dtype for name, tensor in item.items()} == dict.fromkeys(
        ("input_ids", "labels", "position_ids"), torch.int64
    )
    for tensor in item.values():
        tensor.fill_(7)
    assert stream.tolist() == STREAM.tolist()
    assert windows[0]["input_ids"].tolist() == list(range(10))
    assert windows.stream is stream


def test_read_only_stream_is_served_without_a_warning() -> None:
    """Guards memory-mapped and frozen streams; torch warns of a tensor over memory it must not write."""
    stream = STREAM.copy()
    stream.flags.writeable = False
    assert PackedWindows(stream, 10)[1]["labels"].tolist() == [-100, *range(11, 20)]


@pytest.mark.parametrize("index", [-1, 3])
def test_index_outside_the_windows_is_refused(index: int) -> None:
    """Guards iteration, which stops at IndexError, and against an empty tensor from a slice past the end."""
    with pytest.raises(IndexError, match=rf"^index: expected 0\.\.2, got {index}$"):
        PackedWindows(STREAM, 30)[index]


def test_stream_shorter_than_a_window_is_refused() -> None:
    """Guards against a run over no windows; both numbers and both ways out are in the message."""
    wanted = r"^stream: expected at least context_length=101 tokens, got 100; give more text or lower "
    with pytest.raises(ValueError, match=wanted):
        PackedWindows(STREAM, 101)


@pytest.mark.parametrize("context_length", [1, 0, -5])
def test_window_with_nothing_to_predict_is_refused(context_length: int) -> None:
    """Guards against a loss over no labels, which is NaN."""
    with pytest.raises(ValueError, match=rf"^context_length: expected at least 2, got {context_length}$"):
        PackedWindows(STREAM, context_length)


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        (
            STREAM.astype(numpy.float32),
            TypeError,
            r"^stream: expected a NumPy array of integers, got float32$",
        ),
        ([1, 2, 3], TypeError, r"^stream: expected a NumPy array of integers, got list$"),
        (STREAM.reshape(10, 10), ValueError, r"^stream: expected one axis \[tokens\], got shape \[10, 10\]$"),
    ],
    ids=["floats", "list", "two axes"],
)
def test_stream_of_another_kind_is_refused(stream: Any, error: type[Exception], message: str) -> None:
    """Guards against ids that are silently rounded or rows that are taken for tokens."""
    with pytest.raises(error, match=message):
        PackedWindows(stream, 2)


def order(length: int, seed: int, items: int) -> list[int]:
    dataset = shuffled(TensorDataset(torch.arange(length)), seed, items)
    assert len(dataset) == items
    return [int(dataset[index][0]) for index in range(items)]


def test_each_epoch_covers_every_item_once_in_its_own_order() -> None:
    """Guards against sampling with replacement and against repeating one permutation."""
    epochs = numpy.array(order(50, 3, 150)).reshape(3, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_is_a_function_of_the_seed_alone() -> None:
    """Guards exact resuming: neither the global random state nor an earlier call may show."""
    first = order(50, 3, 120)
    numpy.random.seed(1)
    torch.manual_seed(1)
    assert order(50, 3, 120) == first
    assert order(50, 4, 120) != first
    # pinned: another order in another release would break a resumed run
    assert order(8, 0, 10) == [3, 7, 4, 0, 2, 6, 5, 1, 0, 5]


def test_longer_run_begins_like_a_shorter_one() -> None:
    """Guards against another order when a run is made longer."""
    assert order(7, 5, 100)[:23] == order(7, 5, 23)


def test_fewer_items_than_an_epoch() -> None:
    """Guards a short run on a long text."""
    assert len(set(order(1000, 0, 10))) == 10


def test_data_loader_yields_batches_in_that_order() -> None:
    """Guards the promise that a plain loader needs no sampler state."""
    dataset = shuffled(PackedWindows(STREAM, 10), 0, 12)
    batches = list(DataLoader(dataset, batch_size=4))
    assert [batch["position_ids"].shape for batch in batches] == [(4, 10)] * 3
    starts = torch.cat([batch["input_ids"][:, 0] for batch in batches]).tolist()
    assert starts == [10 * index for index in order(10, 0, 12)]


@pytest.mark.parametrize(
    ("length", "seed", "items", "message"),
    [
        (0, 0, 1, r"^dataset: expected at least 1 item, got none; give more text$"),
        (5, 0, 0, r"^items: expected at least 1, got 0$"),
        (5, -1, 1, r"^seed: expected 0\.\.4294967295, got -1$"),
        (5, 2**32, 1, r"^seed: expected 0\.\.4294967295, got 4294967296$"),
    ],
)
def test_impossible_shuffle_is_refused(length: int, seed: int, items: int, message: str) -> None:
    """Guards against an empty run and against a seed that NumPy would refuse in its own words."""
    with pytest.raises(ValueError, match=message):
        order(length, seed, items)


@pytest.mark.parametrize(
    ("windows", "wanted"), [(3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))]
)
def test_spread_windows_reach_over_the_whole_text(windows: int, wanted: list[int]) -> None:
    """Guards against measuring the first file of a corpus instead of all of them."""
    packed = PackedWindows(numpy.arange(40, dtype=numpy.uint16), 4, documents=False)
    chosen = spread(packed, windows)
    assert [int(chosen[index]["input_ids"][0]) // 4 for index in range(len(chosen))] == wanted
