"""Held-out bits per byte by position: against a cross entropy by hand, and what must not be counted."""

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn

from trisparse.data.packing import PackedWindows
from trisparse.eval.position import COLUMNS, bits_by_position, bits_per_byte, default_edges
from trisparse.report import position as figure

from .models import Broken, Uniform, tiny_llama, tiny_trisparse

TOKENS = torch.randint(256, (5, 150), generator=torch.Generator().manual_seed(1))


def bits_by_hand(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Bits of each token but the first, `[N, T - 1]`, one row and one token at a time."""
    with torch.no_grad():
        logits = [model(row[None]).logits[0] for row in tokens]
    bits = [
        [
            -math.log2(torch.softmax(logits[n][t - 1].double(), 0)[tokens[n, t]])
            for t in range(1, len(tokens[n]))
        ]
        for n in range(len(tokens))
    ]
    return torch.tensor(bits)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_bins_equal_a_cross_entropy_by_hand(batch_size: int) -> None:
    """Guards against labels shifted by one, bins shifted by one, and a last batch lost or counted twice."""
    model = tiny_llama()
    by_hand = bits_by_hand(model, TOKENS)
    rows = bits_by_position(model, TOKENS, attention="full", batch_size=batch_size)
    places = [(row["position_start"], row["position_end"], row["bytes"]) for row in rows]
    assert places == [("0", "64", "315"), ("64", "128", "320"), ("128", "150", "110")]
    # column t - 1 holds the loss of token t
    wanted = [by_hand[:, :63], by_hand[:, 63:127], by_hand[:, 127:]]
    for row, bits in zip(rows, wanted, strict=True):
        assert float(row["bits_per_byte"]) == pytest.approx(float(bits.mean()), abs=1e-4)


def test_mean_equals_the_loss_of_the_model_itself() -> None:
    """Guards against nats sold as bits, and against a mean of means."""
    model = tiny_llama()
    with torch.no_grad():
        loss = model(TOKENS, labels=TOKENS).loss
    assert bits_per_byte(model, TOKENS, batch_size=2) == pytest.approx(float(loss) / math.log(2), abs=1e-4)


def test_uniform_model_needs_the_logarithm_of_its_vocabulary() -> None:
    """Guards the unit by a value that can be computed in the head."""
    assert bits_per_byte(Uniform(), TOKENS) == pytest.approx(math.log2(320), abs=1e-5)


def test_positions_are_those_in_the_document_and_first_tokens_are_skipped() -> None:
    """Guards against averaging a document's start into the bin of its place in the window."""
    documents = [list(range(97, 107)) + [256]] * 4
    windows = PackedWindows(numpy.array(sum(documents, []), dtype=numpy.uint16), 22)
    rows = bits_by_position(tiny_llama(), windows, attention="full", edges=[0, 1, 2, 11, 22])
    # 4 documents in 2 windows: their first tokens and all positions past a document's end have no row
    counts = [(row["position_start"], row["bytes"]) for row in rows]
    assert counts == [("1", "4"), ("2", "36")]


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_trisparse])
def test_documents_reach_the_model_as_position_ids(make_model: Callable[[], nn.Module]) -> None:
    """Guards against a measurement in which one document is predicted from another."""
    model = make_model()
    document = TOKENS[0, :30].tolist() + [256]
    packed = PackedWindows(numpy.array(document * 2, dtype=numpy.uint16), 62)
    alone = PackedWindows(numpy.array(document, dtype=numpy.uint16), 31)
    assert bits_per_byte(model, packed) == pytest.approx(bits_per_byte(model, alone), abs=1e-4)


def test_dataset_and_tensor_agree() -> None:
    """Guards the two forms of the same windows against two meanings."""
    windows = PackedWindows(TOKENS.flatten().numpy().astype(numpy.uint16), 150, documents=False)
    model = tiny_llama()
    by_tensor = bits_by_position(model, TOKENS, attention="full")
    assert bits_by_position(model, windows, attention="full") == by_tensor


@pytest.mark.parametrize(
    ("length", "edges"),
    [
        (10, [0, 10]),
        (64, [0, 64]),
        (65, [0, 64, 65]),
        (128, [0, 64, 128]),
        (300, [0, 64, 128, 256, 300]),
        (1024, [0, 64, 128, 256, 512, 1024]),
    ],
)
def test_default_edges_double_and_end_with_the_context(length: int, edges: list[int]) -> None:
    """Guards against an empty last bin and against one that reaches past the context."""
    assert default_edges(length) == edges


def test_tokens_outside_the_edges_are_left_out() -> None:
    """Guards against a last bin that swallows the rest of the context."""
    rows = bits_by_position(Uniform(), TOKENS, attention="full", edges=[10, 20, 1000])
    assert [row["bytes"] for row in rows] == ["50", "650"]
    rows = bits_by_position(Uniform(), TOKENS, attention="full", edges=[10, 20])
    assert [row["bytes"] for row in rows] == ["50"]


def test_measuring_leaves_the_random_numbers_of_a_run_alone() -> None:
    """Guards against a run that goes another way because it was measured."""
    state = torch.get_rng_state()
    bits_per_byte(Uniform(), TOKENS)
    assert torch.equal(torch.get_rng_state(), state)


def test_windows_can_be_trained_on_after_they_were_measured() -> None:
    """Guards against items made in inference mode, which a dataset that keeps them could never train on."""

    class Keeps(torch.utils.data.Dataset):
        items: list[dict[str, torch.Tensor]] = []

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            self.items.append({"input_ids": TOKENS[index].clone()})
            return self.items[-1]

    windows = Keeps()
    bits_per_byte(Uniform(), windows)
    assert not windows.items[0]["input_ids"].is_inference()


def test_rows_are_what_the_figure_reads() -> None:
    """Guards against columns that the report does not know."""
    assert COLUMNS == figure.COLUMNS
    rows = bits_by_position(tiny_llama(), TOKENS, attention="nsa")
    figure.draw(rows)
    assert "bits per byte" in figure.explain(rows)
    assert all(list(row) == COLUMNS for row in rows)


@pytest.mark.parametrize("edges", [[], [5], [0, 10, 10], [10, 0], [-1, 5]])
def test_edges_that_do_not_rise_are_refused(edges: list[int]) -> None:
    """Guards against empty and doubled stretches."""
    with pytest.raises(ValueError, match="^edges: expected at least two rising positions"):
        bits_by_position(Uniform(), TOKENS, attention="full", edges=edges)


def test_nothing_to_predict_is_refused() -> None:
    """Guards against a division by zero, far from its cause."""
    with pytest.raises(ValueError, match="^windows: expected at least 1, got none"):
        bits_per_byte(Uniform(), TOKENS[:0])
    with pytest.raises(ValueError, match="^windows: expected tokens to predict, got none"):
        bits_per_byte(Uniform(), TOKENS[:, :1])
    with pytest.raises(ValueError, match="^batch_size: expected at least 1, got 0"):
        bits_per_byte(Uniform(), TOKENS, batch_size=0)


def test_diverged_model_is_refused() -> None:
    """Guards against NaN in a table that a figure reads later."""
    with pytest.raises(ValueError, match="^model: expected a finite log-probability"):
        bits_per_byte(Broken(), TOKENS)
