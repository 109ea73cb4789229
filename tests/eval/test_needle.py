"""Needles: where they lie, what surrounds them, and who finds them."""

import re
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trisparse.data.tokenizer import END_OF_DOCUMENT, encode_bytes
from trisparse.eval.needle import (
    COLUMNS,
    DISTRACTORS,
    Needle,
    Scoring,
    haystack_text,
    make_needle,
    needle_rows,
)
from trisparse.report import needle as figure

from .models import Broken, LooksBack, Uniform, tiny_llama

SHORTEST = 45
HAYSTACK = encode_bytes(b"def add(left, right):\n    return left + right\n\n" * 30)
GRID: dict[str, Any] = {"lengths": [64, 200], "depths": [0, 50, 100], "seed": 3, "attention": "nsa"}


def without_needle(needle: Needle) -> bytes:
    """The stretch of text that the needle was put into."""
    line_end = needle.prompt.index(b"\n", needle.start)
    query_start = needle.prompt.rindex(b"\n")
    return needle.prompt[: needle.start - 1] + needle.prompt[line_end + 1 : query_start]


@settings(max_examples=150, deadline=None)
@given(
    text=st.binary(min_size=400, max_size=600)
    | st.text(alphabet="0123456789", min_size=400, max_size=600).map(str.encode),
    length=st.integers(SHORTEST, 400 + SHORTEST),
    depth=st.floats(0, 100),
    seed=st.integers(0, 2**32 - 1),
    sample=st.integers(0, 1000),
)
def test_needle_lies_where_it_is_said_to(
    text: bytes, length: int, depth: float, seed: int, sample: int
) -> None:
    """Guards length, depth, a single place where the answer stands, and text that is otherwise untouched."""
    needle = make_needle(text, context_length=length, depth_percent=depth, seed=seed, sample=sample)
    prompt = needle.prompt
    assert len(prompt) == length

    stretch = without_needle(needle)
    assert len(stretch) == length - SHORTEST
    assert stretch in text
    # the stretch is cut at the depth, to the nearest byte
    assert abs((needle.start - 1) - len(stretch) * depth / 100) <= 0.5

    line = re.compile(rb'\n(SECRET_[A-Z]{6} = ")(\d{7})"\n').match(prompt, needle.start - 1)
    assert line is not None
    query, value = line.groups()
    assert prompt.endswith(b"\n" + query)
    assert prompt.count(query) == 2
    assert value == needle.value
    assert prompt.count(value) == 1
    assert len({value, *needle.distractors}) == 1 + DISTRACTORS
    assert all(re.fullmatch(rb"\d{7}", other) and other not in prompt for other in needle.distractors)


def test_edges_of_the_depth() -> None:
    """Guards the two ends by hand: 0 is the very start, 100 right before the query."""
    text = b"x" * 100
    first = make_needle(text, context_length=65, depth_percent=0, seed=0).prompt
    last = make_needle(text, context_length=65, depth_percent=100, seed=0).prompt
    assert first.startswith(b"\nSECRET_")
    assert first.count(b"x" * 20 + b"\nSECRET_") == 1
    assert re.fullmatch(rb'x{20}\nSECRET_\w{6} = "\d{7}"\n\nSECRET_\w{6} = "', last)


def test_names_and_numbers_that_the_text_holds_are_not_taken() -> None:
    """Guards against a second answer in the text; chance alone would hardly ever show it."""
    setting: dict[str, Any] = {"context_length": 100 + SHORTEST, "depth_percent": 50, "seed": 0}
    first = make_needle(b"x" * 100, **setting)
    name = first.prompt[first.start : first.start + len("SECRET_TALUKO")]
    second = make_needle(name.ljust(100, b"x"), **setting)
    assert second.prompt.count(name) == 1
    # another text each, because a name that is drawn anew changes the numbers behind it
    taken = first.value + b" " + first.distractors[0]
    third = make_needle(taken.ljust(100, b"x"), **setting)
    assert not {first.value, first.distractors[0]} & {third.value, *third.distractors}


def test_needles_are_the_same_everywhere() -> None:
    """Guards against needles that change with a release, which would make old and new scores incomparable."""
    needle = make_needle(b"abc " * 50, context_length=80, depth_percent=50, seed=1, sample=2)
    assert needle == make_needle(b"abc " * 50, context_length=80, depth_percent=50, seed=1, sample=2)
    assert (needle.start, needle.value) == (19, b"1610415")


def test_needles_differ_by_seed_sample_length_and_depth() -> None:
    """Guards against one needle asked again and again, whose score would be 0 or 1 by luck."""
    setting: dict[str, Any] = {"context_length": 80, "depth_percent": 50, "seed": 0, "sample": 0}
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"sample": 1},
        {"context_length": 81},
        {"depth_percent": 51},
    ]
    values = {make_needle(b"x" * 100, **setting | change).value for change in changes}
    assert len(values) == len(changes)


def test_ends_of_documents_are_taken_out() -> None:
    """Guards against a needle behind an end of a document, where such a model may not look."""
    stream = numpy.array([65, END_OF_DOCUMENT, 66, 257, 255], dtype=numpy.uint16)
    assert haystack_text(stream) == b"AB\xff"


@pytest.mark.parametrize("scoring", ["rank", "exact"])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_model_that_looks_back_finds_all(scoring: Scoring, batch_size: int) -> None:
    """Guards against a needle that cannot be answered, and against answers mixed up between batches."""
    rows = needle_rows(LooksBack(), HAYSTACK, samples=3, scoring=scoring, batch_size=batch_size, **GRID)
    assert [row["score"] for row in rows] == ["1"] * 6


@pytest.mark.parametrize("scoring", ["rank", "exact"])
def test_tie_is_not_a_win(scoring: Scoring) -> None:
    """Guards against a model without an opinion that is scored as one that knows."""
    rows = needle_rows(Uniform(), HAYSTACK, samples=3, scoring=scoring, **GRID)
    assert [row["score"] for row in rows] == ["0"] * 6


def test_model_that_cannot_know_ranks_by_chance() -> None:
    """Guards against distractors that a model can tell from the value by their looks: chance is 0.1."""
    rows = needle_rows(
        tiny_llama(),
        HAYSTACK,
        attention="full",
        lengths=[64],
        depths=[50],
        samples=150,
        seed=0,
        batch_size=100,
    )
    # three standard deviations of 150 draws
    assert float(rows[0]["score"]) == pytest.approx(0.1, abs=0.074)


def test_one_wrong_digit_is_no_exact_match() -> None:
    """Guards against a mean over digits, and against an answer read one token too early or too late."""

    class OneWrong(LooksBack):
        def __init__(self, place: int) -> None:
            super().__init__()
            self.place = place

        def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits = super().logits(input_ids)
            logits[:, self.place, ord("x")] = 9.0
            return logits

    def score(place: int) -> str:
        rows = needle_rows(OneWrong(place), HAYSTACK, samples=2, scoring="exact", **GRID)
        (only,) = {row["score"] for row in rows}
        return only

    # the answer's seven digits are predicted at the last seven tokens
    assert [score(place) for place in (-8, -7, -4, -1)] == ["1", "0", "0", "0"]


def test_rank_needs_the_value_above_every_distractor() -> None:
    """Guards against a mean rank: one distractor above the value is a miss."""

    class Prefers(Uniform):
        def __init__(self, liked: dict[bytes, float]) -> None:
            super().__init__()
            self.liked = liked

        def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits = super().logits(input_ids)
            for row, tokens in enumerate(input_ids.tolist()):
                # all digits alike, so that what is preferred is the whole answer
                logits[row, -7:, 48:58] = self.liked.get(bytes(tokens)[-6:], 0)
            return logits

    def score(value: float, distractor: float) -> str:
        model = Prefers({needle.value[:6]: value, needle.distractors[4][:6]: distractor})
        cell: dict[str, Any] = {"lengths": [90], "depths": [50], "samples": 1, "seed": 0}
        return needle_rows(model, HAYSTACK, attention="nsa", **cell)[0]["score"]

    needle = make_needle(haystack_text(HAYSTACK), context_length=90, depth_percent=50, seed=0)
    assert [score(2, 1), score(2, 2), score(2, 3)] == ["1", "0", "0"]


def test_cell_does_not_depend_on_the_other_cells() -> None:
    """Guards against needles drawn in sequence: a longer grid would then ask other questions."""
    whole, alone = Uniform(), Uniform()
    needle_rows(whole, HAYSTACK, samples=3, **GRID)
    needle_rows(alone, HAYSTACK, samples=2, **GRID | {"lengths": [200], "depths": [50]})
    assert len(alone.asked) == 20
    assert all(question in whole.asked for question in alone.asked)


def test_prompt_is_read_at_its_full_length() -> None:
    """Guards against a shorter context than the row says; the answer's first six digits come on top."""
    model = Uniform()
    needle_rows(model, HAYSTACK, attention="nsa", lengths=[100], depths=[0], samples=2, seed=0)
    assert [len(question) for question in model.asked] == [106] * 20


def test_rows_are_what_the_figure_reads() -> None:
    """Guards against columns that the report does not know."""
    assert COLUMNS == figure.COLUMNS
    rows = needle_rows(LooksBack(), HAYSTACK, samples=2, **GRID | {"depths": [0, 12.5, 100]})
    figure.draw(rows)
    assert "Samples per cell: 2." in figure.explain(rows)
    assert [row["depth_percent"] for row in rows[:3]] == ["0", "12.5", "100"]


def test_broken_model_is_refused() -> None:
    """Guards against NaN that compares like a miss and yields a score of 0."""
    for scoring in ("rank", "exact"):
        with pytest.raises(ValueError, match="^model: expected a finite log-probability"):
            needle_rows(Broken(), HAYSTACK, samples=1, scoring=scoring, **GRID)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": []}, "lengths: expected at least one and no two alike"),
        ({"depths": [0, 0]}, "depths: expected at least one and no two alike"),
        ({"depths": [101]}, r"depth_percent: expected 0\.\.100, got 101"),
        ({"depths": [float("nan")]}, r"depth_percent: expected 0\.\.100, got nan"),
        ({"lengths": [44]}, "context_length: expected at least 45, needle and query alone, got 44"),
        ({"lengths": [64, 5000]}, "haystack: expected at least 4955 bytes for a prompt of 5000, got 1410"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"seed": -1}, r"seed: expected 0\.\.4294967295, got -1"),
        ({"scoring": "greedy"}, "scoring: expected 'rank' or 'exact', got 'greedy'"),
    ],
)
def test_impossible_grids_are_refused_before_the_model_runs(change: dict[str, Any], message: str) -> None:
    """Guards against an hour of measuring that ends in an error, and against a table of nothing."""
    model = Uniform()
    with pytest.raises(ValueError, match=f"^{message}"):
        needle_rows(model, HAYSTACK, **{"samples": 1, **GRID, **change})
    assert not model.asked


def test_haystack_of_another_kind_is_refused() -> None:
    """Guards against text or a batch in place of a stream."""
    with pytest.raises(TypeError, match="^haystack: expected a NumPy array of integers, got bytes"):
        haystack_text(b"text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^haystack: expected one axis \[tokens\], got shape \[1, 1410\]"):
        haystack_text(HAYSTACK[None])
