"""The loss figure: held-out before training, and no verdict that a single run cannot carry."""

import pytest

from trisparse.report.loss import draw, explain

from .rows import loss_rows, written


def test_unigram_model_is_drawn_if_it_is_given():
    assert "unigram byte model" in written(draw(loss_rows()))
    bare = [
        {name: value for name, value in row.items() if name != "unigram_bits_per_byte"} for row in loss_rows()
    ]
    assert "unigram" not in written(draw(bare))
    assert "byte occurs" not in explain(bare)


def test_last_heldout_values_are_written_out():
    words = written(draw(loss_rows()))
    assert all(value in words for value in ("2.16", "2.21", "2.17"))


def test_explanation_compares_the_lowest_two():
    words = explain(loss_rows())
    assert (
        "After 13.1 million tokens the held-out loss is 2.16 for NSA, 2.21 for full attention and 2.17"
        in words
    )
    assert "The lowest, NSA, is 0.010 below gated full attention, the next." in words
    assert "Each is a single run" in words
    assert "4.63" in words


def test_runs_of_one_attention_are_told_apart():
    rows = loss_rows(("nsa",)) + [row | {"run": "nsa-1"} for row in loss_rows(("nsa",))]
    assert "NSA (nsa-0) | NSA (nsa-1)" in written(draw(rows))
    assert "single run" not in explain(rows)


def test_unequal_training_is_said():
    rows = [row for row in loss_rows() if row["attention"] == "nsa" or int(row["step"]) <= 200]
    assert "unequal training is no fair comparison" in explain(rows)


def test_training_alone_is_not_called_heldout():
    rows = [row for row in loss_rows(("nsa",)) if row["split"] == "train"]
    assert "NSA, training" in written(draw(rows))
    assert "the training loss is" in explain(rows)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"^rows: expected train or heldout in column split, got 'test'$"):
        draw([loss_rows()[0] | {"split": "test"}])


def test_two_unigram_models_are_refused():
    first, second, *_ = loss_rows()
    with pytest.raises(ValueError, match=r"^rows: expected one value in column unigram_bits_per_byte"):
        draw([first, second | {"unigram_bits_per_byte": "4.0"}])


def test_run_that_has_only_begun_still_draws():
    assert "8.81" in written(draw([row for row in loss_rows(("nsa",)) if row["step"] == "0"]))
