"""The selection figure: the future stays blank unless a fault fills it."""

import numpy
import pytest

from trisparse.report.selection import draw, explain, pick

from .rows import selection_rows, written

FUTURE = {"layer": "0", "group": "0", "query_block": "3", "key_block": "7", "share": "0.5"}


def test_layers_are_picked_evenly():
    assert pick([0, 1, 2], 4) == [0, 1, 2]
    assert pick(list(range(30)), 4) == [0, 10, 19, 29]
    words = written(draw(selection_rows(layers=6, blocks=8)))
    assert all(f"Layer {layer}" in words for layer in (0, 2, 3, 5))


def test_future_is_blank():
    cells = draw(selection_rows(1, 16)).axes[0].collections[0].get_array()
    assert numpy.array_equal(numpy.ma.getmaskarray(cells), numpy.triu(numpy.ones((16, 16), dtype=bool), 1))


def test_selected_future_block_is_seen_and_said():
    rows = [*selection_rows(1, 16), FUTURE]
    cells = draw(rows).axes[0].collections[0].get_array()
    assert not numpy.ma.getmaskarray(cells)[3, 7]
    assert "A fault: layer 0 selected blocks of the future." in explain(rows)
    assert "fault" not in explain(rows[:-1])


def test_groups_are_averaged_and_absent_rows_are_none():
    rows = [
        {"layer": "0", "group": group, "query_block": "1", "key_block": "0", "share": "1"} for group in "01"
    ]
    cells = draw([rows[0], rows[1] | {"share": "0.5"}]).axes[0].collections[0].get_array()
    assert cells[1, 0] == 0.75
    assert cells[1, 1] == 0


def test_explanation_counts_the_last_queries_blocks():
    words = explain(selection_rows(6, 32, 8))
    assert (
        "A query of block 31 selects on average this many blocks: 7.74 in layer 0, 8.00 in layer 2" in words
    )
    assert "beyond the first block and the two nearest: 61% in layer 0" in words


def test_share_above_one_is_refused():
    with pytest.raises(ValueError, match=r"^rows: expected a share from 0 to 1, got 64$"):
        draw([FUTURE | {"share": "64"}])
