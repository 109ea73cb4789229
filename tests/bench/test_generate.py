"""The end-to-end benchmark: rows for every length, read or filled, and nothing left of what was decoded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StaticCache

from trisparse.bench import generate
from trisparse.bench.table import append_rows
from trisparse.models import TokenStep
from trisparse.report.rows import read_rows


def test_rows_of_both_attentions_and_both_ways_to_fill(tmp_path: Path):
    """Guards the columns, the limit, and the order of lengths."""
    seen: list[dict[str, str]] = []
    rows = generate.run(
        [96, 40, 300],
        preset="tiny",
        dtype=torch.float32,
        prefill_limit=100,
        chunk=33,
        steps=2,
        on_row=seen.append,
    )
    assert seen == rows
    assert all(list(row) == generate.COLUMNS for row in rows)
    assert [(row["attention"], row["tokens"], row["filled"]) for row in rows] == [
        (attention, *case)
        for attention in ("nsa", "full")
        for case in (("40", "prefill"), ("96", "prefill"), ("300", "random"))
    ]
    for row in rows:
        assert float(row["decode_ms"]) > 0
        assert (row["prefill_tokens_per_second"] == "") == (row["filled"] == "random")
        assert (row["weights"], row["captured"]) == ("random", "no")
    append_rows(tmp_path / "generate.csv", rows, generate.COLUMNS)
    assert read_rows(tmp_path / "generate.csv") == rows


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_decoded_tokens_are_taken_back(attention: str):
    """Guards against a context that grows with every case that is measured."""
    session = generate._Session("tiny", attention, torch.float32, 50)
    session.read(70)
    assert len(session.decode(3)) == 3
    assert [state.lengths for state in session.states] == [[70]] * len(session.states)
    session.fill(200)
    session.decode(64)
    assert [state.lengths for state in session.states] == [[200]] * len(session.states)


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_steps_are_captured_where_the_cache_is_static(attention: str, monkeypatch: pytest.MonkeyPatch):
    """Guards a GPU's rows: room of the length alone, and steps as `generate` takes them."""

    def static_cache(model: Any, room: int) -> StaticCache:
        return StaticCache(config=model.config, max_cache_len=max(1, room))

    taken: list[int] = []
    call = TokenStep.__call__
    monkeypatch.setattr(generate, "new_cache", static_cache)
    monkeypatch.setattr(TokenStep, "__call__", lambda step, ids: (taken.append(1), call(step, ids))[1])
    session = generate._Session("tiny", attention, torch.float32, 50)
    assert not taken
    for length in (70, 120):
        assert session.read(length) > 0
        session.decode(3)
        assert [state.lengths for state in session.states] == [[length]] * len(session.states)
        assert session.cache.get_max_length() == length + 64
    session.fill(200)
    session.decode(64)
    assert [state.lengths for state in session.states] == [[200]] * len(session.states)
    # two plain calls come first with each cache
    assert len(taken) == 5 + 5 + 62
    rows = generate.run([40], preset="tiny", attentions=[attention], dtype=torch.float32, steps=2)
    assert [row["captured"] for row in rows] == ["yes"]

    def refuse(_: TokenStep) -> None:
        raise RuntimeError("no capture")

    monkeypatch.setattr(TokenStep, "_run", refuse)
    with pytest.warns(UserWarning, match="steps are not captured"):
        rows = generate.run([40], preset="tiny", attentions=[attention], dtype=torch.float32, steps=2)
    assert [row["captured"] for row in rows] == ["no"]


def test_a_batch_counts_the_tokens_of_all_rows():
    """Guards against a speed of one row, and rows of which only the first is filled or taken back."""
    session = generate._Session("tiny", "nsa", torch.float32, 50, batch=3)
    session.read(70)
    session.fill(200)
    session.decode(2)
    assert [state.lengths for state in session.states] == [[200] * 3] * len(session.states)
    (row,) = generate.run([40], preset="tiny", attentions=["nsa"], dtype=torch.float32, steps=2, batch=3)
    assert row["batch"] == "3"
    found = float(row["decode_tokens_per_second"]) * float(row["decode_ms"])
    assert found == pytest.approx(3000, rel=0.01)


def test_first_calls_are_no_part_of_a_time(monkeypatch: pytest.MonkeyPatch):
    """Guards against a build of kernels that counts as reading, for the contender that comes first."""
    calls: list[int] = []
    forward = generate._Session._forward

    def recorded(session: generate._Session, count: int) -> None:
        calls.append(count)
        forward(session, count)

    monkeypatch.setattr(generate._Session, "_forward", recorded)
    session = generate._Session("tiny", "nsa", torch.float32, 50)
    assert calls == [256, 1]
    assert session.cache.get_seq_length() == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 65}, "^steps: expected 1 .. 64"),
        ({"batch": 0}, "^batch: expected at least 1"),
        ({"chunk": 0}, "^chunk: expected at least 1"),
        ({"lengths": [0]}, "^lengths: expected at least 1 token"),
        ({"preset": "huge"}, "^preset: expected one of"),
    ],
)
def test_wrong_argument_is_named(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        generate.run(**{"lengths": [8], "preset": "tiny", **wrong})
