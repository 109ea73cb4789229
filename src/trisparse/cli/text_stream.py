"""Writes the text of tokens to stdout while they come."""

import sys
from typing import Any

# what stands for bytes that are no character, or not yet one
_UNKNOWN = "\ufffd"


class TextStream:
    """A streamer of transformers that shows each character as soon as the last of its tokens is there.

    The one of transformers waits for the end of a word: of a text without spaces it shows nothing.

    Args:
        tokenizer: the model's.
        skip_prompt: show the new tokens alone.
        skip_special_tokens: show no special tokens.
    """

    def __init__(
        self, tokenizer: Any, *, skip_prompt: bool = False, skip_special_tokens: bool = False
    ) -> None:
        self.tokenizer, self.skip_prompt = tokenizer, skip_prompt
        self.skip_special_tokens = skip_special_tokens
        self._begin()

    def _begin(self) -> None:
        self._is_prompt = True
        # the newest tokens; the first `_context` of them, and `_written` characters of their text, were shown
        self._ids: list[int] = []
        self._context = self._written = 0

    def put(self, ids: Any) -> None:
        """The prompt [1, n] first, then each new token [1]."""
        is_prompt, self._is_prompt = self._is_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self._ids += ids.flatten().tolist()
        text = self._text()
        whole = text.rstrip(_UNKNOWN)
        if len(whole) <= self._written:
            return
        self._show(whole)
        if whole == text:
            # kept as a context: some decoders treat the first token of a text in another way than the others
            del self._ids[: self._context]
            self._context, self._written = len(self._ids), len(self._text())

    def end(self) -> None:
        """No more tokens: what is no whole character is shown too, and the line ends."""
        text = self._text()
        self._show(text)
        self._begin()
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _text(self) -> str:
        return self.tokenizer.decode(self._ids, skip_special_tokens=self.skip_special_tokens)

    def _show(self, text: str) -> None:
        sys.stdout.write(text[self._written :])
        sys.stdout.flush()
        self._written = len(text)
