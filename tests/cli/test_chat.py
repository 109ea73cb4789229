"""`trisparse chat` with what a pipe gives it."""

import io
import sys
from pathlib import Path

import pytest

from .conftest import Call

REPEATABLE = ("--temperature", "0", "--tokens", "8")


def talk(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return call("chat", str(folder), *REPEATABLE)


def test_commands_and_the_end_of_the_input(
    call: Call, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the way through every command; nothing after /exit is read, and no prompt spoils a pipe."""
    code, out, err = talk(call, model_folder, monkeypatch, "/stats\n/what\n\nspam\n/stats\n/exit\nham\n")
    assert code == 0, err
    assert "no answer yet" in err
    assert "/reset forgets" in err
    assert "prompt tokens: 5" in err
    assert "> " not in out + err
    code, alone, _ = talk(call, model_folder, monkeypatch, "spam")
    assert code == 0
    assert out == alone


def test_the_second_turn_reads_its_new_tokens_alone(
    call: Call, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a conversation that is computed again from its start at every turn, or after /reset is not."""
    first = "spam " * 40
    code, _, err = talk(call, model_folder, monkeypatch, f"{first}\neggs\n/stats\n/reset\neggs\n/stats\n")
    assert code == 0
    numbers = [line for line in err.splitlines() if line.startswith(("prompt tokens", "cached tokens"))]
    read, held, read_alone, held_alone = [int(line.split(": ")[1]) for line in numbers]
    # "eggs", a newline, and the token of the first answer that was chosen but not read
    assert 5 <= read <= 6
    assert held > 200
    assert read_alone == 5
    assert held_alone < 20
