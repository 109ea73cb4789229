"""`trisparse chat` with what a pipe gives it, and with what a user does at a terminal."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trisparse.models import conversation as conversations
from trisparse.models.conversation import Conversation

from .conftest import Call
from .scripted import script

# its end can be read at once
_READABLE = os.open(os.devnull, os.O_RDONLY)
REPEATABLE = ("--temperature", "0", "--tokens", "8")


class Terminal(io.StringIO):
    """What a user types; at "^C" he interrupts."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return _READABLE

    def readline(self, *_: Any) -> str:
        line = super().readline()
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


def talk(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return call("chat", str(folder), *REPEATABLE)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Conversation]:
    """The conversations of a test, in their order."""
    found: list[Conversation] = []

    class Seen(Conversation):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            found.append(self)

    monkeypatch.setattr(conversations, "Conversation", Seen)
    return found


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


@pytest.mark.parametrize("verb", ["chat", "generate"])
def test_each_token_is_on_the_screen_before_the_next_is_computed(
    call: Call,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    """Guards against an answer that comes as a whole, or word by word."""
    seen: list[str] = []
    # what the file descriptor got: text in Python's buffer does not count
    script(monkeypatch, "abcdefgh", before=lambda _: seen.append(capfd.readouterr().out))
    monkeypatch.setattr(sys, "stdin", io.StringIO("spam\n"))
    words = ("--prompt", "spam") if verb == "generate" else ()
    code, rest, _ = call(verb, str(model_folder), *words, *REPEATABLE)
    assert code == 0
    prompt = "spam" if verb == "generate" else ""
    assert [*seen, rest] == [prompt, "a", "b", "c", "d", "e", "f", "g", "h\n"]


@pytest.mark.parametrize("place", ["prompt", "third token"])
def test_interrupted_answer_ends_and_the_chat_goes_on(
    call: Call,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: list[Conversation],
    place: str,
) -> None:
    """Guards Ctrl-C: the next answer continues what was said until then, as a model without a cache would."""
    calls = 0

    def interrupt(_model: Any, _input: Any, _output: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == (1 if place == "prompt" else 3):
            raise KeyboardInterrupt

    original = Conversation.ask

    def ask(self: Conversation, *arguments: Any, **others: Any) -> str:
        # inside the forward: the attention has filled its cache, and the model is not done
        hook = self.model.model.layers[-1].attention.register_forward_hook(interrupt)
        try:
            return original(self, *arguments, **others)
        finally:
            hook.remove()

    monkeypatch.setattr(Conversation, "ask", ask)
    code, out, err = talk(call, model_folder, monkeypatch, "spam\neggs\n/stats\n")
    assert code == 0, err
    assert err.count("stopped") == 1
    assert "Traceback" not in err
    conversation = begun[0]
    said = 0 if place == "prompt" else 2
    prompt = conversation.ids[: 5 + said + 5]
    assert bytes(prompt[:5]) == b"spam\n"
    assert bytes(prompt[-5:]) == b"eggs\n"
    settings = {"max_new_tokens": 8, "do_sample": False, "use_cache": False}
    whole = conversation.model.generate(torch.tensor([prompt]), **settings)[0].tolist()
    assert conversation.ids == whole
    assert conversation.cache.get_seq_length() == len(whole) - 1
    shown = conversation.tokenizer.decode(whole[5 : 5 + said], skip_special_tokens=True)
    assert out.startswith(shown + "\n")


def test_ctrl_c_at_the_prompt_ends_with_the_exit_code_of_an_interruption(
    call: Call, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the end of a chat against a traceback, and against another exit code than the documented one."""
    monkeypatch.setattr(sys, "stdin", Terminal("spam\n^C\nham\n"))
    code, out, err = call("chat", str(model_folder), *REPEATABLE)
    assert code == 1
    assert err.endswith("> \ninterrupted\n")
    assert "Traceback" not in err
    # "ham" was not answered
    assert err.count("reads") == 1
    assert out.endswith("\n")


def test_ctrl_d_at_the_prompt_ends_well_and_ends_its_line(
    call: Call, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a shell whose prompt would stand behind ours."""
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    assert call("chat", str(model_folder)) == (0, "", "> \n")


def test_line_that_is_no_utf8_ends_nothing(
    call: Call, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a conversation from a slip of the keyboard."""
    typed = io.TextIOWrapper(io.BytesIO(b"spam\n\xff\n/stats\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    code, _, err = call("chat", str(model_folder), *REPEATABLE)
    assert code == 0, err
    assert "line: expected UTF-8, got something else at character 0" in err
    assert "prompt tokens: 5" in err
