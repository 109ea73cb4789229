"""Rows from gates and selections made by hand, and from a real model."""

import pytest
import torch

from trisparse.eval.probe import (
    BRANCHES,
    GATE_COLUMNS,
    SELECTION_COLUMNS,
    gate_rows,
    gate_rows_of,
    selection_rows,
    selection_rows_of,
    selection_shares,
)
from trisparse.nn.probe import Observation
from trisparse.report import gates as gate_figure
from trisparse.report import selection as selection_figure
from trisparse.report.palette import BRANCHES as DRAWN_BRANCHES

from .models import Uniform, tiny_trisparse


def observation(
    *, layer: int = 0, gates: object = None, ids: object = None, select_block: int = 2
) -> Observation:
    return Observation(
        layer=layer,
        gates=torch.zeros(1, 1, 1, 3) if gates is None else torch.tensor(gates),
        ids=torch.zeros(1, 1, 1, 1, dtype=torch.int32)
        if ids is None
        else torch.tensor(ids, dtype=torch.int32),
        select_block=select_block,
    )


def cells(rows: list[dict[str, str]]) -> dict[tuple[str, ...], float]:
    return {tuple(list(row.values())[:-1]): float(list(row.values())[-1]) for row in rows}


def test_gates_are_means_over_texts_and_tokens() -> None:
    """Guards against a mean over heads, over branches, or of one text only."""
    # [B=2, T=2, H=2, 3]
    gates = [
        [[[0.0, 0.2, 0.4], [1.0, 1.0, 1.0]], [[0.2, 0.2, 0.4], [1.0, 1.0, 1.0]]],
        [[[0.4, 0.2, 0.4], [1.0, 1.0, 1.0]], [[0.6, 0.2, 0.8], [1.0, 1.0, 0.0]]],
    ]
    assert cells(gate_rows_of([observation(layer=3, gates=gates)])) == {
        ("3", "0", "compressed"): 0.3,
        ("3", "0", "selected"): 0.2,
        ("3", "0", "window"): 0.5,
        ("3", "1", "compressed"): 1.0,
        ("3", "1", "selected"): 1.0,
        ("3", "1", "window"): 0.75,
    }


def test_layer_observed_twice_has_one_row() -> None:
    """Guards against two rows for one bar where a layer works text by text, and against a mean of means."""
    long = observation(gates=[[[[0.3, 0.0, 0.0]]] * 3])
    short = observation(gates=[[[[0.7, 0.0, 0.0]]]])
    assert cells(gate_rows_of([long, short]))["0", "0", "compressed"] == pytest.approx(0.4)


def test_low_precision_gates_are_averaged_exactly() -> None:
    """Guards against a sum in bfloat16, which stops growing at 256."""
    gates = torch.full((1, 5000, 1, 3), 0.75, dtype=torch.bfloat16)
    seen = Observation(layer=0, gates=gates, ids=torch.zeros(1, 1, 1, 1), select_block=1)
    assert {row["mean"] for row in gate_rows_of([seen])} == {"0.750000"}


def test_shares_by_hand_with_empty_slots_and_repeats() -> None:
    """Guards against -1 read as the last block, and against an id that is counted once per listing."""
    # [B=1, T=4, G=1, S=3], two tokens a block
    ids = [[[[0, -1, -1]], [[0, 0, -1]], [[0, 1, -1]], [[1, -1, -1]]]]
    assert cells(selection_rows_of([observation(ids=ids)])) == {
        ("0", "0", "0", "0"): 1.0,
        ("0", "0", "1", "0"): 0.5,
        ("0", "0", "1", "1"): 1.0,
    }


def test_groups_and_texts_are_told_apart() -> None:
    """Guards against swapped dimensions: a group has rows of its own, texts are averaged."""
    # [B=2, T=2, G=2, S=1], one token a block
    ids = [[[[0], [0]], [[0], [1]]], [[[0], [0]], [[1], [1]]]]
    shares = selection_shares(torch.tensor(ids), select_block=1)
    assert shares.tolist() == [[[1, 0], [0.5, 0.5]], [[1, 0], [0, 1]]]


def test_last_block_may_be_incomplete() -> None:
    """Guards against a share of a whole block's queries where there are fewer."""
    ids = torch.tensor([[[[0]], [[0]], [[1]]]])
    assert selection_shares(ids, select_block=2).tolist() == [[[1, 0], [0, 1]]]


def test_blocks_merge_to_cells() -> None:
    """Guards against shares above 1 where a query selects two blocks of one cell."""
    # [B=1, T=4, G=1, S=2], one token a block, two blocks a cell
    ids = torch.tensor([[[[0, -1]], [[0, 1]], [[0, 1]], [[2, 3]]]])
    assert selection_shares(ids, 1, blocks_per_cell=2).tolist() == [[[1, 0], [0.5, 0.5]]]


def test_ids_past_the_last_block_are_no_block() -> None:
    """Guards against an index error, and against a past-the-end id that lands in a real cell."""
    ids = torch.tensor([[[[0, 2]], [[1, 99]], [[2, 3]]]])
    assert selection_shares(ids, 1).tolist() == [[[1, 0, 1], [0, 1, 0], [0, 0, 1]]]
    # three blocks in two cells: block 3 does not exist, though its cell does
    ids = torch.tensor([[[[0]], [[1]], [[3]]]])
    assert selection_shares(ids, 1, blocks_per_cell=2).tolist() == [[[1, 0], [0, 0]]]


def test_empty_selection_is_a_row_of_zero() -> None:
    """Guards against a group that vanishes from the mean over groups because it selects nothing."""
    ids = [[[[0], [-1]]]]
    assert cells(selection_rows_of([observation(ids=ids)])) == {
        ("0", "0", "0", "0"): 1.0,
        ("0", "1", "0", "0"): 0.0,
    }


def test_real_layers_yield_rows_that_the_figures_draw() -> None:
    """Guards the contract with the layer, and columns that the report does not know."""
    tokens = torch.randint(256, (2, 30))
    gates, selection = gate_rows(tiny_trisparse(), tokens), selection_rows(tiny_trisparse(), tokens)
    assert (GATE_COLUMNS, SELECTION_COLUMNS) == (gate_figure.COLUMNS, selection_figure.COLUMNS)
    assert tuple(DRAWN_BRANCHES) == BRANCHES
    assert len(gates) == 2 * 4 * 3
    gate_figure.draw(gates)
    selection_figure.draw(selection)
    assert "fault" not in selection_figure.explain(selection)


def test_real_layers_select_their_forced_blocks_and_never_the_future() -> None:
    """Guards against swapped queries and keys: any weights select the first and the two nearest blocks."""
    shares = cells(selection_rows(tiny_trisparse(), torch.randint(256, (1, 30))))
    assert all(int(key) <= int(query) for _, _, query, key in shares)
    for query in range(8):
        for key in {0, query, max(0, query - 1)}:
            assert shares["1", "1", str(query), str(key)] == 1
    # the fourth slot is free: from block 4 on it goes to one of several
    assert sum(share for place, share in shares.items() if place[:3] == ("0", "0", "7")) == pytest.approx(4)


def test_model_without_sparse_layers_is_refused() -> None:
    """Guards against an empty table, whose figure would fail without a reason."""
    with pytest.raises(ValueError, match="^model: expected layers of NativeSparseAttention, got none"):
        gate_rows(Uniform(), torch.zeros(1, 4, dtype=torch.long))


def test_cell_of_no_block_is_refused() -> None:
    """Guards against a division by zero."""
    with pytest.raises(ValueError, match="^blocks_per_cell: expected at least 1, got 0"):
        selection_rows_of([observation()], blocks_per_cell=0)
