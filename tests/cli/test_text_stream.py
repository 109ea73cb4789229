"""Text on its way to the terminal: every character when it is there, and no other ones."""

import sys
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from trisparse.cli.text_stream import TextStream
from trisparse.data.tokenizer import END_OF_DOCUMENT, byte_tokenizer


class Screen:
    """A stdout that tells what was flushed from what only waits in a buffer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # in the test itself: pytest puts its own there when a test begins
        monkeypatch.setattr(sys, "stdout", self)
        self.waiting, self.seen = "", ""

    def write(self, text: str) -> None:
        self.waiting += text

    def flush(self) -> None:
        self.seen, self.waiting = self.seen + self.waiting, ""


def steps(screen: Screen, stream: TextStream, ids: list[int]) -> list[str]:
    """What is seen after each of the new tokens, and after the end."""
    seen = []
    for token in ids:
        stream.put(torch.tensor([token]))
        seen.append(screen.seen)
    stream.end()
    return [*seen, screen.seen]


def wordpieces() -> Any:
    """Words with a space before them, not shown where a text begins, and bytes where words are missing."""
    words = ["<unk>", "▁say", "▁yes", "s", "<0xE2>", "<0x82>", "<0xAC>"]
    core = Tokenizer(
        models.BPE(vocab={word: token for token, word in enumerate(words)}, merges=[], byte_fallback=True)
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_each_character_is_seen_with_its_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against text that waits for the end of a word or an answer, and against half characters."""
    screen = Screen(monkeypatch)
    stream = TextStream(byte_tokenizer(), skip_prompt=True)
    stream.put(torch.tensor([list(b"never shown")]))
    assert screen.seen == ""
    seen = steps(screen, stream, list("ab é€\nc".encode()))
    assert seen == [
        "a",
        "ab",
        "ab ",
        "ab ",
        "ab é",
        "ab é",
        "ab é",
        "ab é€",
        "ab é€\n",
        "ab é€\nc",
        "ab é€\nc\n",
    ]


def test_bytes_that_are_no_text_are_shown_when_that_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against bytes that vanish, and against everything after them that waits for them."""
    screen = Screen(monkeypatch)
    stream = TextStream(byte_tokenizer(), skip_prompt=True)
    stream.put(torch.tensor([[1]]))
    assert steps(screen, stream, list(b"a\xffb\xe2\x82")) == [
        "a",
        "a",
        "a\ufffdb",
        *["a\ufffdb"] * 2,
        "a\ufffdb\ufffd\n",
    ]


def test_prompt_is_seen_before_the_first_new_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the text that is continued, and the next text of the same stream."""
    screen = Screen(monkeypatch)
    stream = TextStream(byte_tokenizer())
    for _ in range(2):
        screen.seen = ""
        stream.put(torch.tensor([list(b"def f(")]))
        assert screen.seen == "def f("
        assert steps(screen, stream, list(b"x)")) == ["def f(x", "def f(x)", "def f(x)\n"]


def test_special_tokens_are_left_out_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards an answer against the name of its end, and characters after one that shows nothing."""
    screen = Screen(monkeypatch)
    stream = TextStream(byte_tokenizer(), skip_prompt=True, skip_special_tokens=True)
    stream.put(torch.tensor([[1]]))
    assert steps(screen, stream, [97, END_OF_DOCUMENT, 98]) == ["a", "a", "ab", "ab\n"]


def test_pieces_of_words_are_put_together_as_in_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards spaces between words of tokenizers that drop the first one, and their bytes."""
    screen = Screen(monkeypatch)
    tokenizer, ids = wordpieces(), [1, 3, 2, 4, 5, 6, 2, 1, 3]
    assert tokenizer.decode(ids) == "says yes€ yes says"
    stream = TextStream(tokenizer, skip_prompt=True)
    stream.put(torch.tensor([[1]]))
    seen = steps(screen, stream, ids)
    assert seen[:7] == ["say", "says", "says yes", "says yes", "says yes", "says yes€", "says yes€ yes"]
    assert seen[-1] == "says yes€ yes says\n"


def test_random_tokens_end_as_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against characters lost or shown twice, whatever an untrained model says."""
    screen = Screen(monkeypatch)
    tokenizer, generator = byte_tokenizer(), torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, 300, (40,), generator=generator).tolist()
        stream, screen.seen = TextStream(tokenizer), ""
        shown = steps(screen, stream, ids)
        assert all(later.startswith(earlier) for earlier, later in zip(shown, shown[1:], strict=False))
        assert shown[-1] == tokenizer.decode(ids) + "\n"
